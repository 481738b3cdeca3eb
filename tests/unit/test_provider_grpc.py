"""Key providers that are gRPC services: messages, TLS, and what is said of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# No stubs are installed.
from google.protobuf.wrappers_pb2 import BytesValue  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import CisfsError, UsageError
from cisfs.keys import provider_grpc
from cisfs.keys.provider import TIMEOUT_VARIABLE, ProviderIdentity, ProviderRecipient
from cisfs.keys.provider_config import VARIABLE
from cisfs.keys.provider_grpc import decode, encode
from tests.unit.certificates import Authority

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("grpc_provider.py")
PACKET = b'{"id":"aWQ=","key":"a2V5"}'


@contextmanager
def serving(*words: str | Path) -> Iterator[str]:
    """Run the service; yields its address."""
    with subprocess.Popen(
        [sys.executable, SERVER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with serving("loopback") as address:
        yield address


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "providers.json"))
    return tmp_path / "providers.json"


def configure(file: Path, address: str, tls: dict[str, str] | None = None) -> None:
    entry = {"grpc": address} if tls is None else {"grpc": address, "grpc-tls": tls}
    file.write_text(json.dumps({"key-providers": {"x": entry}}))
    file.chmod(0o600)


def turned_and_back() -> bool:
    slot = {"type": "provider:x", **ProviderRecipient("x", "fine").wrap(PACKET)}
    return ProviderIdentity("x").unwrap(slot) == PACKET


def test_a_service_wraps_and_unwraps(file: Path, service: str) -> None:
    configure(file, service)
    assert turned_and_back()


def test_a_socket_in_the_file_system_will_do(file: Path, tmp_path: Path) -> None:
    with serving("unix", tmp_path / "socket") as address:
        configure(file, address)
        assert turned_and_back()


def test_tls_proves_both_sides(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Authority.new(tmp_path, "ours"), Authority.new(tmp_path, "theirs")
    certificate, key = ours.issue("server", "kms.example")
    mine, my_key = ours.issue("client")
    other, other_key = theirs.issue("other")
    right = {
        "root-ca-file": str(ours.file),
        "cert-file": str(mine),
        "key-file": str(my_key),
        "server-name": "kms.example",
    }
    with serving("tls", certificate, key, ours.file) as address:
        for good in (right, {**right, "server-name": ""}):
            configure(file, address, good)
            assert turned_and_back()
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))  # as the system's
        configure(file, address, {**right, "root-ca-file": ""})
        assert turned_and_back()
        monkeypatch.delenv("SSL_CERT_FILE")
        for bad in (
            {**right, "root-ca-file": str(theirs.file)},
            {**right, "root-ca-file": ""},  # the system's
            {**right, "server-name": "other.example"},
            {**right, "cert-file": str(other), "key-file": str(other_key)},
            {**right, "cert-file": "", "key-file": ""},
        ):
            configure(file, address, bad)
            with pytest.raises(CisfsError, match=f"^key provider x: {address}: unavailable: "):
                turned_and_back()
        configure(file, address, {**right, "key-file": ""})
        with pytest.raises(UsageError, match=r"grpc-tls needs cert-file and key-file or neither"):
            turned_and_back()
        configure(file, address, {**right, "root-ca-file": "/no/such"})
        with pytest.raises(UsageError, match=r"x: grpc-tls: cannot read /no/such: No such file"):
            turned_and_back()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("refuse", "permission denied: not attested at all"),
        ("raw", "answers with another field than the first"),
        ("long", "resource exhausted: .*"),
    ],
)
def test_a_failure_is_told_in_one_line(
    file: Path, service: str, parameters: str, words: str
) -> None:
    configure(file, service)
    with pytest.raises(CisfsError, match=f"^key provider x: {service}:? {words}$"):
        ProviderRecipient("x", parameters).wrap(PACKET)


def test_a_slow_service_is_not_waited_for(
    file: Path, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(file, service)
    monkeypatch.setenv(TIMEOUT_VARIABLE, "1.5")
    with pytest.raises(CisfsError, match=r"^key provider x: no answer within 1\.5 s$"):
        ProviderRecipient("x", "sleep").wrap(PACKET)


def test_no_service_is_told_at_once(file: Path) -> None:
    configure(file, "localhost:1")
    with pytest.raises(CisfsError, match=r"^key provider x: localhost:1: unavailable: "):
        turned_and_back()


@pytest.mark.parametrize("address", ["kms.example:50051", "192.0.2.1:1", "[2001:db8::1]:1", "kms"])
def test_nothing_goes_to_another_machine_in_clear(file: Path, address: str) -> None:
    configure(file, address)
    with pytest.raises(UsageError, match=r"is another machine and has no grpc-tls: keys go in"):
        turned_and_back()


def test_an_address_is_ours_or_not() -> None:
    for ours in ("localhost:1", "LOCALHOST:1", "127.9.9.9:1", "[::1]:1", "unix:/x", "unix:///x"):
        assert provider_grpc._is_local(ours), ours
    for other in ("localhost.example:1", "dns:///localhost:1", "0.0.0.0:1", "10.0.0.1:1", ""):
        assert not provider_grpc._is_local(other), other


def test_without_grpc_it_says_what_to_install(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is not there, in the child that would import it."""
    absent = tmp_path / "path" / "grpc"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ModuleNotFoundError(name='grpc')")
    monkeypatch.setenv("PYTHONPATH", str(absent.parent))
    configure(file, "localhost:1")
    with pytest.raises(UsageError, match=r"^key provider x: .*: pip install 'cisfs\[grpc\]'$"):
        turned_and_back()


def test_the_working_directory_is_not_where_our_modules_are(
    file: Path, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('from the working directory')")
    monkeypatch.chdir(tmp_path)
    configure(file, service)
    assert turned_and_back()


def test_grpc_is_in_the_child_only(file: Path, service: str) -> None:
    configure(file, service)
    code = (
        "import sys; from cisfs.keys.provider import ProviderRecipient;"
        "ProviderRecipient('x', 'fine').wrap(b'packet');"
        "print([name for name in sys.modules if name.split('.')[0] == 'grpc'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=os.environ
    )
    assert done.stdout == b"[]\n"


@given(st.one_of(st.binary(), st.sampled_from([127, 128, 16383, 16384, 1 << 20]).map(bytes)))
def test_messages_are_protobufs(value: bytes) -> None:
    if value:
        assert encode(value) == BytesValue(value=value).SerializeToString()
    assert decode(BytesValue(value=value).SerializeToString()) == value
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "message", [b"\x0a", b"\x0a\x03ab", b"\x0a\x01ab", b"\x12\x01a", b"\x0a" + b"\xff" * 9]
)
def test_a_message_of_another_shape_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"another field|another size|a size without end"):
        decode(message)


@given(st.binary(max_size=12))
def test_any_bytes_are_a_message_or_refused(message: bytes) -> None:
    try:
        value = decode(message)
    except ValueError:
        return
    assert message[len(message) - len(value) :] == value
