"""The OCI configuration, accounts, mount-table reading and engine errors: all that is pure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import EngineError
from cisfs.mount.points import parse_mountinfo
from cisfs.runtime import bundle
from cisfs.runtime.account import Account, resolve
from cisfs.runtime.bundle import Container, config, environment
from cisfs.runtime.cgroup import hierarchies
from cisfs.runtime.engine import classify
from cisfs.runtime.isolation import Isolation, Limits
from cisfs.runtime.options import PIDS_LIMIT, Tmpfs, Volume

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1::/usr/sbin:
short:x:7:8
broken:x:seven:8::/:
huge:x:99999999999:8::/:
app:x:1000:1001:App:/home/app:/bin/sh
1234:x:55:56:A numeric name:/n:
"""
GROUP = """\
root:x:0:
app:x:1001:
wheel:x:10:root,app
audio:x:29:app
broken:x:y:app
"""


def container(**changes: Any) -> Container:
    given: dict[str, Any] = {
        "identifier": "0123456789abcdef",
        "arguments": ("cat", "/secret"),
        "environment": {},
        "account": Account(0, 0, (), "/root"),
        "root": "root",
    }
    return Container(**{**given, **changes})


def made(**changes: Any) -> dict[str, Any]:
    """Return the configuration after a trip through JSON, as the engine sees it."""
    parsed = json.loads(json.dumps(config(container(**changes))))
    assert isinstance(parsed, dict)
    return parsed


# ---- configuration


def test_the_command_and_where_it_runs() -> None:
    got = made(working_directory="/srv", read_only=True)
    assert got["process"]["args"] == ["cat", "/secret"]
    assert got["process"]["cwd"] == "/srv"
    assert got["root"] == {"path": "root", "readonly": True}
    assert got["hostname"] == "0123456789ab"
    assert got["linux"]["cgroupsPath"] == "/cisfs/0123456789abcdef"


def test_a_terminal_has_its_size_from_the_start() -> None:
    assert made()["process"]["terminal"] is False
    process = made(terminal=(77, 33))["process"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"width": 77, "height": 33}


def test_every_namespace_is_new() -> None:
    """A path would join somebody else's; a missing one would share the host's."""
    namespaces = made()["linux"]["namespaces"]
    assert all(set(one) == {"type"} for one in namespaces)
    assert {one["type"] for one in namespaces} == {
        "cgroup",
        "ipc",
        "mount",
        "network",
        "pid",
        "uts",
    }


def test_no_privilege_beyond_dockers() -> None:
    process = made()["process"]
    assert process["noNewPrivileges"] is True
    for kind in ("bounding", "effective", "permitted"):
        assert len(process["capabilities"][kind]) == 14
        assert "CAP_SYS_ADMIN" not in process["capabilities"][kind]
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]


def test_another_user_starts_without_capabilities() -> None:
    got = made(account=Account(1000, 1001, (10, 29), "/home/app"))
    assert set(got["process"]["capabilities"]) == {"bounding"}
    assert got["process"]["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [10, 29]}


def test_what_the_container_may_not_see() -> None:
    linux = made()["linux"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert "/proc/sys" in linux["readonlyPaths"]
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    mounts = {mount["destination"]: mount for mount in made()["mounts"]}
    assert "ro" in mounts["/sys"]["options"]
    assert "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert all("nosuid" in mount["options"] for mount in mounts.values())


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        ("x86_64", ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        ("aarch64", ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        ("riscv64", []),
    ],
)
def test_the_kernel_keyring_is_out_of_reach(machine: str, names: list[str]) -> None:
    for capabilities in ((), Isolation().capabilities, ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")):
        isolation = Isolation(capabilities=capabilities)
        seccomp = made(machine=machine, isolation=isolation)["linux"]["seccomp"]
        assert seccomp["architectures"] == names
        assert (seccomp["defaultAction"], seccomp["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
        assert not {"add_key", "keyctl", "request_key"} & allowed(seccomp)


def allowed(seccomp: dict[str, Any]) -> set[str]:
    """The calls that are allowed whatever their arguments."""
    rules = [rule for rule in seccomp["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    return {name for rule in rules if "args" not in rule for name in rule["names"]}


def test_calls_that_come_with_a_capability() -> None:
    bare = made(isolation=Isolation(capabilities=()))["linux"]["seccomp"]
    assert "chroot" not in allowed(bare)
    assert "chroot" in allowed(made()["linux"]["seccomp"])
    assert not {"mount", "setns", "unshare", "clone", "bpf"} & allowed(made()["linux"]["seccomp"])
    admin = made(isolation=Isolation(capabilities=("CAP_SYS_ADMIN",)))["linux"]["seccomp"]
    assert {"mount", "setns", "unshare", "clone", "clone3"} <= allowed(admin)


def test_no_call_makes_a_namespace() -> None:
    """clone(2) with any namespace flag, and clone3(2), whose flags no filter can see."""
    rules = {tuple(rule["names"]): rule for rule in made()["linux"]["seccomp"]["syscalls"]}
    (condition,) = rules["clone",]["args"]
    flags = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
    assert condition == {"index": 0, "value": flags, "op": "SCMP_CMP_MASKED_EQ"}
    assert (rules["clone3",]["action"], rules["clone3",]["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_no_core_dump_leaves_the_container() -> None:
    isolation = Isolation(limits=Limits(open_files=512))
    limits = {limit["type"]: limit for limit in made(isolation=isolation)["process"]["rlimits"]}
    assert limits["RLIMIT_CORE"] == {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}
    assert limits["RLIMIT_NOFILE"] == {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}


def resources(limits: Limits) -> dict[str, Any]:
    found = made(isolation=Isolation(limits=limits))["linux"]["resources"]
    assert isinstance(found, dict)
    return found


def test_limits() -> None:
    assert resources(Limits())["pids"] == {"limit": PIDS_LIMIT}
    assert set(resources(Limits(pids=None))) == {"devices"}
    assert resources(Limits(memory=1 << 29))["memory"] == {"limit": 1 << 29}
    got = resources(Limits(memory=1 << 29, swap=False, cpus=1.5))
    assert got["memory"] == {"limit": 1 << 29, "swap": 1 << 29}
    assert got["cpu"] == {"period": 100_000, "quota": 150_000}


def test_a_shared_network() -> None:
    linux = made(isolation=Isolation(host_network=True))["linux"]
    assert "network" not in {one["type"] for one in linux["namespaces"]}


def mounts(isolation: Isolation) -> list[tuple[str, str, list[str]]]:
    found = made(isolation=isolation)["mounts"]
    return [(mount["destination"], mount["type"], mount["options"]) for mount in found]


def test_mounts_that_were_asked_for() -> None:
    """Outer ones first: a later mount would hide what is below it."""
    volumes = (Volume("/host/a/b", "/a/b", read_only=True), Volume("/host/a", "/a"))
    got = mounts(Isolation(volumes=volumes, tmpfs=(Tmpfs("/a/b/c", ("size=1m",)),)))[-3:]
    assert got == [
        ("/a", "bind", ["rbind", "rprivate", "rw"]),
        ("/a/b", "bind", ["rbind", "rprivate", "ro", "rro"]),
        ("/a/b/c", "tmpfs", ["noexec", "nosuid", "nodev", "size=1m"]),
    ]


def test_nothing_that_can_be_written_executes_when_strict() -> None:
    """Whatever was asked for: the last option counts."""
    isolation = Isolation(
        strict=True, volumes=(Volume("/v", "/v"),), tmpfs=(Tmpfs("/t", ("exec", "suid", "dev")),)
    )
    for target, kind, options in mounts(isolation):
        wanted = {"noexec": "exec", "nosuid": "suid", "nodev": "dev"}
        if target in ("/dev", "/dev/pts"):
            del wanted["nodev"]  # that is where devices are
        for good, bad in wanted.items():
            assert good in options, target
            assert bad not in options[options.index(good, -6 if kind == "tmpfs" else 0) :][3:]
            assert kind != "bind" or f"r{good}" in options


def test_text_that_json_cannot_carry() -> None:
    for changes in (
        {"arguments": ("echo", "\udcff")},
        {"working_directory": "/\udcff"},
        {"environment": {"A": "\udcff"}},
        {"isolation": Isolation(volumes=(Volume("/\udcff", "/x"),))},
    ):
        with pytest.raises(EngineError, match="not UTF-8"):
            config(container(**changes))


# ---- environment


def test_environment_has_dockers_defaults() -> None:
    assert environment(container()) == {
        "PATH": bundle.DEFAULT_PATH,
        "HOSTNAME": "0123456789ab",
        "HOME": "/root",
    }
    assert environment(container(terminal=(80, 24)))["TERM"] == "xterm"


def test_the_users_settings_win() -> None:
    got = environment(
        container(terminal=(80, 24), environment={"PATH": "/b", "TERM": "", "X": "="})
    )
    assert (got["PATH"], got["TERM"], got["X"]) == ("/b", "", "=")
    assert "X==" in made(environment={"X": "="})["process"]["env"]


# ---- accounts


@pytest.mark.parametrize(
    ("user", "account"),
    [
        (None, Account(0, 0, (10,), "/root")),
        ("root", Account(0, 0, (10,), "/root")),
        ("app", Account(1000, 1001, (10, 29), "/home/app")),
        ("1000", Account(1000, 1001, (10, 29), "/home/app")),
        ("app:wheel", Account(1000, 10, (), "/home/app")),
        ("app:4321", Account(1000, 4321, (), "/home/app")),
        ("4242", Account(4242, 0, (), "/")),
        ("4242:app", Account(4242, 1001, (), "/")),
        ("short", Account(7, 8, (), "/")),
        ("1234", Account(55, 56, (), "/n")),  # a name goes before a number
        ("4294967294", Account(4294967294, 0, (), "/")),
    ],
)
def test_users(user: str | None, account: Account) -> None:
    assert resolve(user, PASSWD, GROUP) == account


@pytest.mark.parametrize("user", ["nobody", "app:nogroup", "4294967295", "1:4294967295", "broken"])
def test_users_there_are_not(user: str) -> None:
    with pytest.raises(EngineError, match="--user"):
        resolve(user, PASSWD, GROUP)


@pytest.mark.parametrize("user", ["", ":", ":0", "app:"])
def test_users_that_are_not_written_right(user: str) -> None:
    with pytest.raises(EngineError, match="NAME or UID"):
        resolve(user, PASSWD, GROUP)


def test_a_container_without_accounts() -> None:
    assert resolve(None, "", "") == Account(0, 0, (), "/")
    assert resolve("12:34", "", "") == Account(12, 34, (), "/")


@given(user=st.none() | st.text(), passwd=st.text(), group=st.text())
def test_any_text_gives_an_account_or_our_error(user: str | None, passwd: str, group: str) -> None:
    try:
        account = resolve(user, passwd, group)
    except EngineError:
        return
    assert 0 <= account.uid < 1 << 32
    assert 0 <= account.gid < 1 << 32


# ---- control groups


def test_mount_tables() -> None:
    text = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 30 0:27 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
    assert [(str(top), options) for top, options in hierarchies(parse_mountinfo(text))] == [
        ("/sys/fs/cgroup/pids", frozenset({"rw", "pids"})),
        ("/sys/fs/cgroup/unified", frozenset({"rw"})),
    ]


# ---- what runc says

START = "runc run failed: unable to start container process: "


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (START + 'exec: "nope": executable file not found in $PATH', 127),
        (START + 'exec: "/nope": stat /nope: no such file or directory', 127),
        (START + 'exec: "/bin": permission denied', 126),
        (START + 'exec: "/bin": is a directory', 126),
        ("runc run failed: JSON specification file config.json not found", 125),
        (START + "mkdir /sys/fs/cgroup/pids/cisfs: permission denied", 125),
        ("open /x: no such file or directory", 125),
    ],
)
def test_engine_errors(message: str, code: int) -> None:
    lines = [
        {"level": "warning", "msg": "something else"},
        {"level": "error", "msg": message, "time": "2026-01-01T00:00:00Z"},
    ]
    refusal = classify("\n".join(map(json.dumps, lines)), 1)
    assert refusal.exit_code == code
    assert message.removeprefix("runc run failed: ") in refusal.message
    assert "\n" not in refusal.message


@pytest.mark.parametrize(
    "log", ["", "not json\n", "[]\n", '{"level": "error"}', '{"level": "info"}']
)
def test_an_engine_that_says_nothing(log: str) -> None:
    refusal = classify(log, 3)
    assert refusal.exit_code == 125
    assert "status 3" in refusal.message


@given(st.text())
def test_any_log_is_classified(log: str) -> None:
    assert classify(log, 1).exit_code in (125, 126, 127)
