"""How recipients and identities are written on a command line.

Does not know what they open.  Reads files and asks at the terminal; one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import UsageError
from cisfs.keys import credentials
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.keys.wrapping import Identity, Recipient

if TYPE_CHECKING:
    from cisfs.keys.encodings import Password

RECIPIENTS = """\
recipients, each with a key slot of its own:
  FILE, jwe:FILE         a public key: PEM, DER, a certificate or a JWK; RSA or elliptic curve
  age1..., ssh-ed25519 ...,
  ssh-rsa ..., age:FILE  of age or SSH, or a file of such, one a line
  pkcs11:URI             a token's RSA key (RFC 7512)
  provider:NAME[:TEXT]   whoever the key provider NAME unwraps for
  passphrase[:FILE]      a passphrase, asked for or on the first line of FILE
  age-passphrase[:FILE]  the same, kept in age's way
  key-file:FILE          the 32 bytes in FILE
"""
IDENTITIES = """\
identities, tried one after the other:
  FILE                   a private key: PEM, DER or JWK, an age identity file, an SSH key for age,
                         or a key file's 32 bytes.  A password for it is asked for, or comes from
                         FILE:file=PATH or FILE:fd=NUMBER
  pkcs11:URI             a token's key (RFC 7512), with module-path and pin-source
  provider:NAME          a key provider of /etc/cisfs/keyproviders.json
"""

_PASSWORD_SOURCES = ("file", "fd")
_OF_AGE = ("age1", "ssh-ed25519 ", "ssh-rsa ")


def recipients(text: str) -> list[Recipient | Passphrase | RawKey]:
    """Read a recipient as RECIPIENTS has it; a file may name several.

    Raises UsageError, NoKeyError for a passphrase that is not to be had.
    """
    kind, colon, rest = text.partition(":")
    read = _RECIPIENTS.get(kind)
    if read is not None and (colon or kind in _ASKED):
        return read(rest)
    if text.startswith(_OF_AGE):
        return _age(text)
    return _public_key(text)


def identities(text: str) -> list[Identity | RawKey]:
    """Read an identity as IDENTITIES has it; a file may hold several.

    Raises UsageError, NoKeyError or WrongKeyError when the file is encrypted.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "pkcs11":
        from cisfs.keys.pkcs11 import Pkcs11Identity

        return [Pkcs11Identity(text)]
    if colon and kind == "provider":
        from cisfs.keys.provider import ProviderIdentity

        name, _, parameters = rest.partition(":")
        return [ProviderIdentity(_named(text, name), parameters)]
    from cisfs.keys.identity_files import load_identities

    path, password = with_password(text)
    return load_identities(path, password)


def _public_key(name: str) -> list[Recipient | Passphrase | RawKey]:
    from cisfs.keys.encodings import load_public
    from cisfs.keys.jwe import JweRecipient
    from cisfs.keys.private_files import read_public

    data = read_public(Path(name))
    begins = tuple(each.encode() for each in (*_OF_AGE, "AGE-", "#"))
    if data.startswith(begins) and b"-----BEGIN" not in data:
        raise UsageError(f"{name} is of age or SSH: write age:{name}")
    return [JweRecipient(load_public(data, name))]


def _age(text: str) -> list[Recipient | Passphrase | RawKey]:
    from cisfs.keys import age
    from cisfs.keys.private_files import read_public

    if text.startswith(_OF_AGE):
        return [age.AgeRecipient.parse(text)]
    data = read_public(Path(text), "recipients file")
    return [*age.recipients_in(data, text)]


def _token(rest: str) -> list[Recipient | Passphrase | RawKey]:
    from cisfs.keys.pkcs11 import Pkcs11Recipient

    return [Pkcs11Recipient.from_words(f"pkcs11:{rest}")]


def _provider(rest: str) -> list[Recipient | Passphrase | RawKey]:
    from cisfs.keys.provider import ProviderRecipient

    name, _, parameters = rest.partition(":")
    return [ProviderRecipient(_named(f"provider:{rest}", name), parameters)]


def _passphrase(rest: str) -> list[Recipient | Passphrase | RawKey]:
    return [_new_passphrase(rest)]


def _age_passphrase(rest: str) -> list[Recipient | Passphrase | RawKey]:
    from cisfs.keys.age import ScryptRecipient

    return [ScryptRecipient(_new_passphrase(rest))]


def _key_file(rest: str) -> list[Recipient | Passphrase | RawKey]:
    return [credentials.key_file(Path(rest))]


def _new_passphrase(file: str) -> Passphrase:
    if file:
        return credentials.from_file(Path(file))
    return credentials.typed(
        "new passphrase",
        confirm=True,
        instead="no terminal to ask for a passphrase at: say where it is, with passphrase:FILE",
    )


_RECIPIENTS: dict[str, Callable[[str], list[Recipient | Passphrase | RawKey]]] = {
    "jwe": _public_key,
    "age": _age,
    "pkcs11": _token,
    "provider": _provider,
    "passphrase": _passphrase,
    "age-passphrase": _age_passphrase,
    "key-file": _key_file,
}
_ASKED = ("passphrase", "age-passphrase")


def _named(text: str, name: str) -> str:
    if not name:
        raise UsageError(f"{text!r} names no key provider")
    return name


def with_password(text: str) -> tuple[Path, Password]:
    """Split FILE:file=PATH and FILE:fd=NUMBER; without these a password is asked for.

    Nothing is read before the password is called for.  Raises UsageError.
    """
    name, colon, source = text.rpartition(":")
    kind, equals, value = source.partition("=")
    if not colon or not equals or kind not in ("pass", *_PASSWORD_SOURCES):
        path = Path(text)
        instead = f"{path} is encrypted: say where its password is, with {path}:file=PATH"
        return path, cache(lambda: credentials.typed(f"password of {path}", instead=instead).secret)
    if kind == "pass":
        raise UsageError(
            "a password on the command line can be read by everybody: write FILE:file=PATH"
        )
    source_path = Path(value) if kind == "file" else _descriptor(value)
    return Path(name), partial(_password, source_path)


def _password(path: Path) -> bytes:
    return credentials.from_file(path).secret


def _descriptor(value: str) -> Path:
    if not value.isascii() or not value.isdigit():
        raise UsageError(f"{value!r} is no number of a file descriptor")
    return Path(f"/dev/fd/{int(value)}")
