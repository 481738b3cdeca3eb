"""Keys in a real token: SoftHSM 2, with its files below the test's own directory."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64
from cisfs.keys.credentials import Identities
from cisfs.keys.keypairs import PublicKey
from cisfs.keys.pkcs11 import HASH_VARIABLE, Pkcs11Identity, Pkcs11Recipient
from cisfs.keys.pkcs11_uri import MODULE_VARIABLE
from cisfs.keys.provider import TIMEOUT_VARIABLE
from cisfs.keys.slots import new_slot, open_slots
from cisfs.registry.ocicrypt import packets
from cisfs.registry.ocicrypt.options import PrivateOptions

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "canary-4321"
PACKET = b'{"id":"aWQ=","key":"a2V5"}'

pytestmark = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed"
)


@dataclass(frozen=True)
class Hsm:
    """Where its tokens and PINs are."""

    directory: Path

    def token(self, label: str) -> None:
        words = ["--init-token", "--free", "--label", label, "--so-pin", "so-canary", "--pin", PIN]
        subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)

    def key(self, token: str, label: str, key_id: str, bits: int = 2048) -> rsa.RSAPrivateKey:
        """Make a key and bring it into a token, private and public half."""
        key = rsa.generate_private_key(65537, bits)
        file = self.directory / "key.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        words = ["--import", str(file), "--token", token, "--label", label, "--id", key_id]
        subprocess.run(["softhsm2-util", *words, "--pin", PIN], check=True, capture_output=True)
        file.unlink()
        return key

    def pin_file(self, pin: str = PIN) -> Path:
        file = self.directory / f"pin-{len(list(self.directory.iterdir()))}"
        file.touch(mode=0o600)
        file.write_text(pin + "\n")
        return file

    def identity(self, path: str, pin: str = PIN) -> Pkcs11Identity:
        return Pkcs11Identity(f"pkcs11:{path}?pin-source={self.pin_file(pin)}")

    def in_session(self, code: str) -> None:
        """Do something in the token `team` as its user, in another process."""
        start = (
            "import sys, pkcs11; from pkcs11 import Attribute as A, ObjectClass as O\n"
            f"token = pkcs11.lib({MODULE!r}).get_token(token_label='team')\n"
            f"with token.open(rw=True, user_pin={PIN!r}) as session:\n"
        )
        subprocess.run([sys.executable, "-c", start + f"    {code}"], check=True)


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hsm:
    """A SoftHSM with one token, `team`."""
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(configuration))
    monkeypatch.setenv(MODULE_VARIABLE, MODULE)
    monkeypatch.delenv(HASH_VARIABLE, raising=False)
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    made = Hsm(tmp_path)
    made.token("team")
    return made


def slot_for(words: str) -> SlotFields:
    return {"type": "pkcs11", **Pkcs11Recipient.from_words(words).wrap(PACKET)}


def stored(slot: SlotFields) -> dict[str, object]:
    found: dict[str, object] = json.loads(b64decode(str(slot["wrapped"])))["recipients"][0]
    return found


def test_a_slot_made_for_a_token_is_opened_by_it(hsm: Hsm) -> None:
    hsm.key("team", "layers", "01")
    master, identifier = SecretKey.generate(), bytes(16)
    uri = f"pkcs11:token=team;object=layers?module-path={MODULE}"
    slot = new_slot(master, Pkcs11Recipient.from_words(uri), identifier)
    for path in (
        "token=team;object=layers",
        "token=team;id=%01",
        "token=team",
        "model=SoftHSM%20v2",
    ):
        identities = Identities((hsm.identity(path),))
        assert open_slots([slot], identities, identifier) == master


def test_what_the_token_cannot_do_is_found_out_when_wrapping(
    hsm: Hsm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SoftHSM 2.6 does OAEP with SHA-1 only; a public key alone does not tell."""
    key = hsm.key("team", "layers", "01")
    assert stored(slot_for("pkcs11:token=team;object=layers"))["hash"] == "sha1"
    file = tmp_path / "public.pem"
    file.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    slot = slot_for(f"pkcs11:{file}")
    assert stored(slot)["hash"] == "sha256"
    with pytest.raises(
        CisfsError, match=r"^pkcs11:token=team: the token cannot do .* with sha256$"
    ):
        hsm.identity("token=team").unwrap(slot)
    monkeypatch.setenv(HASH_VARIABLE, "sha1")
    assert hsm.identity("token=team").unwrap(slot_for(f"pkcs11:{file}")) == PACKET


def test_the_right_key_of_several_is_found_by_its_modulus(hsm: Hsm) -> None:
    for number in (1, 2, 3):
        hsm.key("team", "layers", f"0{number}")
    slots = [slot_for(f"pkcs11:token=team;id=%0{number}") for number in (1, 2, 3)]
    identity = hsm.identity("token=team;object=layers")
    assert [identity.unwrap(slot) for slot in slots] == [PACKET] * 3
    with pytest.raises(WrongKeyError, match=r"the token has no such private key for it$"):
        hsm.identity("token=team;id=%01").unwrap(slots[1])
    with pytest.raises(UsageError, match=r"3 public keys are meant; add object= or id=$"):
        slot_for("pkcs11:token=team;object=layers")


def test_a_packet_of_ocicrypt_is_opened_though_it_does_not_say_whose_it_is(hsm: Hsm) -> None:
    """All recipients are in one, and any key that is meant may be the right one."""
    for number in (1, 2, 3):
        hsm.key("team", "layers", f"0{number}")
    found = [stored(slot_for(f"pkcs11:token=team;id=%0{number}")) for number in (1, 2, 3)]

    def packet(*recipients: dict[str, object]) -> SlotFields:
        document = json.dumps({"version": 0, "recipients": recipients}).encode()
        return {"type": "pkcs11", "wrapped": b64(document)}

    assert hsm.identity("token=team").unwrap(packet(found[2])) == PACKET
    assert hsm.identity("token=team;id=%02").unwrap(packet(*found)) == PACKET
    with pytest.raises(WrongKeyError, match=r"^pkcs11:token=team;id=%01: it was made for another"):
        hsm.identity("token=team;id=%01").unwrap(packet(*found[1:]))
    with pytest.raises(WrongKeyError, match=r"the token has no such private key for it$"):
        hsm.identity("token=team;id=%04").unwrap(packet(*found))


def test_the_key_of_an_encrypted_layer_is_unwrapped_by_a_token(hsm: Hsm) -> None:
    hsm.key("team", "layers", "01")
    hsm.key("team", "others", "02")
    private = PrivateOptions(SecretKey.generate(), f"sha256:{'a' * 64}", bytes(16)).pack()
    others = [Pkcs11Recipient.from_words(f"pkcs11:token=team;id=%0{number}") for number in (2, 1)]
    annotations = packets.wrap(private, others)
    assert list(annotations) == ["org.opencontainers.image.enc.keys.pkcs11"]
    assert packets.unwrap(annotations, [hsm.identity("token=team;id=%01")]) == private
    with pytest.raises(WrongKeyError, match=r"it is for keys of: pkcs11$"):
        packets.unwrap(annotations, [hsm.identity("token=team;id=%03")])


def test_a_key_of_another_token_does_not_open(hsm: Hsm) -> None:
    hsm.token("other")
    hsm.key("team", "layers", "01")
    hsm.key("other", "layers", "01")
    slot = slot_for("pkcs11:token=team")
    other = hsm.identity("token=other")
    with pytest.raises(WrongKeyError, match=r"the slots here take: pkcs11$"):
        open_slots([slot], Identities((other,)), bytes(16))
    assert other.unwrap(slot_for("pkcs11:token=other")) == PACKET
    with pytest.raises(UsageError, match=r"^pkcs11:object=layers: 2 tokens are meant; add token="):
        hsm.identity("object=layers").unwrap(slot)
    with pytest.raises(CisfsError, match=r"^pkcs11:token=third: no such token in /usr/lib/softhsm"):
        hsm.identity("token=third").unwrap(slot)


def test_a_wrong_pin_is_tried_once(hsm: Hsm) -> None:
    """A real token locks itself after three."""
    hsm.key("team", "layers", "01")
    slot = slot_for("pkcs11:token=team")
    identity = hsm.identity("token=team", "canary-wrong")
    words = r"^pkcs11:token=team: the token says: pin incorrect$"
    with pytest.raises(CisfsError, match=words):
        identity.unwrap(slot)
    (hsm.directory / "tokens").rename(hsm.directory / "gone")
    with pytest.raises(CisfsError, match=words):  # it did not look
        identity.unwrap(slot)
    with pytest.raises(CisfsError, match=r"^pkcs11:token=team: the token says: general error$"):
        hsm.identity("token=team").unwrap(slot)


def test_a_certificate_stands_for_its_public_key(hsm: Hsm) -> None:
    key = hsm.key("team", "layers", "01")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "layers")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    hsm.in_session(
        "[each.destroy() for each in session.get_objects({A.CLASS: O.PUBLIC_KEY})];"
        "session.create_object({A.CLASS: O.CERTIFICATE, A.TOKEN: True, A.PRIVATE: False,"
        "A.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509, A.LABEL: 'layers',"
        f"A.SUBJECT: b'x', A.VALUE: bytes.fromhex('{certificate.hex()}')}})"
    )
    recipient = Pkcs11Recipient.from_words("pkcs11:token=team;object=layers")
    assert recipient.public.fingerprint == PublicKey.of(key.public_key()).fingerprint
    with pytest.raises(UsageError, match=r"no such RSA public key or certificate in the token"):
        Pkcs11Recipient.from_words("pkcs11:token=team;object=other")


def test_an_altered_slot_does_not_open(hsm: Hsm) -> None:
    hsm.key("team", "layers", "01")
    slot = slot_for("pkcs11:token=team")
    wrapped = json.loads(b64decode(str(slot["wrapped"])))
    wrapped["recipients"][0]["blob"] = "eA=="
    altered = {**slot, "wrapped": b64(json.dumps(wrapped).encode())}
    with pytest.raises(CisfsError, match=r"^pkcs11:token=team: "):
        hsm.identity("token=team").unwrap(altered)


def test_a_small_key_is_refused(hsm: Hsm) -> None:
    hsm.key("team", "layers", "01", bits=1024)
    with pytest.raises(UsageError, match=r"it is an RSA key of 1024 bits, not of 2048"):
        slot_for("pkcs11:token=team")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("__builtin_trap();", r"ended by signal (4|5|11)"),
        ("for (;;) pause();", r"no answer within 2 s"),
        ("_exit(0);", r"it answered nothing that can be read"),
        ("return 5;", r"the token says: general error"),
    ],
)
def test_a_module_that_fails_takes_nobody_along(
    hsm: Hsm, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    source, module = hsm.directory / "module.c", hsm.directory / "module.so"
    source.write_text(
        f"#include <unistd.h>\nunsigned long C_GetFunctionList(void **list) {{ {body} }}\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", module, source], check=True)
    monkeypatch.setenv(TIMEOUT_VARIABLE, "2")
    with pytest.raises(CisfsError, match=f"^pkcs11:token=team: {words}$"):
        Pkcs11Recipient.from_words(f"pkcs11:token=team?module-path={module}")
