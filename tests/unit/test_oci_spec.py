"""What a bundle's configuration asks for, and what it becomes."""

from __future__ import annotations

import copy

import pytest

from cisfs.errors import FormatError
from cisfs.runtime.oci import spec

MACHINE = "x86_64"


def config(**changes: object) -> spec.Json:
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["sh"], "env": ["PATH=/bin", "A=b"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        **changes,
    }


def with_environment(*settings: str) -> spec.Json:
    return config(process={"args": ["sh"], "env": ["PATH=/bin", *settings], "cwd": "/"})


def test_a_bundle_that_names_nothing_is_none_of_our_business() -> None:
    assert spec.wanted(config()) is None
    assert spec.wanted(config(annotations={"dev.cisfs.other": "x"})) is None
    assert spec.wanted(with_environment("CISFS_LAYERS=", "CISFS_LAYERSX=a")) is None
    assert spec.wanted({"root": {"path": "r"}}) is None


def test_layers_come_from_the_annotation_or_else_from_the_environment() -> None:
    named = with_environment("CISFS_LAYERS=/a.cis, b,", "CISFS_SCRATCH=memory")
    assert spec.wanted(named) == spec.Wanted(("/a.cis", "b"), "memory")
    named["annotations"] = {"dev.cisfs.layers": "c"}
    assert spec.wanted(named) == spec.Wanted(("c",), "memory")
    assert spec.wanted(with_environment("CISFS_SCRATCH=ephemeral")) == spec.Wanted((), "ephemeral")


def test_how_long_to_wait_is_said_by_the_annotation_or_else_by_the_environment() -> None:
    named = with_environment("CISFS_LAYERS=/a", "CISFS_FETCH_TIMEOUT=5")
    assert spec.wanted(named) == spec.Wanted(("/a",), None, "5")
    named["annotations"] = {"dev.cisfs.fetch-timeout": "2.5"}
    assert spec.wanted(named) == spec.Wanted(("/a",), None, "2.5")
    got = spec.rewritten(named, "/new", read_only=True, machine=MACHINE)
    assert got["process"]["env"] == ["PATH=/bin"]
    assert spec.wanted(with_environment("CISFS_FETCH_TIMEOUT=5")) is None


def test_what_is_empty_names_nothing() -> None:
    """What somebody sets who does not trust the image."""
    empty = with_environment("CISFS_LAYERS=/a", "CISFS_SCRATCH=", "CISFS_FETCH_TIMEOUT= ")
    assert spec.wanted(empty) == spec.Wanted(("/a",), None, None)
    assert spec.wanted(with_environment("CISFS_LAYERS=", "CISFS_SCRATCH= ")) is None
    named = with_environment("CISFS_LAYERS=/a", "CISFS_SCRATCH=persistent:x")
    named["annotations"] = {"dev.cisfs.scratch": ""}
    assert spec.wanted(named) == spec.Wanted(("/a",), None)
    named["annotations"] = {"dev.cisfs.layers": ""}
    assert spec.wanted(named) == spec.Wanted((), "persistent:x")


def test_our_variables_leave_the_environment_and_nothing_else_does() -> None:
    named = with_environment("CISFS_LAYERS=/a", "CISFS_SCRATCH=none", "CISFS_OTHER=1", "odd")
    before = copy.deepcopy(named)
    got = spec.rewritten(named, "/new", read_only=True, machine=MACHINE)
    assert got["process"]["env"] == ["PATH=/bin", "CISFS_OTHER=1", "odd"]
    assert got["root"] == {"path": "/new", "readonly": True}
    assert got["process"]["args"] == ["sh"]
    assert named == before


def test_what_the_layers_hold_is_set_unless_it_is_set_already() -> None:
    held = {"B": "held", "A": "held"}
    named = with_environment("A=given")
    got = spec.rewritten(named, "/n", read_only=True, machine=MACHINE, environment=held)
    assert got["process"]["env"] == ["PATH=/bin", "A=given", "B=held"]
    bare = config(process={"args": ["sh"]})
    got = spec.rewritten(bare, "/n", read_only=True, machine=MACHINE, environment=held)
    assert got["process"]["env"] == ["B=held", "A=held"]
    assert "env" not in spec.rewritten(bare, "/n", read_only=True, machine=MACHINE)["process"]


def test_a_read_only_root_stays_read_only() -> None:
    got = spec.rewritten(
        config(root={"path": "r", "readonly": True}), "/n", read_only=False, machine=MACHINE
    )
    assert got["root"]["readonly"] is True


def test_nothing_under_a_read_only_root_is_written_and_executed() -> None:
    mounts = [{"destination": "/dev", "options": ["nosuid"]}, {"destination": "/proc"}]
    asked = config(mounts=mounts)
    got = spec.rewritten(asked, "/n", read_only=True, machine=MACHINE)["mounts"]
    assert got == [{"destination": "/dev", "options": ["nosuid", "noexec"]}, mounts[1]]
    assert spec.rewritten(asked, "/n", read_only=False, machine=MACHINE)["mounts"] == mounts


def test_no_core_leaves_the_container() -> None:
    asked = config()
    asked["process"]["rlimits"] = [
        {"type": "RLIMIT_CORE", "soft": 9, "hard": 9},
        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5},
    ]
    limits = spec.rewritten(asked, "/n", read_only=False, machine=MACHINE)["process"]["rlimits"]
    assert limits == [
        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5},
        {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
    ]


def test_without_a_filter_only_the_keyring_is_refused() -> None:
    got = spec.without_keyring(None, MACHINE)
    assert got["defaultAction"] == "SCMP_ACT_ALLOW"
    assert "SCMP_ARCH_X86" in got["architectures"]
    assert [rule["names"] for rule in got["syscalls"]] == [["add_key", "keyctl", "request_key"]]
    assert got["syscalls"][0]["action"] == "SCMP_ACT_ERRNO"


def test_a_filter_that_allows_the_keyring_no_longer_does() -> None:
    asked = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "keyctl"], "action": "SCMP_ACT_ALLOW", "args": []},
            {"names": ["add_key"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
    got = spec.without_keyring(asked, MACHINE)
    assert got["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": []}]
    assert asked["syscalls"][1] == {"names": ["add_key"], "action": "SCMP_ACT_ALLOW"}


@pytest.mark.parametrize(
    "broken",
    [
        {"annotations": [1]},
        {"annotations": {"dev.cisfs.layers": 1}},
        {"annotations": {"dev.cisfs.scratch": None}},
        {"process": 7},
        {"process": {"env": {"CISFS_LAYERS": "x"}}},
    ],
)
def test_a_configuration_of_another_shape_is_refused_with_the_place(broken: spec.Json) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        spec.wanted(config(**broken))


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        ({"process": {"env": [5, "CISFS_LAYERS=/a"]}}, r"each of process\.env is no string"),
        ({"process": {"env": ["CISFS_LAYERS=/a"], "rlimits": [5]}}, r"process\.rlimits"),
        ({"mounts": 5}, "mounts is no array"),
        ({"mounts": [{"options": [5]}]}, r"mounts\.options"),
        ({"linux": 5}, "linux is no object"),
        ({"linux": {"namespaces": [4]}}, r"linux\.namespaces"),
        ({"linux": {"seccomp": 5}}, r"linux\.seccomp"),
        ({"linux": {"seccomp": {"syscalls": [{"names": 5}]}}}, "names"),
        ({"root": None}, "root"),
        ({"root": {"path": "\ud800"}}, "no text"),
        ({"process": {"env": ["CISFS_LAYERS=/\ud800"]}}, "no text"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_with_the_place(broken: spec.Json, place: str) -> None:
    named = {**with_environment("CISFS_LAYERS=/a"), **broken}
    named.setdefault("annotations", {"dev.cisfs.layers": "/a"} if "process" not in broken else {})
    with pytest.raises(FormatError, match=place):
        spec.wanted(named)


def test_a_configuration_that_names_nothing_is_runcs_to_judge() -> None:
    assert spec.wanted(config(mounts=5, linux=5, root=None)) is None


def test_a_root_that_is_none_is_refused() -> None:
    for root in (None, {}, {"path": 1}):
        with pytest.raises(FormatError, match="root"):
            spec.root_path(config(root=root))


def test_only_a_pid_namespace_of_its_own_ends_with_its_first_process() -> None:
    assert spec.has_own_pid_namespace(config())
    shared = {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}
    assert not spec.has_own_pid_namespace(config(linux=shared))
    assert not spec.has_own_pid_namespace(config(linux={}))
