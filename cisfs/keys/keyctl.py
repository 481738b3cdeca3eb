"""The system calls of the kernel's keyrings, which neither Python nor glibc offers: keyrings(7).

Thin: each function is one call, and a failure is an OSError.  Does not know whose keys these are,
nor what is in them.  "Possession" is the calling thread's; safe in any thread.
"""

from __future__ import annotations

import ctypes
import os
import struct

# <asm/unistd.h>: add_key and keyctl.  The rest have the table of <asm-generic/unistd.h>.
_NUMBERS = {
    "armv7l": (309, 311),
    "i686": (286, 288),
    "ppc64le": (269, 271),
    "s390x": (278, 280),
    "x86_64": (248, 250),
}
_GENERIC = (217, 219)  # aarch64, loongarch64, riscv64

# <linux/keyctl.h>
THREAD_KEYRING = -1  # gone with the thread, and with execve(2); a fork begins without one
USER_KEYRING = -4
_SETPERM = 5
_DESCRIBE = 6
_LINK = 8
_UNLINK = 9
_SEARCH = 10
_READ = 11
_SET_TIMEOUT = 15
_INVALIDATE = 21
_MOVE = 30
_MOVE_EXCL = 1

# What a possessor may do; the same bits, shifted, are those of the owner, the group and others.
VIEW, READ, WRITE, SEARCH, LINK = (bit << 24 for bit in (0x01, 0x02, 0x04, 0x08, 0x10))

MAX_PAYLOAD = 32767  # bytes of a "user" key

_libc = ctypes.CDLL(None, use_errno=True)

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def add_key(kind: bytes, description: bytes, payload: bytes | None, keyring: int) -> int:
    """Make a key in a keyring; return its serial number.

    Its possessors may do everything with it, its owner see its description, others nothing.
    """
    size = len(payload) if payload is not None else 0
    return _call(0, kind, description, payload, size, keyring)


def search(keyring: int, kind: bytes, description: bytes) -> int:
    """Return the serial number of a key in a keyring or in one linked below it."""
    return _call(1, _SEARCH, keyring, kind, description, 0)


def read(key: int) -> bytes:
    """Return the payload of a key; that of a keyring is the serial numbers in it."""
    buffer = ctypes.create_string_buffer(MAX_PAYLOAD)
    size = _call(1, _READ, key, buffer, len(buffer))
    if size > len(buffer):  # a keyring of thousands: what did not fit was not written at all
        buffer = ctypes.create_string_buffer(size)
        size = min(_call(1, _READ, key, buffer, size), size)
    return buffer.raw[:size]


def members(keyring: int) -> list[int]:
    """Return the serial numbers of what is in a keyring."""
    return [serial for (serial,) in struct.iter_unpack("=i", read(keyring))]


def describe(key: int) -> tuple[bytes, bytes]:
    """Return the type of a key and its description."""
    buffer = ctypes.create_string_buffer(MAX_PAYLOAD)
    size = _call(1, _DESCRIBE, key, buffer, len(buffer))
    kind, _, _, _, description = buffer.raw[: size - 1].split(b";", 4)
    return kind, description


def set_permissions(key: int, permissions: int) -> None:
    """Say who may do what with a key: a sum of the constants above."""
    _call(1, _SETPERM, key, permissions)


def set_timeout(key: int, seconds: int) -> None:
    """Let a key expire; 0 is never."""
    _call(1, _SET_TIMEOUT, key, seconds)


def link(key: int, keyring: int) -> None:
    """Put a key into one more keyring, in the place of one of the same type and description."""
    _call(1, _LINK, key, keyring)


def unlink(key: int, keyring: int) -> None:
    """Take a key out of a keyring; it is destroyed with its last link."""
    _call(1, _UNLINK, key, keyring)


def move(key: int, source: int, target: int, *, displace: bool) -> None:
    """Move a key to another keyring, Linux 5.3.

    FileExistsError if there is one of the same type and description, unless it is to be displaced.
    """
    _call(1, _MOVE, key, source, target, 0 if displace else _MOVE_EXCL)


def invalidate(key: int) -> None:
    """Destroy a key at once, wherever it is linked."""
    _call(1, _INVALIDATE, key)


def _call(which: int, *arguments: Argument) -> int:
    number = _NUMBERS.get(os.uname().machine, _GENERIC)[which]
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
