"""Layers encrypted as ocicrypt does it: opened when nothing was altered, and not before."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError, FormatError, IntegrityError, UsageError, WrongKeyError
from cisfs.format.config import b64
from cisfs.keys.age import AgeRecipient
from cisfs.keys.credentials import Credential, Passphrase, RawKey
from cisfs.keys.jwe import JweIdentity, JweRecipient, encrypt
from cisfs.keys.keypairs import PrivateKey, PublicKey
from cisfs.keys.pkcs11 import HASH_VARIABLE, Pkcs11Recipient
from cisfs.keys.provider import ProviderIdentity, ProviderRecipient
from cisfs.keys.wrapping import Identity, Recipient
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.layers import (
    Decrypting,
    VerifiedLayer,
    decrypt_layer,
    is_encrypted,
)
from cisfs.registry.ocicrypt.options import PrivateOptions
from cisfs.registry.ocicrypt.unpacking import unpacked_digest
from cisfs.runtime.images.origin import Decrypt
from tests.system.ocicrypt import KEYS, PUBLIC_OPTIONS, encrypt_blob
from tests.unit.test_age import PUBLIC
from tests.unit.test_provider import providers

__all__ = ["providers"]

MIB = 1 << 20
MINE = JweIdentity(PrivateKey(ec.generate_private_key(ec.SECP256R1())), "mine")
OTHER = JweIdentity(PrivateKey(ec.generate_private_key(ec.SECP384R1())), "other")
RSA = JweIdentity(PrivateKey(rsa.generate_private_key(65537, 2048)), "rsa")
TAR = mediatypes.TAR + "+encrypted"
GZIP, ZSTD = (f"{mediatypes.TAR}+{how}+encrypted" for how in ("gzip", "zstd"))

Options = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A layer made by the reference, and its parts to alter."""

    blob: bytes
    public: Options
    private: Options
    media_type: str = TAR
    digest: str | None = None  # None: of the blob
    size: int | None = None
    packets: str | None = None  # None: one, for MINE

    def open(self, directory: Path, *offered: JweIdentity) -> VerifiedLayer:
        descriptor = self.descriptor()
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.write(fd, self.blob)
            return decrypt_layer(descriptor, fd, offered or [MINE])
        finally:
            os.close(fd)

    def descriptor(self) -> Descriptor:
        private = json.dumps(self.private).encode()
        annotations = {
            "org.example": "kept",
            KEYS: packet(private) if self.packets is None else self.packets,
            PUBLIC_OPTIONS: b64(json.dumps(self.public).encode()),
        }
        found = Descriptor.of(self.blob, self.media_type, annotations=annotations)
        return replace(found, digest=self.digest or found.digest, size=self.size or found.size)


def made(plain: bytes, media_type: str = TAR) -> Made:
    encrypted = encrypt_blob(plain)
    return Made(
        encrypted.blob, json.loads(encrypted.public), json.loads(encrypted.private), media_type
    )


def packet(private: bytes, *recipients: JweIdentity) -> str:
    return b64(encrypt(private, [each.private.public for each in recipients or [MINE]]))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 5])
def test_what_the_reference_encrypts_is_opened(tmp_path: Path, size: int) -> None:
    plain = secrets.token_bytes(size)
    with made(plain).open(tmp_path) as layer:
        assert (layer.media_type, layer.digest, layer.size) == (mediatypes.TAR, digest(plain), size)
        assert b"".join(layer.pieces()) == plain
        assert b"".join(layer.pieces()) == plain
        assert layer.open().read() == plain
        assert all(len(piece) <= MIB for piece in layer.pieces())
        with layer.open() as file:
            assert b"".join(iter(lambda: file.read(100_003), b"")) == plain


@pytest.mark.parametrize("who", [MINE, RSA])
def test_each_of_several_recipients_opens_it(tmp_path: Path, who: JweIdentity) -> None:
    layer = made(b"words")
    private = json.dumps(layer.private).encode()
    several = replace(layer, packets=packet(private, RSA, MINE))
    added = replace(layer, packets=f"{packet(private, OTHER)},{packet(private, RSA, MINE)}")
    for each in (several, added):
        with each.open(tmp_path, who) as found:
            assert b"".join(found.pieces()) == b"words"


def test_a_packet_that_is_none_does_not_keep_another_from_opening(tmp_path: Path) -> None:
    layer = made(b"words")
    good = packet(json.dumps(layer.private).encode())
    for bad in ("!!", "e30", b64(b"{}")):
        with replace(layer, packets=f"{bad},{good}").open(tmp_path) as found:
            assert b"".join(found.pieces()) == b"words"
        with pytest.raises(WrongKeyError, match="no key opens the layer; tried: mine"):
            replace(layer, packets=bad + ",").open(tmp_path)


def test_a_nonce_among_the_public_options_is_taken(tmp_path: Path) -> None:
    layer = made(b"words")
    options = layer.private.pop("cipheroptions")
    layer.public["cipheroptions"] = options
    with layer.open(tmp_path) as found:
        assert b"".join(found.pieces()) == b"words"
    layer.public["cipheroptions"] = None
    with pytest.raises(FormatError, match="neither the public nor the private options have a non"):
        layer.open(tmp_path)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def gzip_of_two(data: bytes) -> bytes:
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


@pytest.mark.parametrize(
    ("media_type", "pack"), [(GZIP, gzip.compress), (GZIP, gzip_of_two), (ZSTD, zstd)]
)
def test_a_digest_of_what_was_packed_on_the_way_is_as_good(
    tmp_path: Path, media_type: str, pack: Callable[[bytes], bytes]
) -> None:
    """skopeo wraps the digest that it was given, and compresses in between."""
    if media_type == ZSTD and shutil.which("zstd") is None:
        pytest.skip("no zstd")
    tar = secrets.token_bytes(3 * MIB) + bytes(MIB)
    plain = pack(tar)
    layer = made(plain, media_type)
    layer.private["digest"] = digest(tar)
    with layer.open(tmp_path) as found:
        assert found.digest == digest(plain)
        assert b"".join(found.pieces()) == plain
    layer.private["digest"] = digest(tar + b"\0")
    with pytest.raises(IntegrityError, match="plaintext has another digest"):
        layer.open(tmp_path)
    for bad in (plain[:-4], plain + b"more"):  # all of the content is there
        damaged = made(bad, media_type)
        damaged.private["digest"] = digest(tar)
        with pytest.raises(IntegrityError, match="plaintext has another digest"):
            damaged.open(tmp_path)


class Altered(io.RawIOBase):
    """A file that turns out to have been altered."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        assert buffer
        raise IntegrityError("it was altered")


@pytest.mark.parametrize("how", ["+gzip", "+zstd"])
def test_what_is_altered_while_it_is_unpacked_is_said_to_be(how: str) -> None:
    if how == "+zstd" and shutil.which("zstd") is None:
        pytest.skip("no zstd")
    with pytest.raises(IntegrityError, match="it was altered"):
        unpacked_digest(io.BufferedReader(Altered()), how, MIB)


@pytest.mark.parametrize(("media_type", "pack"), [(GZIP, gzip.compress), (ZSTD, zstd)])
def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, media_type: str, pack: Callable[[bytes], bytes]
) -> None:
    """A kilobyte may unpack to a gigabyte, and then to another one."""
    if media_type == ZSTD and shutil.which("zstd") is None:
        pytest.skip("no zstd")
    tar = bytes(4 * MIB)
    layer = made(pack(tar), media_type)
    layer.private["digest"] = digest(tar)
    (tmp_path / "it").write_bytes(layer.blob)
    with (tmp_path / "it").open("rb") as file:
        decrypt_layer(layer.descriptor(), file.fileno(), [MINE], len(tar)).close()
        with pytest.raises(UsageError, match=r"^encrypted layer .*: it unpacks to more than 41943"):
            decrypt_layer(layer.descriptor(), file.fileno(), [MINE], len(tar) - 1)
        with pytest.raises(UsageError, match="it unpacks to more than"):
            Decrypting([MINE], len(tar) - 1)(
                layer.descriptor(), lambda: (tmp_path / "it").open("rb")
            )


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


PLAIN = b"to be kept"
GOOD = made(PLAIN)
OF_ANOTHER = made(b"of another")
Case = tuple[Made, type[CisfsError], str]
ALTERED: dict[str, Case] = {
    "ciphertext": (replace(GOOD, blob=flipped(GOOD.blob)), IntegrityError, "HMAC does not match"),
    "ciphertext, not the digest": (
        replace(GOOD, blob=flipped(GOOD.blob), digest=digest(GOOD.blob)),
        IntegrityError,
        "another content than its digest",
    ),
    "truncated": (replace(GOOD, blob=GOOD.blob[:-1]), IntegrityError, "HMAC does not match"),
    "truncated, not the size": (
        replace(GOOD, blob=GOOD.blob[:-1], size=10),
        IntegrityError,
        "ends after 9 bytes",
    ),
    "longer, not the size": (
        replace(GOOD, blob=GOOD.blob + b"x", size=10),
        IntegrityError,
        "more than 10 bytes",
    ),
    "empty": (replace(GOOD, blob=b""), IntegrityError, "HMAC does not match"),
    "of another layer": (
        replace(GOOD, blob=OF_ANOTHER.blob),
        IntegrityError,
        "HMAC does not match",
    ),
    "HMAC of another layer": (
        replace(GOOD, public=OF_ANOTHER.public),
        IntegrityError,
        "HMAC does not match",
    ),
    "key of another layer": (
        replace(GOOD, private=OF_ANOTHER.private),
        IntegrityError,
        "HMAC does not match",
    ),
    "nonce": (
        replace(GOOD, public=GOOD.public | {"cipheroptions": {"nonce": b64(bytes(16))}}),
        IntegrityError,
        "plaintext has another digest",
    ),
    "plaintext's digest": (
        replace(GOOD, private=GOOD.private | {"digest": digest(b"")}),
        IntegrityError,
        "plaintext has another digest",
    ),
    "media type": (
        replace(
            GOOD,
            media_type=GZIP,
            private=GOOD.private | {"digest": digest(b"")},
        ),
        IntegrityError,
        "plaintext has another digest",
    ),
    "cipher": (
        replace(GOOD, public=GOOD.public | {"cipher": "AES_256_CTR"}),
        FormatError,
        "another cipher than AES_256_CTR_HMAC_SHA256",
    ),
    "no cipher": (replace(GOOD, public={}), FormatError, "another cipher"),
    "HMAC too short": (
        replace(GOOD, public=GOOD.public | {"hmac": b64(bytes(31))}),
        FormatError,
        "the layer's HMAC has 31 bytes instead of 32",
    ),
    "no HMAC": (
        replace(GOOD, public={"cipher": GOOD.public["cipher"]}),
        FormatError,
        "HMAC is not",
    ),
    "key too short": (
        replace(GOOD, private=GOOD.private | {"symkey": b64(bytes(16))}),
        FormatError,
        "the layer's key has 16 bytes instead of 32",
    ),
    "nonce too short": (
        replace(GOOD, private=GOOD.private | {"cipheroptions": {"nonce": b64(bytes(12))}}),
        FormatError,
        "the nonce in the private options has 12 bytes",
    ),
    "cipher options": (
        replace(GOOD, private=GOOD.private | {"cipheroptions": []}),
        FormatError,
        "cipher options that are no object",
    ),
    "another digest": (
        replace(GOOD, private=GOOD.private | {"digest": "md5:00"}),
        FormatError,
        "no digest of sha256",
    ),
    "wrong key": (
        replace(GOOD, packets=packet(json.dumps(GOOD.private).encode(), OTHER)),
        WrongKeyError,
        r"tried: mine \(.*\); it is for keys of: jwe",
    ),
    "no packets": (replace(GOOD, packets=""), FormatError, "0 wrapped keys, not 1 to 256"),
    "many packets": (replace(GOOD, packets="AA==," * 257), FormatError, "257 wrapped keys"),
    "packet": (
        replace(GOOD, packets=b64(flipped(packet(json.dumps(GOOD.private).encode()).encode()))),
        WrongKeyError,
        "no key opens the layer",
    ),
    "not of a tar": (
        replace(GOOD, media_type="application/vnd.in-toto+json+encrypted"),
        FormatError,
        "no type of an encrypted layer",
    ),
    "not encrypted": (
        replace(GOOD, media_type=mediatypes.TAR),
        FormatError,
        "no type of an encrypted layer",
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_refused(tmp_path: Path, name: str) -> None:
    with GOOD.open(tmp_path) as good:
        assert good.size == 10
    altered, error, words = ALTERED[name]
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=f"^encrypted layer sha256:[0-9a-f]{{12}}: .*{words}") as caught:
        altered.open(tmp_path)
    assert type(caught.value) is error
    assert GOOD.private["symkey"] not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_public_options_that_are_lost_or_garbled_are_named(tmp_path: Path) -> None:
    descriptor = GOOD.descriptor()
    (tmp_path / "it").write_bytes(GOOD.blob)
    for value, words in [
        (None, "no public options"),
        ("%", "is not base64"),
        ("e30", "not base64"),
    ]:
        annotations = {k: v for k, v in descriptor.annotations.items() if k != PUBLIC_OPTIONS}
        if value is not None:
            annotations[PUBLIC_OPTIONS] = value
        with (tmp_path / "it").open("rb") as file, pytest.raises(FormatError, match=words):
            decrypt_layer(replace(descriptor, annotations=annotations), file.fileno(), [MINE])


def test_what_is_altered_after_it_was_found_authentic_does_not_come_out(tmp_path: Path) -> None:
    plain = secrets.token_bytes(2 * MIB + 7)
    layer = made(plain)
    path = tmp_path / "it"
    path.write_bytes(layer.blob)
    with (
        path.open("r+b", buffering=0) as file,
        decrypt_layer(layer.descriptor(), file.fileno(), [MINE]) as found,
    ):
        file.seek(MIB + 5)
        file.write(b"altered")
        got: list[bytes] = []
        with pytest.raises(IntegrityError, match=r"^encrypted layer .*altered while it was r"):
            got.extend(found.pieces())
        assert got == [plain[:MIB]]
        with pytest.raises(IntegrityError), found.open() as plaintext:
            plaintext.read()
        file.truncate(MIB)
        with pytest.raises(IntegrityError, match="ends after 1048576 bytes"):
            list(found.pieces())


def test_a_stream_of_a_layer_keeps_no_file_open(tmp_path: Path) -> None:
    plain = secrets.token_bytes(MIB + 7)
    layer = made(plain)
    path = tmp_path / "it"
    path.write_bytes(layer.blob)
    gc.collect()  # of the tests above
    fds = os.listdir("/proc/self/fd")
    decrypt: Decrypt = Decrypting([MINE])
    stream = decrypt(layer.descriptor(), lambda: path.open("rb"))
    assert stream.read(MIB + 8) == plain
    assert stream.read(1) == b""
    assert len(os.listdir("/proc/self/fd")) == len(fds) + 1
    del stream
    gc.collect()
    assert os.listdir("/proc/self/fd") == fds
    with pytest.raises(WrongKeyError):
        Decrypting([OTHER])(layer.descriptor(), lambda: path.open("rb"))
    assert os.listdir("/proc/self/fd") == fds


def test_kinds_of_keys_that_are_not_known_here_are_named(tmp_path: Path) -> None:
    descriptor = GOOD.descriptor()
    prefix = KEYS.removesuffix("jwe")
    annotations = {
        PUBLIC_OPTIONS: descriptor.annotations[PUBLIC_OPTIONS],
        f"{prefix}pgp": "AA==",
        f"{prefix}provider.there": "AA==",
    }
    (tmp_path / "it").write_bytes(GOOD.blob)
    offered: list[Identity | Credential] = [MINE, RawKey(bytes(32)), Passphrase(b"words")]
    with (
        (tmp_path / "it").open("rb") as file,
        pytest.raises(WrongKeyError, match=r"mine \(no packet for it\); a passphrase.*: pgp, prov"),
    ):
        decrypt_layer(replace(descriptor, annotations=annotations), file.fileno(), offered)


@pytest.mark.usefixtures("providers")
def test_a_key_provider_opens_what_it_wrapped() -> None:
    recipients: list[Recipient | Credential] = [
        ProviderRecipient("turn", "x"),
        JweRecipient(MINE.private.public),
    ]
    wrapped = packets.wrap(b"private", recipients)
    assert sorted(wrapped) == [KEYS, KEYS.replace("jwe", "provider.turn")]
    for each in (ProviderIdentity("turn"), MINE):
        assert packets.unwrap(wrapped, [each]) == b"private"


def test_a_key_that_is_too_short_for_the_options_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RSA-OAEP of 2048 bits with SHA-256 takes 190 bytes, and ocicrypt has 193."""
    monkeypatch.delenv(HASH_VARIABLE, raising=False)
    options = PrivateOptions(SecretKey(bytes(32)), digest(b""), bytes(16)).pack()
    assert len(options) == 193
    members = {**RSA.private.public.members, "alg": "RSA-OAEP-256"}
    short = Pkcs11Recipient(PublicKey.from_members(members))
    with pytest.raises(UsageError, match=r"the pkcs11 key is too short .* 193 bytes: .* 3072"):
        packets.wrap(options, [short])
    sha1 = Pkcs11Recipient(PublicKey.from_members({**members, "alg": "RSA-OAEP"}))
    assert list(packets.wrap(options, [sha1])) == [KEYS.replace("jwe", "pkcs11")]


def test_whom_ocicrypt_has_no_packets_for_is_said() -> None:
    refused: list[tuple[list[Recipient | Credential], str]] = [
        ([], "for nobody"),
        ([RawKey(bytes(32))], "no passphrases or key files"),
        ([AgeRecipient.parse(PUBLIC)], "no age recipients"),
    ]
    for recipients, words in refused:
        with pytest.raises(UsageError, match=words):
            packets.wrap(b"private", recipients)


def test_types() -> None:
    docker = "application/vnd.docker.image.rootfs.diff.tar"
    for plain, encrypted in [
        (mediatypes.TAR, TAR),
        (f"{mediatypes.TAR}+gzip", GZIP),
        (docker, TAR),
        (f"{docker}.gzip", GZIP),
        (f"{docker}.zstd", ZSTD),
    ]:
        assert mediatypes.encrypted(plain) == encrypted
        assert mediatypes.decrypted(encrypted) == mediatypes.oci(plain)
        assert mediatypes.decrypted(plain + "+encrypted") == mediatypes.oci(plain)
        assert is_encrypted(Descriptor(encrypted, digest(b""), 0))
        assert not is_encrypted(Descriptor(plain, digest(b""), 0))
    for media_type, words in [
        (TAR, "already"),
        (docker.replace("diff", "foreign.diff") + ".gzip", "foreign"),
        ("application/vnd.in-toto+json", "no layer that"),
    ]:
        with pytest.raises(UsageError, match=words):
            mediatypes.encrypted(media_type)
