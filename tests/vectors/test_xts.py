"""AES-256-XTS: published vectors, longer ones from a second implementation, and one trap."""

from __future__ import annotations

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cisfs.crypto.units import UnitCipher, VersionedCipher
from tests.unit.vaults import same
from tests.vectors import published, reference_xts

CAVP = "ciphers/AES/XTS/tweak-dataunitseqno/XTSGenAES256.rsp"
TAG_KEY = bytes(32)
KEY = bytes(range(64))

# IEEE Std 1619-2007, annex B: vector 10 (512 bytes, unit 255) begins and ends like this.
IEEE_10_KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
IEEE_10_PLAIN = bytes(range(256)) * 2
IEEE_10_FIRST = bytes.fromhex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b")
IEEE_10_LAST = bytes.fromhex("c4f36ffda9fcea70b9c6e693e148c151")


def encrypted(key: bytes, unit: int, plain: bytes) -> bytes:
    out = bytearray(len(plain))
    UnitCipher(key, TAG_KEY).encrypt_into(unit, plain, out)
    return bytes(out)


def decrypted(key: bytes, unit: int, cipher: bytes) -> bytes:
    out = bytearray(len(cipher))
    UnitCipher(key, TAG_KEY).decrypt_into(unit, cipher, out)
    return bytes(out)


def test_nist_cavp_vectors_of_whole_blocks() -> None:
    checked = 0
    for record in published.records(CAVP):
        if int(record["dataunitlen"]) % 128:
            continue  # cisfs pads to whole blocks and never steals ciphertext
        key, unit = bytes.fromhex(record["key"]), int(record["dataunitseqnumber"])
        plain, cipher = bytes.fromhex(record["pt"]), bytes.fromhex(record["ct"])
        assert encrypted(key, unit, plain) == cipher
        assert decrypted(key, unit, cipher) == plain
        checked += 1
    assert checked >= 600


def test_ieee_1619_vector_10() -> None:
    cipher = encrypted(IEEE_10_KEY, 0xFF, IEEE_10_PLAIN)
    assert cipher.startswith(IEEE_10_FIRST)
    assert cipher.endswith(IEEE_10_LAST)
    assert decrypted(IEEE_10_KEY, 0xFF, cipher) == IEEE_10_PLAIN


def test_the_second_implementation_agrees_with_the_published_vectors() -> None:
    cipher = reference_xts.encrypt(IEEE_10_KEY, 0xFF, IEEE_10_PLAIN)
    assert cipher.startswith(IEEE_10_FIRST)
    assert cipher.endswith(IEEE_10_LAST)
    for record in list(published.records(CAVP))[::50]:
        if int(record["dataunitlen"]) % 128 == 0:
            key, unit = bytes.fromhex(record["key"]), int(record["dataunitseqnumber"])
            assert (
                reference_xts.decrypt(key, unit, bytes.fromhex(record["ct"])).hex()
                == (record["pt"])
            )


@pytest.mark.parametrize("length", [16, 48, 512, 4096, 16384, 65536])
@pytest.mark.parametrize("unit", [0, 1, 255, 256, 2**32 + 5, 2**62])
def test_long_units_agree_with_the_second_implementation(length: int, unit: int) -> None:
    plain = bytes(at * 7 % 251 for at in range(length))
    cipher = encrypted(KEY, unit, plain)
    assert same(cipher, reference_xts.encrypt(KEY, unit, plain))
    assert same(decrypted(KEY, unit, cipher), plain)


def test_two_updates_of_one_context_restart_the_tweak() -> None:
    """Why one data unit is one context and one update: split, the unit is encrypted wrongly.

    If this fails, `cryptography` has changed, and the rule in cisfs.crypto.units may be relaxed.
    """
    plain = bytes(64)
    context = Cipher(algorithms.AES(KEY), modes.XTS(bytes(16))).encryptor()
    pieces = context.update(plain[:32]) + context.update(plain[32:])
    assert pieces != encrypted(KEY, 0, plain)
    assert pieces[:32] == pieces[32:]


def test_the_version_of_a_unit_is_the_upper_half_of_its_tweak() -> None:
    key, plain = bytes(range(96)), bytes(range(256)) * 16
    cipher = VersionedCipher(bytearray(key))
    out = bytearray(len(plain))
    cipher.encrypt_into(5, plain, out, 7)
    assert out == reference_xts.encrypt(key[:64], 5 | 7 << 64, plain)
    cipher.decrypt_into(5, bytes(out), out, 7)
    assert out == plain


def test_the_tag_of_a_unit_speaks_of_its_number_and_version() -> None:
    key, data = bytes(range(96)), b"ciphertext"
    cipher = VersionedCipher(bytearray(key))
    context = (5).to_bytes(8, "little") + (7).to_bytes(8, "little")
    assert cipher.tag(5, 7, data) == blake3(data + context, key=key[64:]).digest(16)
    assert len({cipher.tag(*each, data) for each in [(5, 7), (5, 8), (6, 7), (7, 5)]}) == 4
