"""How `cisfs run` is written: sizes, volumes, ports, environment files, and what profiles add."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.cli import run_options
from cisfs.errors import CisfsError, EngineError
from cisfs.runtime import environment, isolation, spelling
from cisfs.runtime.isolation import CAPABILITIES
from cisfs.runtime.options import Options, Port, Tmpfs, Volume, settled, tmpfs_options
from cisfs.runtime.scratch import Kind, Scratch

# ---- values


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6m", 6 << 20),
        ("512M", 512 << 20),
        ("512mb", 512 << 20),
        ("2g", 2 << 30),
        ("7000000", 7000000),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert spelling.memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1.5g", "5m", "0", "٣g", "99999999999999t", "12x", "1g "]
)
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(EngineError, match="--memory"):
        spelling.memory(text)


def test_cpus() -> None:
    assert spelling.cpus("1.5", 2) == 1.5
    assert spelling.cpus(".5", 2) == 0.5
    for bad in ("", "0", "0.001", "2.5", "-1", "x", "1e0", "nan", "inf", "1."):
        with pytest.raises(EngineError, match="--cpus"):
            spelling.cpus(bad, 2)


def test_pids_limits() -> None:
    assert [spelling.pids_limit(text) for text in ("100", "-1", "0")] == [100, 0, 0]
    for bad in ("", "x", "-2", "1.5"):
        with pytest.raises(EngineError, match="--pids-limit"):
            spelling.pids_limit(bad)


def test_names() -> None:
    assert spelling.name("web_1.a-b") == "web_1.a-b"
    assert spelling.hostname("web-1.example") == "web-1.example"
    for bad in ("", "-a", "a/b", "a b", "ä", "x" * 129, "a\n"):
        with pytest.raises(EngineError, match="--name"):
            spelling.name(bad)
        with pytest.raises(EngineError, match="--hostname"):
            spelling.hostname(bad)


def test_volumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert spelling.volume("/a:/b") == Volume("/a", "/b")
    assert spelling.volume("/a/:/b/c/:ro") == Volume("/a", "/b/c", read_only=True)
    assert spelling.volume("./x:/b:rw") == Volume(str(tmp_path / "x"), "/b")
    assert spelling.volume("data:/b").named
    for bad in (
        "",
        "/a",
        "/a:",
        ":/b",
        "/a:b",
        "/a:/b:exec",
        "/a:/b:ro:ro",
        "/a:/",
        "/a:/../b",
        "-x:/b",
    ):
        with pytest.raises(EngineError, match="--volume"):
            spelling.volume(bad)


def test_tmpfs() -> None:
    assert spelling.tmpfs("/t") == Tmpfs("/t")
    got = spelling.tmpfs("/t:size=64m,mode=1777,exec")
    assert got == Tmpfs("/t", ("size=64m", "mode=1777", "exec"))
    assert tmpfs_options(got)[:3] == ("noexec", "nosuid", "nodev")
    for bad in ("", "t", "/", "/t:size=", "/t:lowerdir=/x", "/t:size=1,bind", "/t:mode=9"):
        with pytest.raises(EngineError, match="--tmpfs"):
            spelling.tmpfs(bad)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [Port(80)]),
        ("8080:80", [Port(80, "tcp", 8080)]),
        ("127.0.0.1:8080:80/udp", [Port(80, "udp", 8080, "127.0.0.1")]),
        ("127.0.0.1::80", [Port(80, "tcp", None, "127.0.0.1")]),
        ("[::1]:8080:80", [Port(80, "tcp", 8080, "::1")]),
        ("8000-8001:80-81", [Port(80, "tcp", 8000), Port(81, "tcp", 8001)]),
    ],
)
def test_ports(text: str, ports: list[Port]) -> None:
    assert list(spelling.ports(text)) == ports


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "65536", "80/icmp", "80-", "81-80", "1-2:3", "1:2:3:4", ":", "80:", "a:1:2"],
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(EngineError, match="--publish"):
        spelling.ports(text)


def test_capabilities() -> None:
    assert spelling.capability("--cap-add", "net_admin") == "CAP_NET_ADMIN"
    assert spelling.capability("--cap-add", "all") == "ALL"
    with pytest.raises(EngineError, match="--cap-drop 'fly'"):
        spelling.capability("--cap-drop", "fly")


def test_what_a_container_may_have() -> None:
    result = spelling.capabilities
    assert result(CAPABILITIES, (), ()) == tuple(sorted(CAPABILITIES))
    assert result(CAPABILITIES, (), ("ALL",)) == ()
    assert result(CAPABILITIES, ("CAP_CHOWN",), ("ALL",)) == ("CAP_CHOWN",)
    assert len(result(CAPABILITIES, ("ALL",), ())) == 41
    assert "CAP_CHOWN" not in result(CAPABILITIES, ("ALL",), ("CAP_CHOWN",))


def test_all_capabilities_are_those_that_there_are_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container host may itself have lost some, and runc cannot give those."""
    monkeypatch.setattr(isolation, "bounding", lambda _: ["CAP_CHOWN", "CAP_KILL"])
    asked = Options(cap_add=("ALL",), cap_drop=("CAP_KILL",))
    assert isolation.of(asked).capabilities == ("CAP_CHOWN",)
    by_name = Options(cap_add=("ALL", "CAP_SYS_TIME"))
    assert isolation.of(by_name).capabilities == ("CAP_CHOWN", "CAP_KILL", "CAP_SYS_TIME")
    assert isolation.of(Options()).capabilities == tuple(sorted(CAPABILITIES))


def test_a_bounding_set_is_read_as_proc_has_it() -> None:
    status = {"Name": "x", "CapEff": "0000000000000001", "CapBnd": "0000010000000021"}
    assert spelling.bounding(status) == ["CAP_CHOWN", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"]


# ---- environment


def test_env_options() -> None:
    own = {"HERE": "value", "A": "own"}
    assert environment.assemble([], ["A=1", "B=", "A=x=y", "HERE"], own) == {
        "A": "x=y",
        "B": "",
        "HERE": "value",
    }
    for bad in ("", "NAME", "=value"):
        with pytest.raises(EngineError, match="NAME=VALUE"):
            environment.assemble([], [bad], own)


def test_env_files(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbfA=1\r\n# no\n\n  B='q' # kept \nHERE\nNOT_HERE\nC=x=y")
    got = environment.assemble([file], ["A=2"], {"HERE": "value"})
    assert got == {"A": "2", "B": "'q' # kept ", "HERE": "value", "C": "x=y"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"=x\n", "line 1"),
        (b"A=1\nB C=1\n", "line 2"),
        (b"A=\xff\n", "UTF-8"),
        (b"a" * 1048577, "too long"),
    ],
)
def test_env_files_that_will_not_do(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "env"
    file.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        environment.assemble([file], [], {})
    with pytest.raises(EngineError, match="missing: No such file"):
        environment.assemble([tmp_path / "missing"], [], {})


def test_what_is_meant_for_cisfs_is_taken_out() -> None:
    meant = {"CISFS_LAYERS": " top, ,/b ", "CISFS_SCRATCH": "none", "CISFS_FETCH_TIMEOUT": " 5"}
    got = environment.split({"A": "1", **meant})
    assert got == environment.Split({"A": "1"}, ("top", "/b"), "none", "5")
    assert environment.split({"A": "1"}) == environment.Split({"A": "1"}, (), None)


# ---- profiles


def test_the_default_profile() -> None:
    got = settled(Options())
    assert got.scratch == Scratch(Kind.EPHEMERAL)
    assert (got.pids_limit, got.memory, got.network, got.read_only) == (4096, None, None, False)
    assert settled(Options(pids_limit=0)).pids_limit == 0


def test_the_strict_profile() -> None:
    got = settled(Options(profile="strict"))
    assert got.cap_drop == ("ALL",)
    assert got.scratch == Scratch(Kind.NONE)
    assert got.read_only
    assert (got.memory, got.pids_limit, got.network) == (512 << 20, 512, "none")
    assert {one.target for one in got.tmpfs} == {"/run", "/tmp", "/var/tmp"}


def test_what_is_said_goes_before_the_strict_profile() -> None:
    own = (Tmpfs("/tmp", ("size=1g",)),)
    said = Options(
        profile="strict",
        memory=1 << 30,
        pids_limit=7,
        network="host",
        tmpfs=own,
        volumes=(Volume("/x", "/run"),),
        scratch=Scratch(Kind.MEMORY),
        cap_add=("CAP_CHOWN",),
    )
    got = settled(said)
    assert (got.memory, got.pids_limit, got.network) == (1 << 30, 7, "host")
    assert not got.read_only
    assert [one.target for one in got.tmpfs] == ["/var/tmp", "/tmp"]
    assert got.cap_add == ("CAP_CHOWN",)


def test_read_only() -> None:
    assert settled(Options(read_only=True)).scratch == Scratch(Kind.NONE)
    assert settled(Options(scratch=Scratch(Kind.NONE))).read_only
    with pytest.raises(EngineError, match="contradict"):
        settled(Options(read_only=True, scratch=Scratch(Kind.MEMORY)))


# ---- the command line


def parsed(*words: str) -> Options:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    run_options.add_arguments(parser)
    return run_options.options(parser.parse_args(words))


def test_an_image_and_a_command() -> None:
    got = parsed(
        "-it", "--rm", "-e", "A=1", "-w", "/x", "-u", "1:2", "busybox", "ls", "-l", "--", "-e"
    )
    assert (got.image, got.rootfs) == ("busybox", None)
    assert got.arguments == ("ls", "-l", "--", "-e")
    assert (got.interactive, got.terminal, got.remove, got.detach) == (True, True, True, False)
    assert (got.environment, got.working_directory, got.user) == ({"A": "1"}, "/x", "1:2")
    assert parsed("--", "busybox").image == "busybox"


def test_a_root_filesystem_takes_the_place_of_the_image() -> None:
    for words in (("--rootfs", "r", "--", "ls", "-l"), ("--rootfs", "r", "ls", "-l")):
        got = parsed(*words)
        assert (got.image, got.rootfs, got.arguments) == (None, Path("r"), ("ls", "-l"))


def test_without_an_image() -> None:
    with pytest.raises(EngineError, match="no image"):
        parsed("-d")


def test_every_option_arrives() -> None:
    got = parsed(
        *("-d", "--name", "n", "--hostname", "h", "--label", "a=b", "-v", "/x:/y:ro", "--tmpfs"),
        *("/t", "--network", "host", "-p", "80", "-m", "1g", "--cpus", "0.5", "--pids-limit", "9"),
        *("--cap-add", "chown", "--cap-drop", "all", "--entrypoint", "", "--pull", "never"),
        *("--scratch", "persistent:x,size=1G", "--profile", "strict", "--layer", "a", "--layer"),
        *("b", "image"),
    )
    expected: dict[str, Any] = {
        "detach": True,
        "name": "n",
        "hostname": "h",
        "labels": {"a": "b"},
        "volumes": (Volume("/x", "/y", read_only=True),),
        "tmpfs": (Tmpfs("/t"),),
        "network": "host",
        "ports": (Port(80),),
        "memory": 1 << 30,
        "cpus": 0.5,
        "pids_limit": 9,
        "cap_add": ("CAP_CHOWN",),
        "cap_drop": ("ALL",),
        "entrypoint": "",
        "pull": "never",
        "scratch": Scratch(Kind.PERSISTENT, "x", 1 << 30),
        "profile": "strict",
        "layers": ("a", "b"),
        "image": "image",
    }
    assert got == Options(**expected)


PARSERS: list[Callable[[str], object]] = [
    spelling.volume,
    spelling.tmpfs,
    spelling.ports,
    spelling.memory,
    spelling.cpus,
    spelling.name,
    spelling.hostname,
    spelling.label,
]


@given(st.text(), st.sampled_from(PARSERS))
def test_any_text_gives_a_value_or_our_error(text: str, parse: Callable[[str], object]) -> None:
    with contextlib.suppress(CisfsError):
        parse(text)
