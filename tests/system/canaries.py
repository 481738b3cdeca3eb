"""Looking for secrets where none may be: in files, in raw blocks, and in /proc while things run.

Finds a secret as it is and as it would be spelled: hexadecimal, base64 wherever it begins in it,
escaped as Python shows bytes, or as a list of numbers.  Half of it is enough.  Knows nothing of
cisfs.  The watcher is a process of its own; the rest is for one thread.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import stat
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_HALF = 16  # bytes
_PIECE = 1 << 24  # bytes that are searched at once
_OVERLAP = 256  # more than any spelling is long


def spellings(secret: bytes) -> dict[str, bytes]:
    """How the beginning and the end of a secret may be written, by the name of the spelling."""
    found = {}
    for place, half in (("beginning", secret[:_HALF]), ("end", secret[-_HALF:])):
        for name, spelled in _spellings(half).items():
            found[f"{name} of the {place}"] = spelled
    return found


def _spellings(half: bytes) -> dict[str, bytes]:
    found = {"bytes": half, "hex": half.hex().encode(), "HEX": half.hex().upper().encode()}
    found["escapes"] = repr(half)[2:-1].encode()
    found["numbers"] = ", ".join(map(str, half)).encode()
    found["dense numbers"] = ",".join(map(str, half)).encode()
    for before in range(3):
        # Without the characters that also depend on what stands before and after.
        first, last = -(-before * 8 // 6), (before + len(half)) * 8 // 6
        for name, encode in (("base64", b64encode), ("base64url", urlsafe_b64encode)):
            found[f"{name}+{before}"] = encode(bytes(before) + half)[first:last]
    return found


@dataclass
class Canaries:
    """Secrets by name, and what was found of them: where, and in which spelling."""

    secrets: Mapping[str, bytes]
    found: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Spell them."""
        self._needles = [
            (name, spelling, needle)
            for name, secret in self.secrets.items()
            for spelling, needle in spellings(secret).items()
        ]

    def search(self, data: bytes, where: str) -> None:
        """Look into some bytes."""
        for name, spelling, needle in self._needles:
            if needle in data:
                self.found.setdefault(name, set()).add(f"{where}, {spelling}")

    def search_file(self, path: Path) -> None:
        """Look into a file, wherever it has data."""
        with path.open("rb") as file:
            for start, end in _extents(file.fileno()):
                for offset in range(start, end, _PIECE):
                    length = min(_PIECE + _OVERLAP, end - offset)
                    self.search(os.pread(file.fileno(), length, offset), str(path))

    def search_tree(self, directory: Path) -> None:
        """Look into names, targets, attributes and files below a directory."""
        for path in (directory, *directory.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                self.search(os.fsencode(path), f"name {path}")
                for name in os.listxattr(path, follow_symlinks=False):
                    value = os.getxattr(path, name, follow_symlinks=False)
                    self.search(value, f"{path} {name}")
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    self.search(os.fsencode(path.readlink()), f"target of {path}")
                if stat.S_ISREG(mode):
                    self.search_file(path)


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


class Watcher:
    """Notes, as fast as it can, what all processes' command lines and environments say.

    And the files below some directories, which may be there for a moment only.  `said` has all of
    it when the block has ended.
    """

    def __init__(self, *directories: Path) -> None:
        """Watch /proc and the directories."""
        self._directories = directories
        self.said: set[tuple[str, bytes]] = set()
        self.passes = 0

    def __enter__(self) -> Self:
        """Fork."""
        self._results, send = os.pipe()
        self._stop, hold = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.close(hold)
                self._watch(send)
                code = 0
            finally:
                os._exit(code)
        os.close(send)
        os.close(self._stop)
        self._hold = hold
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Have it end, and take over what it has noted."""
        os.close(self._hold)
        with os.fdopen(self._results, "rb") as results:
            data = results.read()
        _, status = os.waitpid(self._pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        self.passes, self.said = pickle.loads(data)

    def _watch(self, send: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_blocking(self._stop, False)
        while True:
            for where, path in self._sources():
                with contextlib.suppress(OSError):  # it has ended, or is gone
                    self.said.add((where, path.read_bytes()))
            self.passes += 1
            with contextlib.suppress(BlockingIOError):
                os.read(self._stop, 1)
                break
        with os.fdopen(send, "wb") as results:
            pickle.dump((self.passes, self.said), results)

    def _sources(self) -> Iterator[tuple[str, Path]]:
        for name in os.listdir("/proc"):
            if name.isdigit():
                for what in ("cmdline", "environ"):
                    yield f"{what} of {name}", Path("/proc", name, what)
        for directory in self._directories:
            with contextlib.suppress(OSError):
                for path in directory.rglob("*"):
                    if stat.S_ISREG(path.lstat().st_mode):
                        yield str(path), path
