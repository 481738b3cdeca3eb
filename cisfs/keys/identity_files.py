"""Files with private keys, of all the kinds that open key slots: told apart by their content.

Does not know who may read them (`cisfs.keys.private_files`) nor what they open.  One thread at a
time for each path.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.errors import UsageError
from cisfs.keys.credentials import KEY_SIZE, RawKey
from cisfs.keys.encodings import Password, is_encoded_key, load_private
from cisfs.keys.private_files import read_private
from cisfs.keys.wrapping import Identity

_SSH_BLOCK = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def load_identities(path: Path, password: Password | None = None) -> list[Identity | RawKey]:
    """Read what opens key slots from a file, whose content says what it is.

    PEM, DER, a JWK or JWK set, an age identity file, an OpenSSH key (for age), or a key file's 32
    bytes.  `password` is called at most once, if something in it is encrypted.  Raises UsageError;
    NoKeyError if it is encrypted and there is no `password`, WrongKeyError if that is wrong.
    """
    return identities_in(read_private(path), str(path), password)


def identities_in(
    data: bytes, where: str, password: Password | None = None
) -> list[Identity | RawKey]:
    """Read the same from bytes, which messages call `where`."""
    from cisfs.keys import age

    if len(data) == KEY_SIZE:
        return [RawKey(data)]
    if age.looks_like_identities(data):
        return [*age.identities_in(data, where)]
    if data.lstrip().startswith(_SSH_BLOCK):
        return [age.ssh_identity(data, where)]
    if is_encoded_key(data):
        return _jwe_identities(data, where, password)
    raise UsageError(
        f"{where} is no private key: neither PEM, DER, a JWK, an age identity nor {KEY_SIZE} bytes"
    )


def _jwe_identities(data: bytes, where: str, password: Password | None) -> list[Identity | RawKey]:
    from cisfs.keys.jwe import JweIdentity

    keys = load_private(data, where, password)
    if len(keys) == 1:
        return [JweIdentity(keys[0], where)]
    return [JweIdentity(key, f"{where}, key {number}") for number, key in enumerate(keys, 1)]
