"""What engines are told, how images are named, and what else of `cisfs run` is pure."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from docker import APIClient
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import BaseMismatchError, EngineError, NotAVaultError, UsageError
from cisfs.layer.rebase import rebase
from cisfs.runtime.ending import stop_signal
from cisfs.runtime.engines import bases, choose, docker, docker_settings, names, podman
from cisfs.runtime.engines.keys import Loan
from cisfs.runtime.images import config, layout, reference, tools
from cisfs.runtime.images.config import ImageConfig, arguments
from cisfs.runtime.options import Options, Port, Tmpfs, Volume, settled
from cisfs.runtime.output import Log, read
from cisfs.runtime.scratch import Kind, Scratch
from tests.system import oci
from tests.unit import layers
from tests.unit.vaults import KEY

# ---- names of images


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:/a:tag", "oci:/a:tag"),
        ("docker-archive:/a.tar", "docker-archive:/a.tar"),
        ("docker://alpine", "docker://alpine"),
        ("alpine:3.20", "docker://alpine:3.20"),
        ("localhost:5000/a/b@sha256:" + "0" * 64, "docker://localhost:5000/a/b@sha256:" + "0" * 64),
        ("docker-daemon:web", "docker-daemon:web:latest"),
        ("docker-daemon:h:5000/web:1", "docker-daemon:h:5000/web:1"),
        ("docker-daemon:sha256:" + "a" * 64, "docker-daemon:sha256:" + "a" * 64),
    ],
)
def test_names_of_images(text: str, expected: str) -> None:
    assert str(reference.parse(text)) == expected


def test_paths_of_images_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(reference.parse("oci:layout:x")) == f"oci:{tmp_path}/layout:x"


@pytest.mark.parametrize(
    "text", ["", "oci:", "oci::x", "oci:a:", "docker://", "--help", "a b", "a\0", "docker://a//b"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(EngineError, match="image"):
        reference.parse(text)


@given(st.text())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = reference.parse(text)
    except EngineError:
        return
    assert not str(found).startswith("-")


# ---- configurations of images


def test_a_configuration() -> None:
    got = config.parse(
        b'{"os": "linux", "architecture": "amd64", "config": {"Env": ["A=1", "B="], "Cmd": ["c"],'
        b' "Entrypoint": null, "WorkingDir": "/w", "User": "u", "StopSignal": "SIGQUIT",'
        b' "ExposedPorts": {"80/tcp": {}}}}',
        "x",
    )
    assert got == ImageConfig(
        environment={"A": "1", "B": ""},
        command=("c",),
        working_directory="/w",
        user="u",
        stop_signal="SIGQUIT",
        exposed_ports=("80/tcp",),
        platform="linux/amd64",
        diff_ids=(),
    )
    assert config.parse(b'{"config": null}', "x").command == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"config": {"Env": "A=1"}}',
        b'{"config": {"User": 5}}',
        b'{"config": 1}',
        b"[" * 100_000,
    ],
)
def test_configurations_that_are_malformed(data: bytes) -> None:
    with pytest.raises(EngineError, match="image x: its configuration is malformed"):
        config.parse(data, "x")


@given(st.binary())
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    try:
        config.parse(data, "x")
    except EngineError:
        return


def test_platforms() -> None:
    for machine, platform in (("x86_64", "linux/amd64"), ("x86_64", "linux/386")):
        config.check_platform(ImageConfig(platform=platform), machine, "x")
    for platform in ("linux/arm64", "windows/amd64", "", "/"):
        with pytest.raises(EngineError, match="image x is for"):
            config.check_platform(ImageConfig(platform=platform), "x86_64", "x")


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, [], ["e", "f", "c"]),
        (None, ["x"], ["e", "f", "x"]),
        ("y", [], ["y"]),
        ("y", ["x"], ["y", "x"]),
        ("", ["x"], ["x"]),
        ("", [], []),
    ],
)
def test_entry_point_and_command(
    entrypoint: str | None, command: list[str], expected: list[str]
) -> None:
    image = ImageConfig(entrypoint=("e", "f"), command=("c",))
    assert list(arguments(image, entrypoint, command)) == expected


def test_a_layout_whose_content_is_not_what_its_name_says(tmp_path: Path) -> None:
    digest = oci.write_layout(tmp_path, "x", [oci.Tree()])
    assert layout.read(tmp_path, "x").digest == digest
    blob = tmp_path / "blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(EngineError, match=r"image x: not a well-formed image .*another digest"):
        layout.read(tmp_path, "x")


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"manifests": []}',
        b'{"manifests": [{"digest": "sha256:../../x"}]}',
        b"[" * 100_000,
    ],
)
def test_layouts_that_are_malformed(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(EngineError, match="image x: not a well-formed image"):
        layout.read(tmp_path, "x")


def test_what_skopeo_and_umoci_say() -> None:
    complaint = 'first\ntime="2026-01-01T00:00:00Z" level=fatal msg="no \\"such\\" image"\n'
    assert tools.in_words(complaint) == 'no "such" image'
    assert tools.in_words("  plain  words \n\n") == "plain words"
    assert "did not say" in tools.in_words("\n")


@pytest.mark.parametrize(
    ("source", "host", "verify", "expected"),
    [
        ("docker://127.0.0.1:5000/a:1", "", "", ["--src-tls-verify=false"]),
        ("docker://localhost/a:1", "", "", ["--src-tls-verify=false"]),
        ("docker://localhost:1", "", "", []),  # a repository of Docker Hub
        ("docker://registry.example/a:1", "unix:///d", "", []),
        ("oci:/a:1", "unix:///d", "", []),
        ("docker-daemon:a:1", "", "", []),
        ("docker-daemon:a:1", "unix:///d", "", ["--src-daemon-host=unix:///d"]),
        ("docker-daemon:a:1", "tcp://d:1", "", ["--src-daemon-host=http://d:1"]),
        (
            "docker-daemon:a:1",
            "tcp://d:1",
            "1",
            ["--src-daemon-host=tcp://d:1", "--src-cert-dir=C"],
        ),
    ],
)
def test_where_skopeo_is_told_to_look(
    source: str,
    host: str,
    verify: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "skopeo"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"HOST": host, "TLS_VERIFY": verify, "CERT_PATH": "C"}.items():
        monkeypatch.setenv(f"DOCKER_{name}", value)
    tools.copy(source, tmp_path / "layout", "x")
    words = (tmp_path / "words").read_text().splitlines()
    given = [each for each in words if each.startswith("--src-")]
    assert (given, words[-2:]) == (expected, [source, f"oci:{tmp_path}/layout:x"])


# ---- what engines are told

FULL = Options(
    image="docker-daemon:web:1",
    arguments=("a", "-b"),
    interactive=True,
    terminal=True,
    detach=True,
    remove=True,
    name="n",
    hostname="h",
    user="1:2",
    working_directory="/w",
    entrypoint="e",
    environment={"A": "1"},
    labels={"l": "m"},
    volumes=(Volume("/s", "/d", read_only=True), Volume("named", "/n")),
    tmpfs=(Tmpfs("/t", ("size=1m",)),),
    ports=(
        Port(80),
        Port(80, "udp", 8080),
        Port(81, "tcp", None, "127.0.0.1"),
        Port(82, "tcp", 9, "::1"),
    ),
    memory=1 << 26,
    cpus=1.5,
    cap_add=("CAP_CHOWN",),
    cap_drop=("ALL",),
)


def test_podman_is_told_everything() -> None:
    got = podman.command(settled(FULL), "/r", {"CISFS_LAYERS": "/l"}, "/e")
    assert got == [
        *("--runtime", "/r", "run", "--security-opt", "no-new-privileges"),
        *("--network=slirp4netns", "--pids-limit=4096", "--pull=missing", "--interactive", "--tty"),
        *("--detach", "--rm", "--name=n", "--hostname=h", "--user=1:2", "--workdir=/w"),
        *("--memory=67108864b", "--memory-swap=67108864b", "--cpus=1.5", "--entrypoint=e"),
        *("--env-file=/e", "--annotation=dev.cisfs.layers=/l", "--label=l=m", "--cap-drop=ALL"),
        *("--cap-add=CAP_CHOWN", "--tmpfs=/t:noexec,nosuid,nodev,size=1m", "--volume=/s:/d:ro"),
        *("--volume=named:/n:rw", "--publish=80/tcp", "--publish=8080:80/udp"),
        *("--publish=127.0.0.1::81/tcp", "--publish=[::1]:9:82/tcp", "--", "web:1", "a", "-b"),
    ]


def test_podman_under_strict() -> None:
    strict = settled(Options(image="x", profile="strict", volumes=(Volume("/s", "/d"),)))
    got = podman.command(strict, "/r", {}, "/e")
    assert {"--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL"} <= {*got}
    assert {"--pids-limit=512", f"--memory={512 << 20}b"} <= {*got}
    assert "--volume=/s:/d:rw,noexec,nosuid,nodev" in got


def test_docker_is_told_everything() -> None:
    got = docker_settings.of_host(settled(FULL))
    assert got == {
        "runtime": "cisfs",
        "security_opt": ["no-new-privileges"],
        "pids_limit": 4096,
        "binds": ["/s:/d:ro", "named:/n:rw"],
        "tmpfs": {"/t": "noexec,nosuid,nodev,size=1m"},
        "port_bindings": {
            "80/tcp": [("", None)],
            "80/udp": [("", 8080)],
            "81/tcp": [("127.0.0.1", None)],
            "82/tcp": [("::1", 9)],
        },
        "mem_limit": 1 << 26,
        "memswap_limit": 1 << 26,
        "nano_cpus": 1_500_000_000,
        "read_only": False,
        "cap_add": ["CAP_CHOWN"],
        "cap_drop": ["ALL"],
        "auto_remove": True,
    }
    assert docker_settings.of_host(settled(replace(FULL, pids_limit=0)))["pids_limit"] == -1


def test_layers_and_scratch_for_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.cis").touch()
    told = names.variables(Options(image="x", layers=("a.cis", str(tmp_path / "a.cis"))))
    assert told == {"CISFS_LAYERS": f"{tmp_path}/a.cis,{tmp_path}/a.cis"}
    assert names.variables(Options(image="x", read_only=True)) == {"CISFS_SCRATCH": "none"}
    kept = Options(image="x", scratch=Scratch(Kind.PERSISTENT, "p"))
    assert names.variables(kept) == {"CISFS_SCRATCH": "persistent:p"}
    soon = Options(image="x", fetch_patience=0.5)
    assert names.variables(soon) == {"CISFS_FETCH_TIMEOUT": "0.5"}
    assert names.variables(Options(image="x")) == {}
    (tmp_path / "a,b").touch()
    for named, error in (
        (("./missing",), EngineError),
        (("a,b",), EngineError),
        (("no-such-name",), NotAVaultError),
    ):
        with pytest.raises(error):
            names.variables(Options(image="x", layers=named))
    with pytest.raises(UsageError):
        names.places(Options(image="x", environment={"CISFS_LAYERS": "a/b"}))


def test_images_that_an_engine_cannot_have() -> None:
    for image in ("oci:/x", "docker-archive:/x"):
        with pytest.raises(EngineError, match="load it into docker"):
            names.image_name(Options(image=image), "docker")
    with pytest.raises(EngineError, match="takes an image"):
        names.image_name(Options(rootfs=Path("/")), "docker")
    assert names.image_name(Options(image="docker://a/b:1"), "docker") == "a/b:1"


@pytest.mark.parametrize("named", ["by option", "by variable", "by image"])
def test_a_layer_that_is_bound_goes_on_its_base_only(tmp_path: Path, named: str) -> None:
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(layers.UNIT))
    variable = {"CISFS_LAYERS": str(path)}
    options = {
        "by option": Options(image="x", layers=(str(path),)),
        "by variable": Options(image="x", environment=variable),
        "by image": Options(image="x"),
    }[named]
    own = variable if named == "by image" else {"CISFS_LAYERS": "of/no/concern"}
    base = bases.EngineImage(own, ["sha256:a", "sha256:b"])
    bases.check(options, base)  # it is bound to nothing
    rebase(path, KEY, [*base.diff_ids])
    bases.check(options, base)
    with pytest.raises(BaseMismatchError, match="another base than the 1 layers"):
        bases.check(options, replace(base, diff_ids=["sha256:a"]))
    bases.check(Options(image="x", environment={"CISFS_LAYERS": ""}), replace(base, diff_ids=[]))


def test_what_engines_say_of_images() -> None:
    said = {"Config": {"Env": ["A=1"]}, "RootFS": {"Type": "layers", "Layers": ["sha256:a"]}}
    assert bases.EngineImage.parse(said, "x") == bases.EngineImage({"A": "1"}, ["sha256:a"])
    empty = bases.EngineImage({}, [])
    assert bases.EngineImage.parse({"Config": None, "RootFS": {"Layers": None}}, "x") == empty
    for bad in ({"Config": 5}, {"Config": {"Env": [5]}}, {"RootFS": {"Layers": 5}}):
        with pytest.raises(EngineError, match="image x: the engine describes it"):
            bases.EngineImage.parse(bad, "x")


def test_auto_is_embedded_for_what_has_to_be_unpacked() -> None:
    for image in ("oci:/x", "docker-archive:/x", "docker://x"):
        assert choose.choose("auto", Options(image=image)) == choose.EMBEDDED
    assert choose.choose("auto", Options(rootfs=Path("/"))) == choose.EMBEDDED
    assert choose.choose("podman", Options(image="oci:/x")) == choose.PODMAN


def test_auto_without_any_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert choose.choose("auto", Options(image="x")) == choose.EMBEDDED
    with pytest.raises(EngineError, match=r"none\.sock: start it"):
        docker.run(Options(image="x"), Loan({}))
    with pytest.raises(EngineError, match="apt install podman"):
        podman.run(Options(image="x"), Loan({}))


def test_a_daemon_that_takes_its_time_to_save_an_image_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = f"{tmp_path}/docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(where)
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                time.sleep(0.2)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntar")

        client = APIClient(f"unix://{where}", version="1.41", timeout=0.1)  # type: ignore[arg-type]
        monkeypatch.setattr(docker, "_connect", lambda: client)
        daemon = threading.Thread(target=answer)
        daemon.start()
        try:
            assert b"".join(docker.saved("app")) == b"tar"
        finally:
            daemon.join()


# ---- the end, and the output


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (None, signal.SIGTERM),
        ("SIGQUIT", signal.SIGQUIT),
        ("int", signal.SIGINT),
        ("3", signal.SIGQUIT),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMIN", signal.SIGRTMIN),
        ("SIGNONE", signal.SIGTERM),
        ("_DFL", signal.SIGTERM),
        ("999", signal.SIGTERM),
        ("", signal.SIGTERM),
    ],
)
def test_stop_signals(name: str | None, number: int) -> None:
    assert stop_signal(name) == number


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_a_log_keeps_the_latest(pieces: list[bytes]) -> None:
    log = Log(part=64)
    for piece in pieces:
        log.append(piece)
    everything = b"".join(pieces)
    kept = b"".join(read(os.getpid(), log.parts))
    for part in log.parts:
        os.close(part)
    assert everything.endswith(kept)
    assert len(kept) >= min(64, len(everything))
    assert len(kept) <= 128


def test_a_log_is_followed_over_a_turn() -> None:
    log = Log(part=10)
    log.append(b"12345")
    more = iter([b"67", b"890abcdefghij", b"k"])

    def goes_on() -> bool:
        piece = next(more, None)
        if piece is not None:
            log.append(piece)
        return piece is not None

    assert b"".join(read(os.getpid(), log.parts, goes_on)) == b"1234567890abcdefghijk"
    for part in log.parts:
        os.close(part)
