"""age as recipients and identities: https://age-encryption.org/v1, through the package pyrage.

Key slots of type `age` hold a binary age file for one recipient: an X25519 or SSH key, or a
passphrase.  Does not know files nor what is encrypted.  Pure; safe anywhere.  The package is
loaded when it is first needed: it is an extra.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from cisfs.errors import FormatError, NoMemoryError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64, from_b64
from cisfs.keys.credentials import Passphrase

TYPE = "age"
SCRYPT = "scrypt"  # the recipient of a slot for a passphrase
MAX_WORK_FACTOR = 22  # as age itself: 4 GiB of memory, some ten seconds

_MAGIC = b"age-encryption.org/v1\n"
_SCRYPT_STANZA = re.compile(rb"-> scrypt [A-Za-z0-9+/]{22} ([1-9][0-9]?)\n")
_SECRET = "AGE-SECRET-KEY-1"  # noqa: S105 - what one begins with
_PUBLIC = "age1"
_SSH = ("ssh-ed25519 ", "ssh-rsa ")
_SCRYPT_BLOCK = 1024  # bytes: 128 times r, which age fixes at 8


@dataclass(frozen=True, slots=True)
class AgeRecipient:
    """Somebody with an age key, `age1...`, or an SSH key, `ssh-ed25519 ...` or `ssh-rsa ...`."""

    text: str

    @classmethod
    def parse(cls, text: str) -> AgeRecipient:
        """Read a recipient as people write it.  Raises UsageError."""
        found = cls(" ".join(text.split()[:2]))  # an SSH key may have a comment
        found._recipient()
        return found

    @property
    def type(self) -> str:
        """`age`."""
        return TYPE

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields: `recipient`, the text, and `wrapped`, an age file."""
        return {
            "recipient": self.text,
            "wrapped": b64(_pyrage().encrypt(packet, [self._recipient()])),
        }

    def _recipient(self) -> object:
        pyrage = _pyrage()
        kind = pyrage.ssh if self.text.startswith(_SSH) else pyrage.x25519
        try:
            return kind.Recipient.from_str(self.text)
        except pyrage.RecipientError as error:
            raise UsageError(f"{self.text[:100]!a} is no age recipient: {error}") from None


@dataclass(frozen=True, slots=True)
class AgeIdentity:
    """An age or SSH private key; `recipient` is its public half, as in `AgeRecipient`."""

    key: object = field(repr=False)
    recipient: str
    name: str

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether a slot is of type `age`, and of no other recipient as far as it says."""
        return slot["type"] == TYPE and slot.get("recipient", "") in ("", self.recipient)

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot.  Raises WrongKeyError, FormatError."""
        pyrage = _pyrage()
        try:
            return bytes(pyrage.decrypt(_file(slot), [self.key]))
        except pyrage.DecryptError:
            raise WrongKeyError("an age file was made for another key, or was altered") from None


@dataclass(frozen=True, slots=True)
class ScryptRecipient:
    """Whoever knows a passphrase, in age's way; its cost is what takes this machine a second."""

    passphrase: Passphrase

    @property
    def type(self) -> str:
        """`age`."""
        return TYPE

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields: `recipient`, `scrypt`, and `wrapped`, an age file."""
        wrapped = _pyrage().passphrase.encrypt(packet, _text(self.passphrase))
        return {"recipient": SCRYPT, "wrapped": b64(wrapped)}


@dataclass(frozen=True, slots=True)
class ScryptIdentity:
    """A passphrase, for the slots of type `age` that take one."""

    passphrase: Passphrase
    name: str = "passphrase"

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether a slot is of type `age` and takes a passphrase."""
        return slot["type"] == TYPE and slot.get("recipient") == SCRYPT

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot.

        Raises WrongKeyError; FormatError, also for a cost out of bounds; NoMemoryError.
        """
        pyrage, data = _pyrage(), _file(slot)
        _check_cost(data)
        try:
            return bytes(pyrage.passphrase.decrypt(data, _text(self.passphrase)))
        except pyrage.DecryptError:
            raise WrongKeyError("wrong passphrase for an age file, or it was altered") from None


def recipients_in(data: bytes, where: str) -> list[AgeRecipient]:
    """Read a recipients file: one a line, comments with "#".  Raises UsageError."""
    found = [_recipient_in(line, where) for line in _lines(data, where)]
    if not found:
        raise UsageError(f"there is no recipient in {where}")
    return found


def _recipient_in(line: str, where: str) -> AgeRecipient:
    if line.startswith(_SECRET):
        raise UsageError(f"{where} has an age identity, which is private; name its public half")
    if not line.startswith((_PUBLIC, *_SSH)):  # not repeated: it may be anything, also a secret
        raise UsageError(f"{where} has a line that is no age recipient")
    return AgeRecipient.parse(line)


def identities_in(data: bytes, where: str) -> list[AgeIdentity]:
    """Read an identity file: AGE-SECRET-KEY-1 lines, comments with "#".  Raises UsageError."""
    pyrage = _pyrage()
    found = []
    for line in _lines(data, where):
        try:
            if not line.startswith(_SECRET):
                raise UsageError(f"{where} has a line that is no X25519 key of age")
            key = pyrage.x25519.Identity.from_str(line)
        except pyrage.IdentityError:  # whose words are about a secret
            raise UsageError(f"{where} has a line that is no X25519 key of age") from None
        found.append(AgeIdentity(key, str(key.to_public()), where))
    if not found:
        raise UsageError(f"there is no identity in {where}")
    return found


def ssh_identity(data: bytes, where: str) -> AgeIdentity:
    """Read an OpenSSH private key that is not encrypted, Ed25519 or RSA.  Raises UsageError."""
    pyrage = _pyrage()
    try:
        public = load_ssh_private_key(data, None).public_key()
        recipient = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
        return AgeIdentity(pyrage.ssh.Identity.from_buffer(data), recipient, where)
    except (ValueError, TypeError, UnsupportedAlgorithm, pyrage.IdentityError):
        raise UsageError(
            f"{where} is no SSH key that age takes: Ed25519 or RSA, and not encrypted"
        ) from None


def looks_like_identities(data: bytes) -> bool:
    """Tell whether bytes look like an identity file."""
    return any(line.startswith(b"AGE-") for line in data.splitlines())


def _pyrage() -> Any:  # noqa: ANN401 - the package has no types
    try:
        import pyrage  # type: ignore[import-untyped]
    except ImportError:
        missing = "age keys need the Python package pyrage; install it with: pip install cisfs[age]"
        raise UsageError(missing) from None
    module: ModuleType = pyrage
    return module


def _lines(data: bytes, where: str) -> list[str]:
    try:
        lines = [line.strip() for line in data.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"{where} is no file of age recipients or identities") from None
    return [line for line in lines if line and not line.startswith("#")]


def _file(slot: SlotFields) -> bytes:
    data = from_b64(slot.get("wrapped"), "a key slot's wrapped key")
    if not data.startswith(_MAGIC):
        raise FormatError("a key slot's wrapped key is not an age file")
    return data


def _check_cost(data: bytes) -> None:
    """Refuse what a hostile file would have us compute: pyrage goes far beyond what age does."""
    stanza = _SCRYPT_STANZA.match(data, len(_MAGIC))
    if stanza is None:
        raise FormatError("an age file does not begin with one passphrase")
    factor = int(stanza[1])
    if factor > MAX_WORK_FACTOR:
        raise FormatError(f"an age file's scrypt work factor is not from 1 to {MAX_WORK_FACTOR}")
    try:  # pyrage would end the process
        mmap.mmap(-1, _SCRYPT_BLOCK << factor).close()
    except OSError:
        raise NoMemoryError(
            f"an age file takes {_SCRYPT_BLOCK << factor >> 20} MiB of memory to try a "
            "passphrase, which is not to be had here"
        ) from None


def _text(passphrase: Passphrase) -> str:
    try:
        return passphrase.secret.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("age takes no passphrase that is not UTF-8") from None
