"""Keys in tokens, as far as no token is needed: URIs, wrapping, and what slots may hold."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]

from cisfs.errors import CisfsError, FormatError, NoKeyError, UsageError
from cisfs.format.config import SlotFields, b64
from cisfs.keys import pkcs11_uri
from cisfs.keys.keypairs import PublicKey
from cisfs.keys.pkcs11 import HASH_VARIABLE, Pkcs11Identity, Pkcs11Recipient, _pin_in
from cisfs.keys.pkcs11_uri import MODULE_VARIABLE, parse

KEY = rsa.generate_private_key(65537, 2048)
PACKET = b'{"id":"aWQ=","key":"a2V5"}'
ALGORITHMS = {"sha256": hashes.SHA256(), "sha1": hashes.SHA1()}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HASH_VARIABLE, raising=False)
    monkeypatch.delenv(MODULE_VARIABLE, raising=False)


def pem(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return f"pkcs11:{path}"


def opened(slot: SlotFields, expected_hash: str) -> bytes:
    """Do what a token does, on ocicrypt's JSON."""
    document = json.loads(b64decode(str(slot["wrapped"])))
    assert set(document) == {"version", "recipients"}
    (one,) = document["recipients"]
    assert (document["version"], one["version"], one["hash"]) == (0, 0, expected_hash)
    algorithm = ALGORITHMS[expected_hash]
    padding = OAEP(mgf=MGF1(algorithm), algorithm=algorithm, label=None)
    return KEY.decrypt(b64decode(one["blob"]), padding)


@pytest.mark.parametrize(
    ("said", "name", "algorithm"),
    [
        ("", "sha256", "RSA-OAEP-256"),
        ("SHA256", "sha256", "RSA-OAEP-256"),
        ("sha1", "sha1", "RSA-OAEP"),
    ],
)
def test_a_public_key_in_a_file_is_enough_to_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, name: str, algorithm: str
) -> None:
    monkeypatch.setenv(HASH_VARIABLE, said)
    recipient = Pkcs11Recipient.from_words(pem(tmp_path / "key.pem", KEY))
    slot = recipient.wrap(PACKET)
    assert recipient.type == "pkcs11"
    assert opened(slot, name) == PACKET
    jwk = JWK.from_json(str(slot["recipient"]))
    assert jwk.thumbprint() == JWK.from_pyca(KEY.public_key()).thumbprint()
    assert json.loads(str(slot["recipient"]))["alg"] == algorithm
    monkeypatch.delenv(HASH_VARIABLE)
    again = Pkcs11Recipient.from_stored(slot["recipient"])
    assert opened(again.wrap(PACKET), name) == PACKET
    assert again.wrap(PACKET)["recipient"] == slot["recipient"]


def test_a_key_may_say_its_algorithm_itself(tmp_path: Path) -> None:
    """As a JWK does; without, tokens are taken to know SHA-256."""
    file = tmp_path / "key.jwk"
    for members, name in ((GOOD_JWK, "sha1"), ({**GOOD_JWK, "alg": "RSA-OAEP-256"}, "sha256")):
        file.write_text(json.dumps(members))
        assert opened(Pkcs11Recipient.from_words(f"pkcs11:{file}").wrap(PACKET), name) == PACKET


def test_a_file_that_will_not_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(words: str) -> str:
        with pytest.raises(UsageError) as raised:
            Pkcs11Recipient.from_words(words)
        return str(raised.value)

    file = tmp_path / "key.pem"
    assert told(f"pkcs11:{file}") == f"cannot read public key {file}: No such file or directory"
    file.write_text("x")
    assert told(f"pkcs11:{file}").startswith(f"{file} will not do as a key: it is no public key")
    assert "is not an RSA key" in told(pem(file, ec.generate_private_key(ec.SECP256R1())))
    small = rsa.generate_private_key(65537, 1024)
    assert "is an RSA key of 1024 bits, not of 2048" in told(pem(file, small))
    monkeypatch.setenv(HASH_VARIABLE, "md5")
    assert told(pem(file, KEY)) == f"{HASH_VARIABLE} is neither sha256 nor sha1"


def test_a_uri_is_decoded() -> None:
    uri = parse(
        "pkcs11:token=My%20Token%3b;serial=01;manufacturer=M;model=X;slot-id=7;object=k%c3%a4y;"
        "id=%00%FF;type=private?module-path=/lib/m.so&pin-source=file:/run/p%20in"
    )
    assert (uri.token, uri.serial, uri.manufacturer, uri.model) == ("My Token;", "01", "M", "X")
    assert (uri.slot, uri.label, uri.key_id) == (7, "käy", b"\0\xff")
    assert (uri.module_path, uri.pin_file) == ("/lib/m.so", Path("/run/p in"))
    assert uri.shown.startswith("pkcs11:token=My%20Token%3b;")
    assert "?" not in uri.shown
    assert parse("pkcs11:token=").token == ""
    assert parse("pkcs11:").token is None
    for source in ("/p", "file:/p", "file:///p", "file://localhost/p"):
        assert parse(f"pkcs11:token=x?pin-source={source}").pin_file == Path("/p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("token=x", "a PKCS #11 URI begins with pkcs11:"),
        ("pkcs11:token=x;tokne=y", "unknown attribute 'tokne'; see RFC 7512"),
        ("pkcs11:token", "unknown attribute 'token'; see RFC 7512"),
        ("pkcs11:token=x?module-path=/a?pin-source=/b&x=1", "unknown attribute 'x'; see RFC 7512"),
        ("pkcs11:token=x;token=y", "token stands twice"),
        ("pkcs11:token=%ff", "token is not UTF-8"),
        ("pkcs11:object=%00", "object has a zero byte"),
        ("pkcs11:slot-id=x", "slot-id is not a number"),
        ("pkcs11:slot-id=4294967296", "slot-id is not a number"),
        ("pkcs11:type=secret-key", "it does not name a key"),
        ("pkcs11:token=x?module-name=softhsm", "no module-name; use module-path=/FILE"),
        ("pkcs11:token=x?module-path=m.so", "module-path is not an absolute path"),
        ("pkcs11:token=x?pin-source=pin", "pin-source is not an absolute path"),
        ("pkcs11:token=x?pin-source=|/bin/pin", "pin-source is not an absolute path"),
        ("pkcs11:token=x?pin-source=https://x/pin", "pin-source is not an absolute path"),
    ],
)
def test_a_uri_that_is_not_wholly_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert str(raised.value).endswith(words)


def test_a_pin_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match=r"no pin-value, others see it in ps") as raised:
        Pkcs11Identity("pkcs11:token=x?pin-value=canary")
    assert "canary" not in str(raised.value)
    assert Pkcs11Identity("pkcs11:token=x?pin-source=/canary").name == "pkcs11:token=x"


@given(st.text())
def test_any_text_is_a_uri_or_refused(text: str) -> None:
    for each in (text, "pkcs11:" + text, "pkcs11:token=" + text, "pkcs11:?" + text):
        try:
            parse(each)
        except UsageError:
            pass


def test_the_module_is_the_uris_the_environments_or_p11_kits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pkcs11_uri, "_PROXIES", (f"{tmp_path}/*/p11-kit-proxy.so",))
    here = parse("pkcs11:token=x")
    with pytest.raises(UsageError, match=r"which module\? say \?module-path=/FILE\.so, set CISFS_"):
        pkcs11_uri.module(here)
    proxy = tmp_path / "x86_64-linux-gnu" / "p11-kit-proxy.so"
    proxy.parent.mkdir()
    proxy.touch()
    assert pkcs11_uri.module(here) == str(proxy)
    monkeypatch.setenv(MODULE_VARIABLE, "/lib/environment.so")
    assert pkcs11_uri.module(here) == "/lib/environment.so"
    assert pkcs11_uri.module(parse("pkcs11:token=x?module-path=/lib/m.so")) == "/lib/m.so"


def slot_with(recipient: object, wrapped: object) -> SlotFields:
    text = wrapped if isinstance(wrapped, str) else b64(json.dumps(wrapped).encode())
    if recipient is None:
        return {"type": "pkcs11", "wrapped": text}
    stored = recipient if isinstance(recipient, str) else json.dumps(recipient)
    return {"type": "pkcs11", "recipient": stored, "wrapped": text}


GOOD_JWK = {**PublicKey.of(KEY.public_key()).members, "alg": "RSA-OAEP"}
EC_JWK = PublicKey.of(ec.generate_private_key(ec.SECP256R1()).public_key()).members
GOOD_BLOB = {"version": 0, "recipients": [{"version": 0, "blob": "eA==", "hash": "sha1"}]}


@pytest.mark.parametrize(
    ("recipient", "wrapped", "words"),
    [
        (GOOD_JWK, "%", "wrapped key is not base64"),
        (GOOD_JWK, [], "it is not a JSON object"),
        (GOOD_JWK, {**GOOD_BLOB, "version": 1}, "is not of version 0 with recipients"),
        (GOOD_JWK, {**GOOD_BLOB, "recipients": []}, "has 0 recipients, not 1 to 1"),
        (GOOD_JWK, {**GOOD_BLOB, "recipients": [1]}, "has a recipient that is not of version 0"),
        (GOOD_JWK, {**GOOD_BLOB, "recipients": [1, 2]}, "has 2 recipients, not 1 to 1"),
        (None, {**GOOD_BLOB, "recipients": [1] * 65}, "has 65 recipients, not 1 to 64"),
        (GOOD_JWK, {"version": 0, "recipients": [{"version": 0, "hash": "md5"}]}, "unknown hash"),
        (GOOD_JWK, {"version": 0, "recipients": [{"version": 0, "hash": []}]}, "is not text"),
        (GOOD_JWK, {"version": 0, "recipients": [{"version": 0, "hash": [1]}]}, "unknown hash"),
        (GOOD_JWK, {"version": 0, "recipients": [{"version": 0}]}, "is not text"),
        ("", GOOD_BLOB, "it is not valid JSON"),
        ({**GOOD_JWK, "alg": "RSA1_5"}, GOOD_BLOB, "is no public key: its algorithm 'RSA1_5'"),
        ({**GOOD_JWK, "n": "AQAB"}, GOOD_BLOB, "is no public key: "),
        (EC_JWK, GOOD_BLOB, "is not an RSA key"),
    ],
)
def test_a_damaged_slot_is_told_before_a_token_is_asked(
    recipient: object, wrapped: object, words: str
) -> None:
    identity = Pkcs11Identity("pkcs11:token=x?module-path=/no/such")
    with pytest.raises(FormatError) as raised:
        identity.unwrap(slot_with(recipient, wrapped))
    assert words in str(raised.value)


def test_a_module_that_cannot_be_loaded_is_told_once() -> None:
    """And is not loaded again for the next slot."""
    identity = Pkcs11Identity("pkcs11:token=x?module-path=/no/such.so")
    slot = slot_with(GOOD_JWK, GOOD_BLOB)
    assert identity.suits(slot)
    assert not identity.suits({"type": "jwe"})
    with pytest.raises(CisfsError, match=r"^pkcs11:token=x: .*/no/such\.so") as first:
        identity.unwrap(slot)
    with pytest.raises(CisfsError) as second:
        identity.unwrap(slot)
    assert second.value is first.value


def test_without_python_pkcs11_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is not there, in the child that would import it."""
    (tmp_path / "pkcs11.py").write_text("raise ModuleNotFoundError(name='pkcs11')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    identity = Pkcs11Identity("pkcs11:token=x?module-path=/no/such.so")
    with pytest.raises(UsageError, match=r": pip install 'cisfs\[pkcs11\]'$"):
        identity.unwrap(slot_with(GOOD_JWK, GOOD_BLOB))


def test_a_pin_is_the_first_line_of_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "pin"
    with pytest.raises(UsageError, match=r"cannot read PIN file .*: No such file or directory$"):
        _pin_in(file)
    file.write_bytes(b"12 34\r\nsecond line")
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(UsageError, match=f"^others can read PIN file {file}; chmod 600 it$"):
            _pin_in(file)
    file.chmod(0o600)
    assert _pin_in(file) == "12 34"
    for bad, words in ((b"", "is empty"), (b"\n1234", "is empty"), (b"\xff", "is not UTF-8")):
        file.write_bytes(bad)
        with pytest.raises(UsageError, match=f"{words}$") as raised:
            _pin_in(file)
        assert "1234" not in str(raised.value)


ASK = (
    "from cisfs.keys.pkcs11 import _ask_pin; from cisfs.errors import CisfsError\n"
    "try: print(repr(_ask_pin('team', 'pkcs11:token=team')))\n"
    "except CisfsError as error: print(type(error).__name__, error)"
)


def test_a_pin_is_asked_for_at_the_terminal() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", ASK])
    seen = b""
    while b"PIN of token team: " not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"4321\n")
    while b"'4321'" not in seen:
        seen += os.read(terminal, 1000)
    os.waitpid(child, 0)
    os.close(terminal)


def test_without_a_terminal_it_says_where_else_a_pin_may_be() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        text=True,
        start_new_session=True,
    )
    assert done.stdout == (
        f"{NoKeyError.__name__} pkcs11:token=team: no PIN; add ?pin-source=/FILE\n"
    )
