"""What is done for memory that has keys in it, in processes of its own, and by which commands."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import cisfs
from cisfs.cli.main import COMMANDS, WITH_KEYS
from cisfs.keys import child, memory, pkcs11_token, provider_grpc, transit
from cisfs.keys.credentials import Passphrase, from_file
from cisfs.keys.keypairs import PublicKey
from cisfs.layer.wholefile import whole_file
from cisfs.registry.ocicrypt import decoder, payload
from tests.mount.harness.processes import Child
from tests.unit.test_ordinary_user import as_ordinary_user

pytestmark = pytest.mark.slow

SECRET_OPTIONS = {"--key-file", "--passphrase-file", "--identity", "--recipient", "--sign", "--key"}
NOBODY = 65534
PR_GET_DUMPABLE = 3  # linux/prctl.h
PACKAGE = str(Path(cisfs.__file__).parents[1])
PUBLIC = PublicKey.of(ec.generate_private_key(ec.SECP256R1()).public_key()).jwk
LIMITS = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
# A passphrase command that looks at its own limits, and at who runs it.
NOSY = f"""\
#!{sys.executable}
import os, pathlib, resource
parent = pathlib.Path("/proc", str(os.getppid()))
status = dict(line.split(":", 1) for line in (parent / "status").read_text().splitlines())
core = resource.getrlimit(resource.RLIMIT_CORE)[0]
theirs = resource.prlimit(os.getppid(), resource.RLIMIT_CORE)[0]
locked = int(status["VmLck"].split()[0]) > 0
with open("said", "w") as said:
    print(core, theirs, (parent / "environ").stat().st_uid, locked, file=said)
print("words")
"""


def status(field: str) -> str:
    text = Path("/proc/self/status").read_text()
    return next(line for line in text.splitlines() if line.startswith(field)).split(":")[1].strip()


def locked() -> int:
    return int(status("VmLck").split()[0])


def test_memory_is_neither_dumped_nor_shown() -> None:
    def work() -> tuple[int, int]:
        memory.keep_private()
        return os.stat("/proc/self/environ").st_uid, resource.getrlimit(resource.RLIMIT_CORE)[0]

    owner, limit = Child(work).result()
    assert owner == 0  # root's: not to be read by the process's own user
    assert limit <= 1


def test_memory_is_locked_and_limits_stay() -> None:
    def work() -> tuple[int, int, bool]:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        memory.lock()
        before = locked()
        with mmap.mmap(-1, 64 << 20):
            more = locked() - before
        return before, more, resource.getrlimit(resource.RLIMIT_MEMLOCK) == limit

    first, more, same = Child(work).result()
    assert same
    if os.geteuid() == 0:
        assert first > 0
        assert more >= 64 << 10


def test_what_drops_its_rights_may_go_on_allocating() -> None:
    def work() -> int:
        memory.lock_for_good()
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        return len(bytearray(64 << 20))

    assert Child(work).result() == 64 << 20


def test_an_ordinary_user_goes_without() -> None:
    def scenario() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
        memory.keep_private()
        memory.lock()
        assert locked() == 0
        assert len(bytearray(64 << 20)) == 64 << 20

    as_ordinary_user(scenario)


@pytest.mark.parametrize(
    "main", [pkcs11_token.main, provider_grpc.main, transit.main, decoder.main]
)
@pytest.mark.parametrize("user", {os.geteuid(), NOBODY if os.geteuid() == 0 else os.geteuid()})
def test_programs_of_ours_with_keys_are_private_before_they_read_any(
    main: Callable[[], int], user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the limit on cores is none, which an ordinary user cannot raise."""

    class Seen(Exception):
        pass

    def look(*_size: int) -> bytes:
        raise Seen

    monkeypatch.setattr(sys, "argv", ["it"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=look)))
    monkeypatch.setattr(payload, "receive", look)
    if main is provider_grpc.main:
        monkeypatch.setattr(sys, "argv", ["it", "1", "localhost:1"])

    def work() -> tuple[int, bool]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if user != os.geteuid():
            os.setuid(user)
        with pytest.raises(Seen):
            main()
        return ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), locked() > 0

    dumpable, is_locked = Child(work).result()
    assert not dumpable
    assert is_locked or user != 0


def test_programs_that_are_asked_leave_no_core() -> None:
    waits = f"import sys; sys.stdin.read(); {LIMITS}"  # as whoever wants the request does
    answer = child.ask("it", [sys.executable, "-c", waits], b"", 20).answer
    assert answer in (b"1\n", b"0\n")  # none may not be raised


def test_every_command_with_an_option_for_keys_is_one_of_those() -> None:
    """So are the one that makes some, and the one that looks at what the keyring holds."""
    found: set[str] = set()
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"cisfs.cli.{name}").add_arguments(parser)
        if options_of(parser) & SECRET_OPTIONS:
            found.add(name)
    assert found | {"keygen", "status"} == WITH_KEYS


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= options_of(each)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory where everybody may write."""
    directory = Path(tempfile.mkdtemp(prefix="cisfs-test-"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("user", {os.geteuid(), NOBODY if os.geteuid() == 0 else os.geteuid()})
@pytest.mark.parametrize(
    "words",
    [
        "init new",
        "verify vault",
        "key add vault -r it.pub",
        "keygen -o new",
        "seal open -o new.cis",
    ],
)
def test_a_command_is_private_before_it_reads_the_passphrase(
    place: Path, words: str, user: int
) -> None:
    nosy = place / "nosy"
    nosy.write_text(NOSY)
    nosy.chmod(0o755)
    (place / "it.pub").write_text(PUBLIC)
    (place / "open").mkdir()

    def run(given: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-P", "-m", "cisfs", *given.split()]
        command += ["--passphrase-command", str(nosy)]
        environment = {**os.environ, "PYTHONPATH": PACKAGE, "HOME": str(place)}
        return subprocess.run(
            command, cwd=place, env=environment, user=user, capture_output=True, check=False
        )

    made = run("init vault")
    assert made.returncode == 0, made.stderr
    (place / "said").unlink()
    run(words)
    assert (place / "said").read_text() == f"1 1 0 {user == 0}\n"


def test_an_undumpable_process_reads_its_own_descriptors(place: Path) -> None:
    """Nothing in /proc/self is an ordinary user's own any more; /dev/fd leads there."""

    def scenario() -> None:
        memory.keep_private()
        reading, writing = os.pipe()
        os.write(writing, b"words\n")
        os.close(writing)
        assert from_file(Path(f"/dev/fd/{reading}")) == Passphrase(b"words")
        with whole_file(place / "file", replace=False) as descriptor:
            os.write(descriptor, b"content")
        assert (place / "file").read_bytes() == b"content"

    as_ordinary_user(scenario)
