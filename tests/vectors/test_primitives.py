"""Published vectors of the other primitives, through the libraries and the calls cisfs uses."""

from __future__ import annotations

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cisfs.crypto.keys import SecretKey, derive
from tests.vectors import published

# The official test_vectors.json of BLAKE3: its key, its input rule, and the first 32 bytes.
BLAKE3_KEY = b"whats the Elvish word for friend"
BLAKE3_KEYED = {
    0: "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26",
    1: "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b",
    1024: "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4",
}


def test_blake3_keyed_hash() -> None:
    for length, expected in BLAKE3_KEYED.items():
        data = bytes(at % 251 for at in range(length))
        assert blake3(data, key=BLAKE3_KEY).hexdigest() == expected
        in_pieces = blake3(data[:7], key=BLAKE3_KEY)
        in_pieces.update(data[7:])
        assert in_pieces.digest(16).hex() == expected[:32]


def test_aes_siv_of_rfc_5297_and_openssl() -> None:
    checked = set()
    for record in published.records("ciphers/AES/SIV/openssl.txt"):
        key = bytes.fromhex(record["key"])
        names = sorted(name for name in record if name.startswith("aad"))
        associated = [bytes.fromhex(record[name]) for name in names]
        plain = bytes.fromhex(record["plaintext"])
        sealed = bytes.fromhex(record["tag"] + record["ciphertext"])
        assert AESSIV(key).encrypt(plain, associated) == sealed
        assert AESSIV(key).decrypt(sealed, associated) == plain
        checked.add(len(key))
    assert checked == {32, 48, 64}


def test_hkdf_sha256_of_rfc_5869() -> None:
    checked = 0
    for record in published.records("KDF/rfc-5869-HKDF-SHA256.txt"):
        okm = derive(
            SecretKey(bytes.fromhex(record["ikm"])),
            bytes.fromhex(record.get("salt", "")),
            bytes.fromhex(record.get("info", "")),
            int(record["l"]),
        )
        assert okm.hex() == record["okm"]
        checked += 1
    assert checked >= 3


def test_argon2id_of_rfc_9106() -> None:
    record = next(published.records("KDF/argon2id.txt"))
    kdf = Argon2id(
        salt=bytes.fromhex(record["salt"]),
        length=int(record["length"]),
        iterations=int(record["iter"]),
        lanes=int(record["lanes"]),
        memory_cost=int(record["memcost"]),
        ad=bytes.fromhex(record["ad"]),
        secret=bytes.fromhex(record["secret"]),
    )
    assert kdf.derive(bytes.fromhex(record["pass"])).hex() == record["output"]
    assert record["output"] == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
