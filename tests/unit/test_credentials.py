"""Where a credential may come from, and what is said of each source that will not do."""

from __future__ import annotations

import argparse
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cisfs.errors import NoKeyError, UsageError
from cisfs.keys.credentials import (
    FILE_VARIABLE,
    Credential,
    Passphrase,
    RawKey,
    from_options,
)
from cisfs.keys.options import add_key_options
from cisfs.keys.private_files import MAX_SECRET_SIZE


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)


def asked(*words: str) -> Credential:
    parser = argparse.ArgumentParser()
    add_key_options(parser)
    return from_options(parser.parse_args(words), purpose="passphrase for /x")


def secret_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"words", b"words"),
        (b"words\n", b"words"),
        (b"words\r\n", b"words"),
        (b" words \nsecond line", b" words "),
        (b"w\xf6rds\0\n", b"w\xf6rds\0"),
    ],
)
def test_a_passphrase_is_the_first_line_of_its_file(
    tmp_path: Path, content: bytes, secret: bytes
) -> None:
    path = secret_file(tmp_path / "p", content)
    assert asked("--passphrase-file", str(path)) == Passphrase(secret)


def test_a_passphrase_comes_from_a_command_or_standard_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asked("--passphrase-command", "printf 'two words\\nmore'") == Passphrase(b"two words")
    standard_input(monkeypatch, b"typed\nmore")
    assert asked("--passphrase-file", "-") == Passphrase(b"typed")


def test_the_environment_names_a_file_and_options_go_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(secret_file(tmp_path / "e", b"from the environment")))
    assert asked() == Passphrase(b"from the environment")
    key = secret_file(tmp_path / "k", b"k" * 32)
    assert asked("--key-file", str(key)) == RawKey(b"k" * 32)
    assert asked("--passphrase-command", "echo c") == Passphrase(b"c")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"^cannot read passphrase file .*gone: No such file"):
        asked()


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\nsecond"])
def test_an_empty_passphrase_is_refused(tmp_path: Path, content: bytes) -> None:
    path = secret_file(tmp_path / "p", content)
    with pytest.raises(UsageError, match=r"^no passphrase: the first line of the .* is empty$"):
        asked("--passphrase-file", str(path))


def test_a_file_that_is_no_passphrase_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = secret_file(tmp_path / "p", b"p" * (MAX_SECRET_SIZE + 1))
    with pytest.raises(UsageError, match=f"^passphrase file {path} is too long$"):
        asked("--passphrase-file", str(path))
    with pytest.raises(UsageError, match=f"^cannot read passphrase file {tmp_path}: Is a dir"):
        asked("--passphrase-file", str(tmp_path))
    standard_input(monkeypatch, b"p" * (MAX_SECRET_SIZE + 1))
    with pytest.raises(UsageError, match="too long"):
        asked("--passphrase-file", "-")


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64, 1000])
def test_a_key_file_has_exactly_32_bytes(tmp_path: Path, size: int) -> None:
    path = secret_file(tmp_path / "k", b"\n" * size)
    with pytest.raises(UsageError, match=f"has {size} bytes instead of 32; make one with: "):
        asked("--key-file", str(path))
    secret_file(path, b"\n" * 32)
    assert asked("--key-file", str(path)) == RawKey(b"\n" * 32)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false", "the passphrase command failed with status 1"),
        ("sh -c 'kill $$'", "the passphrase command failed with status -15"),
        ("cisfs-no-such-command", "cannot run the passphrase command: .*No such file"),
        ("", "cannot run the passphrase command: "),
        ("'open", "cannot run the passphrase command: No closing quotation"),
        ("true", "no passphrase: the first line of the passphrase command's output is empty"),
    ],
)
def test_a_command_that_will_not_do_is_named(command: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        asked("--passphrase-command", command)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620, 0o601, 0o644])
def test_a_file_that_others_have_a_right_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path / "p", b"p" * 32, mode)
    with pytest.raises(UsageError, match=f"^others can read passphrase file {path}; chmod 600 it$"):
        asked("--passphrase-file", str(path))
    with pytest.raises(UsageError, match=f"^others can read key file {path}; chmod 600 it$"):
        asked("--key-file", str(path))
    path.chmod(0o600)
    assert asked("--passphrase-file", str(path)) == Passphrase(b"p" * 32)
    assert asked("--key-file", str(path)) == RawKey(b"p" * 32)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    path = secret_file(tmp_path / "p", b"p" * 32)
    os.chown(path, 12345, -1)
    for option, what in (("--passphrase-file", "passphrase file"), ("--key-file", "key file")):
        with pytest.raises(UsageError, match=f"^{what} {path} belongs to another user"):
            asked(option, str(path))


def test_what_is_no_path_is_named() -> None:
    with pytest.raises(UsageError, match=r"^cannot read passphrase file 'a.x00b'$"):
        asked("--passphrase-file", "a\0b")


def test_standard_input_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for option in ("--passphrase-file", "--key-file"):
        with pytest.raises(UsageError, match=r"standard input is closed$"):
            asked(option, "-")


def test_a_descriptor_will_do(tmp_path: Path) -> None:
    """As a shell's `3<FILE` and `<(COMMAND)` give it."""
    with secret_file(tmp_path / "p", b"words\n").open("rb") as file:
        path = f"/dev/fd/{file.fileno()}"
        assert asked("--passphrase-file", path) == Passphrase(b"words")
    reading, writing = os.pipe()
    os.write(writing, b"k" * 32)
    os.close(writing)
    assert asked("--key-file", f"/dev/fd/{reading}") == RawKey(b"k" * 32)
    os.close(reading)


def test_a_pipe_has_no_others(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o666)
    pipe.chmod(0o666)
    with subprocess.Popen(["sh", "-c", f"echo words > {pipe}"]):
        assert asked("--passphrase-file", str(pipe)) == Passphrase(b"words")


def test_two_sources_are_one_too_many(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        asked("--key-file", "x", "--passphrase-file", "y")
    assert caught.value.code == 2
    assert "not allowed with argument" in capfd.readouterr().err


ASK = """
import argparse, os, sys
from cisfs.errors import CisfsError
from cisfs.keys.credentials import from_options
from cisfs.keys.options import add_key_options
parser = argparse.ArgumentParser()
add_key_options(parser)
try:
    confirm = sys.argv[1:] == ["confirm"]
    credential = from_options(parser.parse_args([]), purpose="passphrase for /x", confirm=confirm)
    print("GOT", credential.secret)
except CisfsError as error:
    print(type(error).__name__, error)
"""


def without_a_terminal() -> str:
    return subprocess.run(
        [sys.executable, "-c", ASK],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        start_new_session=True,
    ).stdout


def typed_at_a_terminal(typed: list[bytes], *words: str) -> str:
    """What the program says at a terminal of its own; each line is typed after a prompt."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", ASK, *words])
    said = b""
    try:
        while True:
            said += os.read(terminal, 1000)
            if typed and said.endswith(b": "):
                os.write(terminal, typed.pop(0))
    except OSError:
        pass  # the other end was closed: it is done
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    return said.decode()


def test_without_a_terminal_the_ways_to_give_a_key_are_named() -> None:
    said = without_a_terminal()
    assert said.startswith(NoKeyError.__name__ + " no passphrase or key: use --passphrase-file")
    assert FILE_VARIABLE in said
    assert "--identity" in said


def test_a_passphrase_is_asked_for_at_the_terminal_and_not_shown() -> None:
    said = typed_at_a_terminal([b"secret w\xc3\xb6rds\n"])
    assert said.startswith("passphrase for /x: ")
    assert "GOT b'secret w\\xc3\\xb6rds'" in said
    assert "secret wörds" not in said


def test_a_new_passphrase_is_asked_for_twice() -> None:
    assert "GOT b'same'" in typed_at_a_terminal([b"same\n", b"same\n"], "confirm")
    said = typed_at_a_terminal([b"one\n", b"other\n"], "confirm")
    assert "UsageError the two passphrases differ; nothing was done" in said


@pytest.mark.parametrize("typed", [b"\n", b"\x04"])
def test_nothing_typed_is_no_key(typed: bytes) -> None:
    assert "NoKeyError no passphrase was typed" in typed_at_a_terminal([typed])
