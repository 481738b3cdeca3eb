"""cisfs-decoder, started as containerd starts it: nothing comes out of what was altered."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from cisfs.format.config import b64
from cisfs.keys.pkcs8 import private_pem
from tests.unit.test_ocicrypt_layers import MINE, OTHER, Made, made
from tests.unit.test_ocicrypt_payload import any_of

pytestmark = pytest.mark.slow

PLAIN = secrets.token_bytes((2 << 20) + 5)
CODE = "import sys, cisfs.registry.ocicrypt.decoder as it; sys.exit(it.main())"
PROGRAM = [sys.executable, "-c", CODE]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    for identity in (OTHER, MINE):
        path = directory / f"{identity.name}.pem"
        path.touch(0o600)
        path.write_bytes(private_pem(identity.private.reveal()))
    return directory


def told(layer: Made, parameters: Mapping[str, object] | None = None) -> bytes:
    described = layer.descriptor().as_json()
    return any_of({"DecryptConfig": {"Parameters": parameters}, "Descriptor": described})


def decoder(
    ciphertext: bytes, payload: bytes | None, *words: str | Path, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """Run it, with descriptor 3 a pipe if there is a payload."""
    environment = {**os.environ, **more}
    if payload is None:
        return _run([*PROGRAM, *words], ciphertext, environment)
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        os.write(write, payload)
        os.close(write)
        shell = ["bash", "-c", f'exec "$@" 3<&{read} {read}<&-', "bash", *PROGRAM, *words]
        return _run(shell, ciphertext, environment, read)
    finally:
        os.close(read)


def _run(
    words: list[str | Path], ciphertext: bytes, environment: Mapping[str, str], *fds: int
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words,
        input=ciphertext,
        capture_output=True,
        check=False,
        env=environment,
        pass_fds=fds,
        timeout=60,
    )


@pytest.mark.parametrize("option", ["--keys", "--decryption-keys-path"])
def test_a_layer_for_one_of_the_keys_in_a_directory(keys: Path, option: str) -> None:
    layer = made(PLAIN)
    done = decoder(layer.blob, told(layer), option, keys)
    assert (done.returncode, done.stderr, done.stdout == PLAIN) == (0, b"", True)


def test_keys_by_option_and_in_the_payload(keys: Path, tmp_path: Path) -> None:
    layer = made(PLAIN)
    done = decoder(layer.blob, told(layer), "-i", keys / "mine.pem")
    assert (done.returncode, done.stdout == PLAIN) == (0, True)
    key = MINE.private.reveal().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"words")
    )
    parameters = {"privkeys": [b64(key)], "privkeys-passwords": [b64(b"words")]}
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    done = decoder(layer.blob, told(layer, parameters), "--keys", empty)
    assert (done.returncode, done.stderr, done.stdout == PLAIN) == (0, b"", True)


def altered() -> dict[str, tuple[bytes, bytes, bytes]]:
    good = made(PLAIN)
    last = good.blob[:-1] + bytes([good.blob[-1] ^ 1])
    return {
        "last byte": (last, told(replace(good, blob=last)), b"HMAC does not match"),
        "cut short": (good.blob[:-1], told(good), b"it ends after 2097156 bytes"),
        "too long": (good.blob + b"x", told(good), b"more than the layer's 2097157 bytes"),
        "payload": (good.blob, told(good)[:-1], b"payload is cut short"),
    }


@pytest.mark.parametrize("name", altered())
def test_nothing_comes_out_of_what_was_altered(keys: Path, name: str) -> None:
    blob, payload, words = altered()[name]
    done = decoder(blob, payload, "--keys", keys)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"cisfs-decoder: ")
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_no_payload_and_no_key(keys: Path, tmp_path: Path) -> None:
    layer = made(PLAIN)
    done = decoder(layer.blob, None, "--keys", keys)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no payload on descriptor 3: the engine does not pass on" in done.stderr
    (keys / "mine.pem").unlink()
    done = decoder(layer.blob, told(layer), "--keys", keys, XDG_CONFIG_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no key opens the layer; tried: " in done.stderr


def test_keys_that_others_can_read_are_not_used(keys: Path) -> None:
    layer = made(PLAIN)
    (keys / "other.pem").chmod(0o640)
    done = decoder(layer.blob, told(layer), "--keys", keys)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"chmod 600" in done.stderr


def test_a_reader_that_went_away_is_no_traceback(keys: Path) -> None:
    layer = made(PLAIN)
    words = shlex.join(map(str, [*PROGRAM, "--keys", keys]))
    (keys.parent / "payload").write_bytes(told(layer))
    (keys.parent / "blob").write_bytes(layer.blob)
    script = f"cat payload | ({words} 3<&0 <blob | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}})"
    done = subprocess.run(
        ["bash", "-c", script], cwd=keys.parent, capture_output=True, check=False, timeout=60
    )
    assert done.stdout == b"1\n"
    assert done.stderr == b"cisfs-decoder: whoever started this does not read the layer\n"


def test_the_spool_is_where_tmpdir_says_and_nothing_stays(keys: Path, tmp_path: Path) -> None:
    layer = made(PLAIN)
    spool = tmp_path / "spool"
    done = decoder(layer.blob, told(layer), "--keys", keys, TMPDIR=str(spool))
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
    spool.mkdir()
    done = decoder(layer.blob, told(layer), "--keys", keys, TMPDIR=str(spool))
    assert (done.returncode, done.stdout == PLAIN) == (0, True)
    assert not list(spool.iterdir())


def test_it_imports_little() -> None:
    """It is started for each layer; and --help works without a payload."""
    code = "import sys, cisfs.registry.ocicrypt.decoder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    heavy = {"jwcrypto", "trio", "pyfuse3", "cryptography", "httpx", "pyrage", "grpc"}
    assert not heavy & set(done.stdout.split())
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, check=True, text=True)
    assert "stream_processors" in done.stdout
