"""Files of detached signatures: LAYER.cis.sig beside a layer, or anywhere.

They prove themselves, so it does not matter who put them there.  Does not know which signatures
are wanted (`cisfs.layer.admission`).  Files appear whole or not at all; any number of
processes may add to one.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cisfs.errors import FormatError, UnsupportedVersionError, UsageError
from cisfs.format.signatures import MAX_SIZE, Signature, SignatureFile, added
from cisfs.layer.wholefile import whole_file
from cisfs.layer.writing import write_all

SUFFIX = ".sig"

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait for ever


def beside(layer: Path) -> Path:
    """Return where the signatures of a layer are looked for."""
    return layer.with_name(layer.name + SUFFIX)


def read(path: Path) -> SignatureFile:
    """Read a file of signatures, none of them checked.

    Raises FormatError or UnsupportedVersionError, which name it; OSError.
    """
    fd = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError(f"{path} is no file of signatures: it is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_SIZE + 1)
    finally:
        os.close(fd)
    try:
        if len(data) > MAX_SIZE:
            raise FormatError("it is too large")
        return SignatureFile.parse(data)
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{path}: {error}") from None
    except FormatError as error:
        raise FormatError(f"{path} is no file of signatures, or damaged: {error}") from None


def add(path: Path, identity: str, signature: Signature) -> None:
    """Put a signature into the file at `path`, which is made if there is none.

    Raises UsageError if the file is of another layer or full, what `read` raises, OSError.
    """
    with _alone_in(path.parent):
        _add(path, identity, signature)


def _add(path: Path, identity: str, signature: Signature) -> None:
    try:
        held = read(path)
    except FileNotFoundError:
        held = SignatureFile(identity, ())
    if held.identity != identity:
        raise UsageError(
            f"{path} has signatures of another layer, {held.identity}; remove it, or name another"
        )
    try:
        signatures = added(held.signatures, signature)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    with whole_file(path, replace=True) as fd:
        write_all(fd, SignatureFile(identity, signatures).pack())


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Let no other of us add signatures in a directory: each puts a new file in the place of one.

    Waits for those that do.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
