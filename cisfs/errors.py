"""Every exception that cisfs raises on purpose, with the exit code each one ends a command with.

Knows nothing of what raises or catches them.  Immutable classes; safe anywhere.

    CisfsError                        1   anything else that went wrong, said in one line
    +-- UsageError                    2   the command line asks for something that cannot be
    +-- NotAVaultError               10   there is no vault or sealed layer at that path
    +-- FormatError                  11   bytes that cisfs never writes: damaged or truncated
    |   +-- UnsupportedVersionError  13   written by a newer cisfs
    +-- IntegrityError               16   well-formed, but no key holder wrote it: forged
    +-- AbsentError                  24   that part of a layer has not been fetched yet
    +-- WrongKeyError                12   the passphrase or key offered opens no key slot
    +-- NoKeyError                   14   no passphrase or key was offered at all
    +-- NoMemoryError                20   a key slot takes more memory than there is
    +-- BusyError                    15   in use: locked by another mount or command
    +-- MountError                   17   the mount point will not do, or mounting failed
    |   +-- NoFuseError              18   this machine or container has no usable /dev/fuse
    +-- DamageFound                  19   `verify` ran to its end and found damage
    +-- UntrustedError               21   a signature that is asked for is missing or wrong
    +-- RegistryError                22   a registry refused, failed, or sent what cannot be right
    |   +-- UnreachableError         22   no answer, a broken connection, or "later": may heal
    |   +-- LoginError               22   it wants a login, or this one may not do that
    |   +-- NotFoundError            22   it has no such repository, manifest or blob
    |   +-- RangeIgnoredError        22   it sends whole blobs only
    |   +-- WrongContentError        22   it sent other bytes than the digest or size asked for
    +-- BaseMismatchError            23   a sealed layer and what lies below do not belong together
    +-- EngineError                 125   `run` itself failed before the container's command began

Exit codes are part of the interface: scripts test for them, and none is ever reused (a registry's
errors share one: how to tell them apart is for programs that import this).  A caller's own mistake
raises ValueError, and the operating system's errors pass through as OSError.
"""

from __future__ import annotations

from typing import ClassVar


class CisfsError(Exception):
    """Base of all: one line that names the object and the next step, and an exit code."""

    exit_code: ClassVar[int] = 1


class UsageError(CisfsError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class NotAVaultError(CisfsError):
    """There is no vault or sealed layer at that path."""

    exit_code = 10


class FormatError(CisfsError):
    """Bytes that no version of cisfs writes: damaged, truncated or foreign."""

    exit_code = 11


class WrongKeyError(CisfsError):
    """The passphrase or key offered opens no key slot."""

    exit_code = 12


class UnsupportedVersionError(FormatError):
    """Well-formed as far as can be told, and written by a newer cisfs."""

    exit_code = 13


class NoKeyError(CisfsError):
    """No passphrase or key was offered, and there is no terminal to ask at."""

    exit_code = 14


class NoMemoryError(CisfsError):
    """A key slot takes more memory than there is."""

    exit_code = 20


class BusyError(CisfsError):
    """Another mount or command holds the vault or layer."""

    exit_code = 15


class IntegrityError(CisfsError):
    """Well-formed bytes that no key holder wrote: altered, moved or forged."""

    exit_code = 16


class AbsentError(CisfsError):
    """That part of a layer has not been fetched yet: `units` of it, `doubtful` if damaged here."""

    exit_code = 24

    def __init__(self, message: str, units: range = range(0), *, doubtful: bool = False) -> None:
        super().__init__(message)
        self.units = units
        self.doubtful = doubtful


class MountError(CisfsError):
    """The mount point will not do, or mounting or unmounting failed."""

    exit_code = 17


class NoFuseError(MountError):
    """This machine or container has no usable /dev/fuse."""

    exit_code = 18


class DamageFound(CisfsError):
    """`verify` ran to its end and found damage, all of it named already."""

    exit_code = 19


class UntrustedError(CisfsError):
    """A signature that the policy or the user asks for is missing or wrong; or the policy is."""

    exit_code = 21


class RegistryError(CisfsError):
    """A registry refused, failed, or sent what cannot be right."""

    exit_code = 22


class UnreachableError(RegistryError):
    """No answer, a broken connection, or "not now": the same may succeed later."""


class LoginError(RegistryError):
    """The registry wants a login, or the one it got may not do what was asked."""


class NotFoundError(RegistryError):
    """The registry has no such repository, manifest or blob."""


class RangeIgnoredError(RegistryError):
    """The registry sends whole blobs, whatever part is asked for."""


class WrongContentError(RegistryError):
    """The registry sent other bytes than the digest or size asked for."""


class BaseMismatchError(CisfsError):
    """A sealed layer is bound to another base than the one below it."""

    exit_code = 23


class EngineError(CisfsError):
    """`run` failed before the container's command began; docker's 125."""

    exit_code = 125


def in_words(error: CisfsError | OSError) -> str:
    """Return what to say of an error: the operating system's without their numbers."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    name = error.filename
    if isinstance(name, bytes):
        name = name.decode(errors="surrogateescape")
    return f"{name}: {error.strerror}"
