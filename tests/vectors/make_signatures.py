"""Made the files in tests/vectors/signature-v1, once; kept to show how.

A vector, once committed, is never made again: it says what version 1 of the format is.  All is made
with the JSON and base64 of Python and with Ed25519; nothing here knows cisfs.

    python -m tests.vectors.make_signatures DIRECTORY

Every file is one scenario: "comment" says what it shows, "file" is the text of a file of
signatures.  Of one that is taken, "identity" is in it, "valid" and "invalid" are the signers, in
hex, whose signatures over that are right and not; of another, "refusal" is the name of the error
and words of its message.  The first signer's private key is that of RFC 8032, 7.1, test 2.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
ALICE = Ed25519PrivateKey.from_private_bytes(SEED)
BOB = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
IDENTITY = "sha256:" + bytes(range(100, 132)).hex()
ANOTHER = "sha256:" + bytes(range(101, 133)).hex()
LABEL = b"cisfs v1 layer signature\0"
ORDER = (1 << 252) + 27742317777372353535851937790883648493  # of the base point, RFC 8032, 5.1
Json = dict[str, Any]


def main(target: Path) -> None:
    """Write every scenario into a directory that has none of them."""
    for name, scenario in {**taken(), **refused()}.items():
        path = target / f"{name}.json"
        if path.exists():
            sys.exit(f"{path} is there already: a vector is never made again")
        path.write_text(json.dumps(scenario, indent=1) + "\n", "ascii")


def signer(key: Ed25519PrivateKey) -> bytes:
    """The public key."""
    return key.public_key().public_bytes_raw()


def entry(by: bytes, signature: bytes) -> Json:
    """One signature in a file."""
    return {"signer": b64encode(by).decode(), "signature": b64encode(signature).decode()}


def signed(key: Ed25519PrivateKey, identity: str = IDENTITY, label: bytes = LABEL) -> Json:
    """A signature by a key."""
    return entry(signer(key), key.sign(label + identity.encode()))


def document(*signatures: Json, **other: Any) -> Json:
    """What is in a file."""
    fields = {"format": "cisfs signature", "version": 1, "identity": IDENTITY}
    return {**fields, "signatures": list(signatures), **other}


def spelled(content: Json) -> str:
    """The text of a file."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"


def taken() -> dict[str, Json]:
    """Files that are read, and what their signatures are worth."""
    good = ALICE.sign(LABEL + IDENTITY.encode())
    flipped = bytes([good[0] ^ 1]) + good[1:]
    scalar = int.from_bytes(good[32:], "little") + ORDER
    malleable = good[:32] + scalar.to_bytes(32, "little")
    no_point = bytes([2]) + bytes(31)  # y = 2 is on no point of the curve
    found: dict[str, Json] = {}
    for name, comment, signatures, valid in [
        ("one", "one signature", [signed(ALICE)], [ALICE]),
        ("two", "of two signers, in any order", [signed(BOB), signed(ALICE)], [BOB, ALICE]),
        ("another-identity", "signed another layer", [signed(ALICE, ANOTHER)], []),
        ("no-label", "signed the identity alone", [signed(ALICE, label=b"")], []),
        (
            "label-without-end",
            "signed with a label that lacks its zero byte",
            [signed(ALICE, label=LABEL[:-1])],
            [],
        ),
        ("flipped", "one bit of the signature", [entry(signer(ALICE), flipped)], []),
        ("malleable", "S is not below the order", [entry(signer(ALICE), malleable)], []),
        ("of-other", "a signature under another's name", [entry(signer(BOB), good)], []),
        ("no-point", "a signer that is no point", [entry(no_point, good)], []),
        ("one-of-two", "one right, one wrong", [entry(signer(BOB), good), signed(ALICE)], [ALICE]),
    ]:
        right = [signer(key).hex() for key in valid]
        found[f"file-{name}"] = {
            "comment": comment,
            "file": spelled(document(*signatures)),
            "identity": IDENTITY,
            "valid": right,
            "invalid": [by for by in (_signer_in(each) for each in signatures) if by not in right],
        }
    return found


def _signer_in(signature: Json) -> str:
    return b64decode(signature["signer"]).hex()


def refused() -> dict[str, Json]:
    """Files that are none of version 1, and why."""
    one = signed(ALICE)
    good = spelled(document(one))
    many = [entry(bytes([number]) * 32, bytes(64)) for number in range(65)]
    signatures = "FormatError: signatures is not a list of 1 to 64 signatures"
    fields = "FormatError: a signature is not an object with signer and signature alone"
    others = "FormatError: it has other fields than format, version, identity and signatures"
    identity = "FormatError: its identity is not sha256: and 64 hexadecimal digits"
    canonical = "FormatError: it is not in canonical form"
    version = "FormatError: its version is not a positive number"
    scenarios = {
        "empty": ("no byte at all", "", "FormatError: it is not valid JSON"),
        "cut-off": ("half of it", good[: len(good) // 2], "FormatError: it is not valid JSON"),
        "list": ("no object", "[]\n", "FormatError: it is not a JSON object"),
        "field-twice": (
            "a field stands twice",
            good.replace('{"format"', '{"version":1,"format"', 1),
            "FormatError: it is not valid JSON (a field stands twice)",
        ),
        "format": (
            "of another kind",
            spelled(document(one, format="cisfs vault")),
            "FormatError: it does not say that it is a cisfs signature",
        ),
        "version-2": (
            "of a version to come, with whatever that has",
            spelled(document(one, version=2, more=1)),
            "UnsupportedVersionError: signature has version 2; this cisfs reads version 1",
        ),
        "version-0": ("no version", spelled(document(one, version=0)), version),
        "version-text": ("a version in quotes", spelled(document(one, version="1")), version),
        "more": ("a field that no version 1 has", spelled(document(one, name="x")), others),
        "spelling": ("white space", good.replace(":", ": ", 1), canonical),
        "no-line-end": ("no line end", good[:-1], canonical),
        "two-line-ends": ("two line ends", good + "\n", canonical),
        "identity-capitals": (
            "hexadecimal digits in capitals",
            spelled(document(one, identity=IDENTITY.upper().replace("SHA", "sha"))),
            identity,
        ),
        "identity-other-hash": (
            "another hash",
            spelled(document(one, identity=f"sha512:{IDENTITY[7:]}")),
            identity,
        ),
        "none": ("no signature", spelled(document()), signatures),
        "too-many": ("65 signatures", spelled(document(*many)), signatures),
        "no-list": ("no list", spelled(document(signatures=one)), signatures),
        "signer-twice": (
            "a signer stands twice",
            spelled(document(one, {**one, "signature": b64encode(bytes(64)).decode()})),
            "FormatError: a signer stands twice among the signatures",
        ),
        "more-in-signature": (
            "a field that no signature has",
            spelled(document({**one, "name": "alice"})),
            fields,
        ),
        "less-in-signature": (
            "a signature without its signer",
            spelled(document({"signature": one["signature"]})),
            fields,
        ),
        "signer-short": (
            "a signer of 31 bytes",
            spelled(document(entry(bytes(31), bytes(64)))),
            "FormatError: a signer has 31 bytes instead of 32",
        ),
        "signature-long": (
            "a signature of 65 bytes",
            spelled(document(entry(bytes(32), bytes(65)))),
            "FormatError: a signature has 65 bytes instead of 64",
        ),
        "base64": (
            "base64url",
            spelled(document({**one, "signer": "_" * 43 + "="})),
            "FormatError: a signer is not base64",
        ),
        "base64-loose": (
            "base64 with bits that stand for nothing",
            spelled(document({**one, "signer": "A" * 42 + "B="})),
            "FormatError: a signer is not base64 in its only spelling",
        ),
    }
    return {
        f"refused-{name}": {"comment": comment, "file": text, "refusal": words}
        for name, (comment, text, words) in scenarios.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
