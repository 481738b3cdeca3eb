"""`cisfs seal` up to the work: arguments, the checks of source and output, whose key it is."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cisfs.build import request
from cisfs.build.interrupts import Interrupted
from cisfs.build.request import Kind, Request
from cisfs.build.seal import Sealed
from cisfs.cli import arguments, seal
from cisfs.cli.main import main
from cisfs.errors import NoFuseError, UsageError
from cisfs.keys.credentials import Credential, Opener, RawKey, Recipients
from cisfs.layer.sealing import DEFAULT_UNIT_SIZE
from tests.unit import vaults

SEALED = Sealed("sha256:00ff", 7, 1000, 8192, 143360, 1.23456)


def superblock(size: int = 8192, devices: int = 0) -> bytes:
    """The beginning of an EROFS image of `size` bytes, in blocks of 4096."""
    fields = struct.pack("<I8xB3xQ12xI46xH", 0xE0F5E1E2, 12, 3, size // 4096, devices)
    return (bytes(1024) + fields).ljust(4096, b"\0")


@pytest.fixture(autouse=True)
def mkfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for mkfs.erofs, first on PATH, and a usable FUSE."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "mkfs.erofs"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr("cisfs.mount.points.require_fuse", lambda: None)
    return program


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.mark.parametrize("text", ["docker://registry/app:1", "public", "oci:", "oci::x", "oci:x:"])
def test_a_layout_is_named_as_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"--public .*: write it as oci:DIRECTORY\[:NAME\]"):
        arguments.oci_layout("--public", text)
    assert arguments.oci_layout("--base", "oci:a/b:c") == (Path("a/b"), "c")
    assert arguments.oci_layout("--base", "oci:a") == (Path("a"), None)


@pytest.mark.parametrize("words", [["seal", "oci:x", "--top", "1", "-o", "l.cis"], ["load", "tar"]])
def test_a_public_image_goes_to_a_layout_only(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--public", "docker://registry/app:1"]) == 2
    assert not (tmp_path / "docker").exists()


def check(
    source: Path | str, output: Path, *, force: bool = False, compression: str = "none"
) -> Request:
    return request.check(
        source=str(source),
        output=output,
        unit_size=65536,
        compression=compression,
        max_size=1 << 30,
        devices=False,
        workers=None,
        force=force,
    )


# -- arguments -----------------------------------------------------------------------------


def test_sizes_are_read_in_all_their_spellings() -> None:
    assert [arguments.size(text) for text in ("1", "16384", "16k", "3M", "64G", "2T")] == [
        1,
        16384,
        16384,
        3 << 20,
        64 << 30,
        2 << 40,
    ]
    assert arguments.unit_size("64K") == 65536


@pytest.mark.parametrize("text", ["", "0", "K", "-1", "1.5G", "4KB", "٤", "1e9", "0G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.size(text)


@pytest.mark.parametrize("text", ["none", "lz4", "lz4hc", "lz4hc,1", "lz4hc,12"])
def test_compression_has_a_kind_and_perhaps_a_level(text: str) -> None:
    assert seal._compression(text) == text


WRONG = [
    [],
    ["source"],
    ["-o", "x.cis"],
    ["source", "-o", "x.cis", "--compression", "zstd"],
    ["source", "-o", "x.cis", "--compression", "lz4,1"],
    ["source", "-o", "x.cis", "--compression", "lz4hc,0"],
    ["source", "-o", "x.cis", "--compression", "lz4hc,13"],
    ["source", "-o", "x.cis", "--compression", "lz4hc,1 --all"],
    ["source", "-o", "x.cis", "--unit-size", "2M"],
    ["source", "-o", "x.cis", "--max-size", "0"],
    ["source", "-o", "x.cis", "--workers", "0"],
    ["source", "-o", "x.cis", "--workers", "257"],
    ["source", "-o", "x.cis", "--json", "--quiet"],
    ["source", "-o", "x.cis", "--key-file", "a", "--passphrase-file", "b"],
    ["source", "-o", "x.cis", "--source-key-file", "a", "--source-passphrase-file", "b"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_use_is_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["seal", *words])
    assert ended.value.code == 2


def test_the_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["seal", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"default: {DEFAULT_UNIT_SIZE >> 10}K" in text
    assert f"default: {seal.DEFAULT_MAX_SIZE >> 30}G" in text
    assert ".LAYER.XXXXXXXX.scratch" in text


# -- sources -------------------------------------------------------------------------------


def test_each_kind_of_source_is_told_by_what_it_is(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "x.cis"
    image, tar, vault = tmp_path / "image", tmp_path / "tar", tmp_path / "vault"
    image.write_bytes(superblock())
    tar.write_bytes(bytes(10240))
    vaults.make(vault)
    (source / "vault.json").write_text("{}")  # of some other program
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "way").symlink_to(tmp_path / "pipe")
    for path, kind in (
        (source, Kind.DIRECTORY),
        (vault, Kind.VAULT),
        (tar, Kind.TAR),
        (tmp_path / "pipe", Kind.TAR),
        (tmp_path / "way", Kind.TAR),  # bash's <(...) is a symlink to what has no path
        (image, Kind.IMAGE),
    ):
        found = check(path, output)
        assert (found.kind, found.source, found.label) == (kind, path, str(path))


def test_standard_input_is_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.isatty", lambda _fd: False)
    found = check("-", tmp_path / "x.cis")
    assert (found.kind, found.source, found.label) == (Kind.TAR, None, "standard input")
    monkeypatch.setattr("os.isatty", lambda _fd: True)
    with pytest.raises(UsageError, match="terminal"):
        check("-", tmp_path / "x.cis")


def test_paths_are_absolute_and_free_of_symlinks(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "place").mkdir()
    (tmp_path / "way").symlink_to("place")
    monkeypatch.chdir(tmp_path)
    found = check("link", Path("way/x.cis"))
    assert (found.source, found.output) == (source, tmp_path / "place/x.cis")


def test_only_compression_takes_mkfs_and_fuse(
    tmp_path: Path, source: Path, mkfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise NoFuseError("no /dev/fuse")

    (tmp_path / "image").write_bytes(superblock())
    output = tmp_path / "x.cis"
    assert check(source, output, compression="lz4").mkfs == str(mkfs)
    monkeypatch.setattr("cisfs.mount.points.require_fuse", missing)
    with pytest.raises(NoFuseError):
        check(source, output, compression="lz4")
    monkeypatch.setattr("cisfs.mount.points.require_fuse", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda *_words, **_options: None)
    with pytest.raises(UsageError, match="apt install erofs-utils"):
        check(source, output, compression="lz4")
    monkeypatch.setattr("cisfs.mount.points.require_fuse", missing)
    for path, compression in ((source, "none"), (tmp_path / "image", "lz4")):
        assert check(path, output, compression=compression).mkfs == ""


def test_the_standard_input_has_no_path(tmp_path: Path, source: Path) -> None:
    found = check(source, tmp_path / "x.cis")
    assert found.path == source
    with pytest.raises(ValueError, match="no path"):
        str(replace(found, source=None).path)


def test_each_unfit_source_is_refused_by_its_own_reason(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sealed").write_bytes(b"CISFSSL\0" + bytes(4096))
    for path, reason in (
        (tmp_path / "missing", "No such file"),
        (source / "x" / "y", "No such file"),
        (tmp_path / "sealed" / "x", "Not a directory"),
        (tmp_path / "sealed", "sealed layer already"),
    ):
        with pytest.raises(UsageError, match=reason):
            check(path, tmp_path / "x.cis")
    monkeypatch.setattr("stat.S_ISBLK", lambda _mode: True)
    (tmp_path / "disk").touch()
    with pytest.raises(UsageError, match="block device"):
        check(tmp_path / "disk", tmp_path / "x.cis")


# -- outputs -------------------------------------------------------------------------------


def test_each_unfit_output_is_refused_by_its_own_reason(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for output, force, reason in (
        (tmp_path, True, "is a directory"),
        (tmp_path / "missing" / "x.cis", True, "there is no directory"),
        (tmp_path / "there" / "x.cis", True, "there is no directory"),
        (tmp_path / "there", False, "--force"),
        (tmp_path / "link", False, "--force"),
        (tmp_path / "link", True, "not a regular file"),
    ):
        with pytest.raises(UsageError, match=reason):
            check(source, output, force=force)
    assert check(source, tmp_path / "there", force=True).force
    monkeypatch.setattr("os.access", lambda _path, _how: False)
    monkeypatch.setattr("os.statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(UsageError, match="mounted read-only"):
        check(source, tmp_path / "new", force=False)
    monkeypatch.setattr("os.statvfs", lambda _path: SimpleNamespace(f_flag=0))
    with pytest.raises(UsageError, match="no permission"):
        check(source, tmp_path / "x.cis")


def test_a_layer_is_not_made_in_its_source_nor_of_itself(tmp_path: Path, source: Path) -> None:
    (source / "deep" / "er").mkdir(parents=True)
    (tmp_path / "way").symlink_to(source / "deep")
    for output in (source / "x.cis", source / "deep/er/x.cis", tmp_path / "way/x.cis"):
        with pytest.raises(UsageError, match="lies inside"):
            check(source, output)
    image = tmp_path / "image"
    image.write_bytes(superblock())
    (tmp_path / "hard").hardlink_to(image)
    for output in (image, tmp_path / "hard"):
        with pytest.raises(UsageError, match="choose another name"):
            check(image, output, force=True)


# -- the command ---------------------------------------------------------------------------


class Asked:
    """Stands in for `from_options`, and remembers what was asked for."""

    def __init__(self) -> None:
        self.purposes: list[tuple[str, bool]] = []

    def __call__(
        self, args: argparse.Namespace, *, purpose: str, confirm: bool = False
    ) -> Credential:
        self.purposes.append((purpose, confirm))
        return RawKey(str(args.key_file).encode())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr("cisfs.keys.credentials.from_options", stand_in)
    return stand_in


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, Recipients, Opener | None]]:
    """What `seal` was called with, instead of doing anything."""
    calls: list[tuple[Request, Recipients, Opener | None]] = []

    def stand_in(
        wanted: Request, layer: Recipients, vault: Opener | None, _progress: object, key: object
    ) -> Sealed:
        assert key is None
        calls.append((wanted, layer, vault))
        return SEALED

    monkeypatch.setattr("cisfs.build.seal.seal", stand_in)
    return calls


def test_nobody_types_a_passphrase_in_vain(
    tmp_path: Path, source: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").touch()
    output = str(tmp_path / "x.cis")
    assert main(["seal", str(source), "-o", str(tmp_path / "there")]) == 2
    assert main(["seal", str(tmp_path / "missing"), "-o", output]) == 2
    monkeypatch.setattr("os.isatty", lambda _fd: False)
    assert main(["seal", "-", "--passphrase-file", "-", "-o", output]) == 2
    two = ["--passphrase-file", "-", "--source-passphrase-file", "-"]
    assert main(["seal", str(source), *two, "-o", output]) == 2
    monkeypatch.setattr(shutil, "which", lambda *_words, **_options: None)
    assert main(["seal", "--compression", "lz4", str(source), "-o", output]) == 2
    assert asked.purposes == []


@pytest.mark.usefixtures("given")
def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path, source: Path, asked: Asked) -> None:
    assert main(["seal", str(source), "-o", str(tmp_path / "x.cis")]) == 0
    assert asked.purposes == [(f"new passphrase for {tmp_path / 'x.cis'}", True)]


def test_the_key_of_a_vault_is_the_new_layers_unless_there_is_another(
    tmp_path: Path, asked: Asked, given: list[tuple[Request, Recipients, Opener | None]]
) -> None:
    vault, output = vaults.make(tmp_path / "vault"), tmp_path / "x.cis"
    assert main(["seal", "--key-file", "new", str(vault), "-o", str(output)]) == 0
    assert given[-1][1:] == (RawKey(b"new"), RawKey(b"new"))
    assert asked.purposes == [(f"passphrase for {vault}, and for {output} too", False)]
    keys = ["--key-file", "new", "--source-key-file", "old"]
    assert main(["seal", *keys, str(vault), "-o", str(output)]) == 0
    assert given[-1][1:] == ([RawKey(b"new")], RawKey(b"old"))


@pytest.mark.parametrize(
    "option",
    ["-i", "--source-key-file", "--source-passphrase-file", "--source-passphrase-command"],
)
def test_a_key_for_what_has_none_is_refused(
    option: str, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [option, "key", "-o", str(tmp_path / "x.cis")]
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    for each in (source, tmp_path / "x.tar"):
        assert main(["seal", str(each), *words]) == 2
        assert (
            f"is for a vault or encrypted layers of an image, and {each}" in capsys.readouterr().err
        )
    if option != "-i":
        assert main(["seal", "oci:image", "--top", "1", *words]) == 2
        assert f"{option} is for a vault; encrypted layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--rebase"], ["-i", "x"], ["--key-file", "x"], ["--passphrase-command", "x"]],
    ids=str,
)
def test_keys_of_sealed_layers_are_not_for_ocicrypt(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["registry.invalid/app:1", "--format", "ocicrypt", "--base", "oci:x", "-r", "jwe:x"]
    assert main(["push", *image, *words]) == 2
    assert "is for sealed layers, not for --format ocicrypt" in capsys.readouterr().err


def test_the_options_reach_the_work(
    tmp_path: Path,
    source: Path,
    asked: Asked,
    given: list[tuple[Request, Recipients, Opener | None]],
) -> None:
    output = ["-o", str(tmp_path / "x.cis")]
    assert main(["seal", str(source), *output]) == 0
    plain = given[-1][0]
    assert (plain.unit_size, plain.compression, plain.max_size) == (65536, "none", 64 << 30)
    assert (plain.workers, plain.devices, plain.force) == (None, False, False)
    words = ["--unit-size", "1M", "--compression", "lz4hc,3", "--max-size", "1G", "--workers", "5"]
    assert main(["seal", *words, "--allow-devices", "--force", str(source), *output]) == 0
    full = given[-1][0]
    assert (full.unit_size, full.compression, full.max_size) == (1 << 20, "lz4hc,3", 1 << 30)
    assert (full.workers, full.devices, full.force) == (5, True, True)
    assert len(asked.purposes) == 2


@pytest.mark.usefixtures("asked", "given")
def test_the_end_is_said_to_people_to_programs_or_not_at_all(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "x.cis")
    words = ["seal", str(source), "-o", output]
    assert main(words) == 0
    line = capsys.readouterr().out
    assert line == f"sealed {output}, sha256:00ff; next: cisfs mount {output} DIRECTORY\n"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": output,
        "identity": "sha256:00ff",
        "source": "directory",
        "entries": 7,
        "input_bytes": 1000,
        "image_size": 8192,
        "stored_size": 143360,
        "unit_size": 65536,
        "compression": None,
        "seconds": 1.235,
    }
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("asked")
def test_a_full_disk_is_said_in_words(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_arguments: object) -> Sealed:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cisfs.build.seal.seal", fail)
    assert main(["seal", str(source), "-o", str(tmp_path / "x.cis")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "x.cis") in said
    assert f"file system of {tmp_path} is full" in said


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_and_the_code_that_shells_give_it(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def interrupt(*_arguments: object) -> Sealed:
        raise Interrupted(number)

    monkeypatch.setattr("cisfs.build.seal.seal", interrupt)
    assert main(["seal", str(source), "-o", str(tmp_path / "x.cis")]) == 128 + number
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert number.name in said
