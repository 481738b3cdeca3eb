"""`cisfs-keyprovider-vault`: what it asks of Vault, and what it says when it does not get it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError
from cisfs.format.config import b64
from cisfs.keys import transit
from cisfs.keys.credentials import Identities
from cisfs.keys.provider import TIMEOUT_VARIABLE, ProviderIdentity, ProviderRecipient
from cisfs.keys.provider_config import VARIABLE
from cisfs.keys.slots import new_slot, open_slots
from cisfs.keys.vault_api import TransitKey, Vault
from tests.unit.certificates import Authority
from tests.unit.vault_server import Listener, VaultServer

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).with_name("cisfs-keyprovider-vault")
TOKEN = "hvs.CAESIJ-canary-token"
PACKET = b'{"id":"aWQ=","key":"a2V5"}'
ENCRYPT, DECRYPT = "transit/encrypt/layers", "transit/decrypt/layers"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a configuration of its own, and no variable of Vault's."""
    for name in list(os.environ):
        if name.startswith(("VAULT_", "BAO_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "providers.json"))
    command = {"path": str(PROGRAM)}
    file = tmp_path / "providers.json"
    file.write_text(json.dumps({"key-providers": {"vault": {"cmd": command}}}))
    file.chmod(0o600)
    return tmp_path


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[VaultServer]:
    """A server with one key, `layers`, and a token that may use it."""
    server = VaultServer(policies={TOKEN: {ENCRYPT, DECRYPT}})
    server.create("transit/layers")
    listener = Listener(server)
    monkeypatch.setenv("VAULT_ADDR", listener.address)
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    yield server
    listener.close()


def wrapped(parameters: str = "layers") -> dict[str, str | int]:
    return {"type": "provider:vault", **ProviderRecipient("vault", parameters).wrap(PACKET)}


def annotation(slot: dict[str, str | int]) -> dict[str, str]:
    fields: dict[str, str] = json.loads(b64decode(str(slot["wrapped"])))
    return fields


def unwrapped(slot: dict[str, str | int], parameters: str = "") -> bytes:
    return ProviderIdentity("vault", parameters).unwrap(slot)


def failure() -> str:
    """What the program says when it does not get what it needs."""
    with pytest.raises(CisfsError) as raised:
        wrapped()
    assert TOKEN not in str(raised.value)
    return str(raised.value).removeprefix("key provider vault: cisfs-keyprovider-vault: ")


def called(ciphertext: str = "") -> str:
    """Encrypt, or decrypt, in this process, without the time of starting the program."""
    key, server = TransitKey("transit", "layers"), Vault.from_environment()
    return server.decrypt(key, ciphertext) if ciphertext else server.encrypt(key, b64(PACKET))


def complaint(ciphertext: str = "") -> str:
    with pytest.raises(CisfsError) as raised:
        called(ciphertext)
    assert TOKEN not in str(raised.value)
    return str(raised.value)


def wrap_request(said: str) -> bytes:
    chosen = {"Parameters": {"vault": [b64(said.encode())]}}
    request = {"op": "keywrap", "keywrapparams": {"ec": chosen, "optsdata": b64(PACKET)}}
    return json.dumps(request).encode()


def unwrap_request(annotation: bytes) -> bytes:
    parameters = {"dc": {"Parameters": {}}, "annotation": b64(annotation)}
    return json.dumps({"op": "keyunwrap", "keyunwrapparams": parameters}).encode()


def run(request: object, *words: str) -> subprocess.CompletedProcess[bytes]:
    data = request if isinstance(request, bytes) else json.dumps(request).encode()
    return subprocess.run([PROGRAM, *words], input=data, capture_output=True, check=False)


@pytest.mark.usefixtures("vault")
def test_a_slot_is_made_and_opened() -> None:
    master = SecretKey.generate()
    slot = new_slot(master, ProviderRecipient("vault", "layers"), bytes(16))
    identities = Identities((ProviderIdentity("vault"),))
    assert open_slots([slot], identities, bytes(16)) == master


def test_the_annotation_says_which_key(vault: VaultServer) -> None:
    found = annotation(wrapped())
    assert found.pop("ciphertext").startswith("vault:v1:")
    assert found == {"key": "layers", "mount": "transit"}
    assert [path for path, _ in vault.seen] == ["/v1/" + ENCRYPT]
    headers = vault.seen[0][1]
    assert headers["x-vault-token"] == TOKEN
    assert headers["x-vault-request"] == "true"
    assert "x-vault-namespace" not in headers


def test_any_mount_point_and_key_will_do(vault: VaultServer) -> None:
    vault.mounts.add("team/a/kms")
    vault.create("team/a/kms/k-1_2.x")
    vault.policies[TOKEN] |= {"team/a/kms/encrypt/k-1_2.x", "team/a/kms/decrypt/k-1_2.x"}
    slot = wrapped("team/a/kms/k-1_2.x")
    assert unwrapped(slot) == PACKET
    assert unwrapped(slot, "team/a/kms/k-1_2.x") == PACKET
    with pytest.raises(CisfsError, match=r"with the key team/a/kms/k-1_2\.x, not transit/layers$"):
        unwrapped(slot, "layers")


def test_older_versions_of_a_key_open_until_vault_says_otherwise(vault: VaultServer) -> None:
    old = called()
    vault.create("transit/layers")
    new = called()
    assert new.startswith("vault:v2:")
    assert called(old) == called(new) == b64(PACKET)
    vault.oldest = 2
    assert complaint(old).endswith("version is disallowed by policy (too old)")
    assert called(new) == b64(PACKET)


def test_a_ciphertext_of_another_key_does_not_open(vault: VaultServer) -> None:
    old = called()
    vault.keys.clear()
    vault.create("transit/layers")
    assert complaint(old).endswith(
        "refuses transit/decrypt/layers: cipher: message authentication failed"
    )


def test_what_vault_refuses_is_told_with_what_to_do(vault: VaultServer) -> None:
    vault.policies[TOKEN].clear()
    assert failure().startswith("the token may not use transit/encrypt/layers at http://127.0.0.1:")
    assert complaint().endswith("or has expired: 1 error occurred: * permission denied")
    assert complaint("x").startswith("the token may not use transit/decrypt/layers at http://")
    vault.policies.clear()
    assert complaint().endswith("or has expired: permission denied")
    vault.policies[TOKEN] = {ENCRYPT, DECRYPT}
    vault.keys.clear()
    assert complaint().endswith("permission denied")
    assert "refuses transit/decrypt/layers: encryption key not found" in complaint("vault:v1:eA==")
    vault.mounts.clear()
    assert complaint().startswith("no transit engine answers to transit/encrypt/layers at http://")
    assert complaint().endswith(
        'no handler for route "transit/encrypt/layers". route entry not found.'
    )
    vault.sealed = True
    assert complaint().endswith("is sealed or down for maintenance: Vault is sealed")


def test_a_namespace_is_passed_on(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.namespace = "team-a"
    assert complaint().endswith("in this namespace: namespace not found")
    monkeypatch.setenv("VAULT_NAMESPACE", "team-a")
    assert called(called()) == b64(PACKET)


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        (b"", "speaks no HTTP (RemoteDisconnected)"),
        (b"SSH-2.0-x\r\n", "speaks no HTTP (BadStatusLine)"),
        (b"HTTP/1.1 200 OK\r\n\r\ncanary", "answered with something else than JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "answered without a ciphertext"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": {"ciphertext": 1}}', "answered without a ciphertext"),
        (b"HTTP/1.1 502 Bad\r\n\r\n<html>canary", "answers with status 502"),
        (b'HTTP/1.1 500 Bad\r\n\r\n{"errors": ["no", 1, "luck"]}', "status 500: no luck"),
        (b'HTTP/1.1 500 Bad\r\n\r\n{"errors": "canary"}', "answers with status 500"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), "answered with something else than JSON"),
    ],
)
def test_garbage_is_told_and_not_quoted(vault: VaultServer, instead: bytes, words: str) -> None:
    vault.instead = instead
    assert complaint().endswith(words)


def test_no_more_is_read_or_quoted_than_makes_sense(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.instead = b'HTTP/1.1 500 Bad\r\n\r\n{"errors": ["' + b"long " * 1000 + b'"]}'
    assert complaint().endswith("status 500: " + "long " * 40)
    vault.instead = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20)
    vault.endless = True
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "5")
    assert failure().endswith("answered with something else than JSON")


def test_a_ciphertext_that_is_none_is_not_kept(vault: VaultServer) -> None:
    vault.instead = b'HTTP/1.1 200 OK\r\n\r\n{"data": {"ciphertext": "canary"}}'
    assert failure() == "the server's ciphertext does not begin with vault:vN:"


def test_a_server_that_says_nothing_is_not_waited_for(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.stalling = True
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "1s")
    assert failure() == "the server does not answer within 1 s"
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "soon")
    assert failure() == "VAULT_CLIENT_TIMEOUT is not a number of seconds"


def test_no_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    assert failure() == "http://127.0.0.1:1: Connection refused"


def test_a_redirect_is_not_followed(vault: VaultServer) -> None:
    """Not even on this machine: the token is for VAULT_ADDR alone."""
    other = Listener(VaultServer())
    try:
        vault.redirect = other.address
        words = complaint()
    finally:
        other.close()
    assert words.endswith(
        f"passes us on to 127.0.0.1:{other.server_port}; if that is right, set VAULT_ADDR to it"
    )
    assert other.vault.seen == []


@pytest.mark.usefixtures("vault")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "VAULT_ADDR is not set, as in: VAULT_ADDR=https://vault.example:8200"),
        ("vault.example:8200", "VAULT_ADDR is not https://HOST:PORT"),
        ("https://", "VAULT_ADDR is not https://HOST:PORT"),
        ("https://x:y", "VAULT_ADDR is not https://HOST:PORT"),
        ("https://user:canary@x", "VAULT_ADDR is not https://HOST:PORT"),
        ("ftp://x", "VAULT_ADDR is not https://HOST:PORT"),
        ("http://[::1", "VAULT_ADDR is not https://HOST:PORT"),
        ("http://192.0.2.1:8200", "is http://192.0.2.1: the token and keys would go in clear"),
        ("http://vault.example", "is http://vault.example: the token and keys would go in clear"),
    ],
)
def test_a_bad_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    monkeypatch.setenv("VAULT_ADDR", address)
    assert complaint().endswith(words)


def test_openbaos_names_go_first(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAO_ADDR", os.environ["VAULT_ADDR"])
    monkeypatch.setenv("BAO_TOKEN", TOKEN)
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_TOKEN", "another")
    assert called(called()) == b64(PACKET)
    assert len(vault.seen) == 2


def test_the_token_is_where_vault_would_look_or_in_a_named_file(
    vault: VaultServer, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def token() -> str:
        called()
        return vault.seen[-1][1]["x-vault-token"]

    for name in ("home", "given", "named"):
        vault.policies[name] = {ENCRYPT}
    monkeypatch.delenv("VAULT_TOKEN")
    assert complaint() == "no token: log in with `vault login`, or set VAULT_TOKEN_FILE"
    home, named = environment / ".vault-token", environment / "named"
    home.write_text("home")
    home.chmod(0o600)
    assert token() == "home"
    monkeypatch.setenv("VAULT_TOKEN", "given")
    assert token() == "given"
    named.write_text("named\n")
    named.chmod(0o640)  # as Vault's agent makes them
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(named))
    assert token() == "named"


@pytest.mark.usefixtures("vault")
def test_a_token_file_that_will_not_do_is_told(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = environment / "token"
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(file))
    assert complaint() == f"cannot read the token file {file}: No such file or directory"
    for mode in (0o604, 0o620, 0o602):
        file.write_text(TOKEN)
        file.chmod(mode)
        assert complaint() == f"others can read or alter the token file {file}; chmod 600 it"
    file.chmod(0o600)
    for bad in (b"", b"\n", b"two words", b"canary\r\nX-Other: 1", b"\xff", b"a\0b"):
        file.write_bytes(bad)
        assert complaint() == f"{file} holds no token"


def test_tls_is_verified(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Authority.new(environment, "ours"), Authority.new(environment, "theirs")
    server = VaultServer(policies={TOKEN: {ENCRYPT, DECRYPT}})
    server.create("transit/layers")
    listener = Listener(server, ours.issue("server"))
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    monkeypatch.setenv("VAULT_ADDR", listener.address)
    try:
        assert "its certificate is not to be trusted (unable to get local issuer" in complaint()
        monkeypatch.setenv("VAULT_CACERT", str(theirs.file))
        assert complaint().endswith("see VAULT_CACERT")
        monkeypatch.setenv("VAULT_CACERT", str(ours.file))
        assert called(called()) == b64(PACKET)
        assert len(server.seen) == 2
        monkeypatch.setenv("VAULT_ADDR", f"https://localhost:{listener.server_port}")
        assert "certificate is not valid for 'localhost'" in complaint()
        monkeypatch.setenv("VAULT_CACERT", "/no/such")
        assert complaint().startswith("VAULT_CACERT, ")
        assert complaint().endswith(": No such file or directory")
    finally:
        listener.close()


@pytest.mark.parametrize(
    "said",
    ["../sys", "a//b", "a/", "a b", "a?b", "a%2fb", "a#b", "ä", ".", "..", "a/../b", "a\nb", "a\n"],
)
def test_what_is_no_key_does_not_get_into_a_url(said: str) -> None:
    words = r"is not KEY or MOUNT/KEY in letters, digits and \. _ -$"
    with pytest.raises(CisfsError, match=words):
        transit._answer(wrap_request(said), "vault")
    mount, _, key = said.rpartition("/")
    forged = {"ciphertext": "vault:v1:eA==", "mount": mount or "transit", "key": key}
    with pytest.raises(CisfsError, match=words):
        transit._answer(unwrap_request(json.dumps(forged).encode()), "vault")


def test_without_a_key_it_asks_for_one() -> None:
    with pytest.raises(CisfsError, match=r"say provider:x:KEY or provider:x:MOUNT/KEY$"):
        transit._answer(wrap_request("layers"), "x")
    with pytest.raises(CisfsError, match=r"say provider:vault:KEY or provider:vault:MOUNT/KEY$"):
        transit._answer(wrap_request("Enabled"), "vault")


@pytest.mark.parametrize(
    "forged",
    [
        b"x",
        b"{}",
        b'{"ciphertext": 1, "key": "layers", "mount": "transit"}',
        b'{"ciphertext": "vault:v1:eA==", "key": "layers"}',
        b'{"ciphertext": "vault:v1:eA==", "key": "layers", "mount": "transit", "more": "x"}',
    ],
)
def test_a_foreign_annotation_is_told(forged: bytes) -> None:
    with pytest.raises(CisfsError, match=r"was not made by cisfs-keyprovider-vault$"):
        transit._answer(unwrap_request(forged), "vault")


def test_a_ciphertext_that_is_none_is_not_sent() -> None:
    forged = b'{"ciphertext": "x", "key": "layers", "mount": "transit"}'
    with pytest.raises(CisfsError, match=r"ciphertext does not begin with vault:vN:$"):
        transit._answer(unwrap_request(forged), "vault")


@pytest.mark.usefixtures("vault")
def test_ocicrypts_own_requests_are_understood() -> None:
    """What skopeo sends for several kinds of recipients at once: their keys in the same object."""
    key = b64(b"layers")
    parameters = {"kms": [key], "pubkeys": ["LS0t"]}
    chosen = {"Parameters": parameters, "DecryptConfig": {"Parameters": None}}
    done = run(
        {
            "op": "keywrap",
            "keywrapparams": {"ec": chosen, "optsdata": b64(PACKET)},
            "keyunwrapparams": {"dc": None, "annotation": None},
        },
        "kms",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)["keywrapresults"]["annotation"]
    done = run(
        {
            "op": "keyunwrap",
            "keywrapparams": {"ec": None, "optsdata": None},
            "keyunwrapparams": {"dc": {"Parameters": {"privkeys": ["eA=="]}}, "annotation": made},
        },
        "kms",
    )
    assert json.loads(done.stdout) == {"keyunwrapresults": {"optsdata": b64(PACKET)}}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"", "the request on standard input is not a JSON object"),
        (b"[]", "the request on standard input is not a JSON object"),
        (b'{"canary": 1, "canary": 2}', "the request on standard input is not a JSON object"),
        (b" " * (2 << 20), "the request on standard input is not a JSON object"),
        ({}, "the request's op is neither keywrap nor keyunwrap"),
        ({"op": "keywrap"}, "which key? say provider:vault:KEY or provider:vault:MOUNT/KEY"),
        ({"op": "keyunwrap"}, "the request's annotation is not text"),
        (
            {"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {"vault": ["eA==", "eQ=="]}}}},
            "name one key for each provider:vault",
        ),
        (
            {"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {"vault": "eA=="}}}},
            "name one key for each provider:vault",
        ),
        (
            {"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {"vault": ["eA=="]}}}},
            "the request's optsdata is not text",
        ),
    ],
)
def test_a_bad_request_is_told(request_: object, words: str) -> None:
    data = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    with pytest.raises(CisfsError, match=f"^{re.escape(words)}$"):
        transit._answer(data, "vault")


def test_a_failure_is_one_line_on_standard_error() -> None:
    done = run(b"{}")
    assert (done.returncode, done.stdout) == (1, b"")
    words = b"cisfs-keyprovider-vault: the request's op is neither keywrap nor keyunwrap\n"
    assert done.stderr == words


def test_help_is_to_be_had() -> None:
    done = run(b"", "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: cisfs-keyprovider-vault [NAME]\n")
    for wrong in (("--x",), ("a", "b")):
        done = run(b"", *wrong)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"usage: ")
