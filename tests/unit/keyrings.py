"""A keyring for one test, in the real kernel, so that no test sees what its user has unlocked.

Knows where `cisfs.keys.keyring` keeps keys.  One test at a time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from cisfs.keys import keyctl, keyring

BLOCK = 1 << 16
JOIN_SESSION_KEYRING = 1  # <linux/keyctl.h>


@contextmanager
def private_ring() -> Iterator[None]:
    """Keep keys in a keyring of another name, which is gone afterwards."""
    ring = f"cisfs-test-{secrets.token_hex(4)}".encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyring, "RING", ring)
        yield
    keyctl.link(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    with suppress(OSError):
        keyctl.unlink(keyctl.search(keyctl.USER_KEYRING, b"keyring", ring), keyctl.USER_KEYRING)
    keyctl.unlink(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)


def serial_of(name: str) -> int:
    """The serial number of a kept key."""
    ring = keyctl.search(keyctl.USER_KEYRING, b"keyring", keyring.RING)
    return keyctl.search(ring, b"user", b"cisfs:" + name.encode())


def in_another_session(tell: Callable[[], object]) -> str:
    """What `tell` says in a forked process, of the same user, that possesses no keys of ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            keyctl._call(1, JOIN_SESSION_KEYRING, None)  # as a login does
            os.write(writer, str(tell()).encode())
        except OSError as error:
            os.write(writer, f"{type(error).__name__} {error.errno}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read(BLOCK)
    assert os.waitpid(pid, 0)[1] == 0
    return said.decode()
