"""The digest of what is in a compressed layer, found as its bytes pass by.

skopeo wraps this one with the key, instead of the compressed layer's, when it compresses and
encrypts on one way.  gzip by the standard library, zstd by its program.  Knows no encryption.
Nothing is kept; one thread besides the caller's, while there is zstd.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import threading
import zlib
from contextlib import suppress
from typing import IO

from cisfs.errors import FormatError, UsageError

_PIECE = 1 << 20


def unpacked_digest(layer: IO[bytes], media_type: str, max_size: int) -> str | None:
    """Return the digest of a layer's tar, None for a layer that is not compressed.

    Raises FormatError if it is damaged, UsageError if the tar is of more than `max_size` bytes or
    there is no program for it, what reading `layer` raises.
    """
    if media_type.endswith("+gzip"):
        return _gunzipped_digest(layer, max_size)
    if media_type.endswith("+zstd"):
        return _unzstd_digest(layer, max_size)
    return None


def _digest(file: IO[bytes] | gzip.GzipFile, max_size: int) -> str:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        size += len(piece)
        if size > max_size:
            raise UsageError(f"it unpacks to more than {max_size} bytes")
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _gunzipped_digest(layer: IO[bytes], max_size: int) -> str:
    try:
        with gzip.GzipFile(fileobj=layer, mode="rb") as unpacked:
            return _digest(unpacked, max_size)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise _damaged() from None


def _unzstd_digest(layer: IO[bytes], max_size: int) -> str:
    if shutil.which("zstd") is None:
        raise UsageError("the layer is compressed with zstd, and there is no program zstd")
    failed: list[BaseException] = []
    with subprocess.Popen(
        ["zstd", "-dcq"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        feeder = threading.Thread(target=_feed, args=(layer, program.stdin, failed))
        feeder.start()
        try:
            digest = "" if program.stdout is None else _digest(program.stdout, max_size)
        except BaseException:
            program.kill()  # nobody wants the rest
            raise
        finally:
            feeder.join()
    if failed:
        raise failed[0]
    if program.returncode:
        raise _damaged()
    return digest


def _feed(layer: IO[bytes], program: IO[bytes], failed: list[BaseException]) -> None:
    """Write a layer to a program, which may end before it has it all."""
    try:
        with suppress(BrokenPipeError), program:
            while piece := layer.read(_PIECE):
                program.write(piece)
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        failed.append(error)


def _damaged() -> FormatError:
    return FormatError("the compressed data is damaged")
