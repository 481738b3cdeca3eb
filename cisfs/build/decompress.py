"""What a tar is compressed with, found out by its first bytes, and undone as it is read.

gzip, bzip2 and xz by the standard library; zstd by its program where there is one, which limits its
memory itself.  Knows nothing of tars.  One thread.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from cisfs.errors import FormatError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CUT_SHORT = "cut short: its end is missing"

_BUFFER = 1 << 20
MAGIC_SIZE = 6
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Each goes on with what follows its own end, as their programs do.
_DECOMPRESSORS: dict[bytes, Callable[[io.BufferedReader[Any]], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


class Readable(Protocol):
    """What can be read once, from its start to its end."""

    def read(self, most: int, /) -> bytes:
        """Return up to `most` bytes, none only at the end."""


def is_compressed(head: bytes) -> bool:
    """Tell whether a file that begins with `head`, MAGIC_SIZE bytes of it, is compressed."""
    return head.startswith((_ZSTD_MAGIC, *_DECOMPRESSORS))


class Unpacked:
    """The bytes that a descriptor or stream yields, from where it is on, after decompression.

    `compressed` tells whether there is any compression.
    """

    def __init__(self, source: int | Readable) -> None:
        """Look at the first bytes of `source`, and read on; a descriptor through a duplicate.

        Raises FormatError for an empty file, UsageError for one that is compressed with zstd where
        that cannot be undone, OSError.
        """
        self._raw: _Peekable | _Stream
        self._raw = _Peekable(os.dup(source)) if isinstance(source, int) else _Stream(source)
        self._buffered = io.BufferedReader(self._raw, _BUFFER)
        self._zstd: subprocess.Popen[bytes] | None = None
        self._pump: _Pump | None = None
        try:
            self.compressed, self._file = self._open()
        except BaseException:
            self._buffered.close()
            raise

    def read(self, most: int) -> bytes:
        """Return up to `most` bytes, none only at the end.

        Raises FormatError if what is compressed is damaged or cut short, OSError.
        """
        try:
            data = self._file.read(most)
        except EOFError:
            raise FormatError(CUT_SHORT) from None
        except (zlib.error, lzma.LZMAError) as error:
            raise _damaged(error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(error) from None  # gzip and bz2 have no class of their own
        if not data and self._pump is not None:
            self._pump.end()
        if not data and self._zstd is not None and self._zstd.wait():
            raise _damaged("zstd -t says where")
        return data

    def close(self) -> None:
        """Stop reading; a second time does nothing."""
        self._file.close()
        if self._zstd is not None:
            self._zstd.terminate()
            self._zstd.wait()
        if self._pump is not None:
            self._pump.join()  # which nobody reads for any more
        self._buffered.close()

    def _open(self) -> tuple[bool, io.BufferedIOBase | IO[bytes]]:
        head = self._raw.peek(MAGIC_SIZE)
        if not head:
            raise FormatError("empty: not a tar")
        if head.startswith(_ZSTD_MAGIC):
            return True, self._unzstd()
        for magic, decompress in _DECOMPRESSORS.items():
            if head.startswith(magic):
                return True, decompress(self._buffered)
        return False, self._buffered

    def _unzstd(self) -> IO[bytes]:
        """Have the program read the descriptor; bytes that were taken from a pipe it cannot get."""
        is_stream = isinstance(self._raw, _Stream)
        if not (is_stream or self._raw.seekable()) or shutil.which("zstd") is None:
            raise UsageError(
                "compressed with zstd: decompress it on the way, as in: "
                "zstd -dc layer.tar.zst | cisfs seal -"
            )
        self._zstd = subprocess.Popen(
            ["zstd", "-dcq"],
            stdin=subprocess.PIPE if is_stream else self._raw.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=_BUFFER,
        )
        if is_stream:
            self._pump = _Pump(self._buffered, cast("IO[bytes]", self._zstd.stdin))
        return cast("IO[bytes]", self._zstd.stdout)  # None only without PIPE


def _damaged(how: object) -> FormatError:
    return FormatError(f"the compressed data is damaged: {how}")


class _Peekable(io.FileIO):
    """A descriptor whose first bytes can be looked at, also where it is a pipe."""

    _head = b""

    def peek(self, size: int) -> bytes:
        """Return the first `size` bytes, fewer only if there are no more; they stay to be read."""
        if self.seekable():
            return os.pread(self.fileno(), size, self.tell())
        while len(self._head) < size and (more := os.read(self.fileno(), size - len(self._head))):
            self._head += more
        return self._head

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """Read, which is all that a BufferedReader asks for."""
        if not self._head:
            return super().readinto(buffer)
        into = memoryview(buffer)
        taken, self._head = self._head[: len(into)], self._head[len(into) :]
        into[: len(taken)] = taken
        return len(taken)


class _Stream(io.RawIOBase):
    """A stream whose first bytes can be looked at."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._head = b""

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def peek(self, size: int) -> bytes:
        """See `_Peekable`."""
        while len(self._head) < size and (more := self._source.read(size - len(self._head))):
            self._head += more
        return self._head

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """See `_Peekable`."""
        into = memoryview(buffer).cast("B")
        if not self._head:
            self._head = self._source.read(len(into))
        taken, self._head = self._head[: len(into)], self._head[len(into) :]
        into[: len(taken)] = taken
        return len(taken)


class _Pump(threading.Thread):
    """Feeds a program while its output is read."""

    def __init__(self, source: io.BufferedReader[Any], into: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._into = into
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Write all that the source has; what it raises is for the reader."""
        try:
            with self._into:
                while piece := self._source.read(_BUFFER):
                    self._into.write(piece)
        except BrokenPipeError:
            pass  # the program has had enough, and its exit code says why
        except BaseException as error:  # noqa: BLE001 - raised in the other thread
            self._error = error

    def end(self) -> None:
        """Wait for the end, and raise what went wrong."""
        self.join()
        if self._error is not None:
            raise self._error
