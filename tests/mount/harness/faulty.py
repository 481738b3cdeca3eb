"""The cisfs command with workers that misbehave when a test tells them to.

    python -m tests.mount.harness.faulty SWITCH [no-resend] [stillborn] [forgetful] -- mount ...

SWITCH is a file that test and workers share in memory: it says what the next reads shall come to.
`no-resend`: to the kernel the notification to send requests again is unknown.  `stillborn`: no
worker lives to its first request.  `forgetful`: a worker keeps nothing of what it has read or
checked.  For `SealedLab.program`; the rest of the code is what it is.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cisfs.cli.main import main
from cisfs.layer.image_reader import ImageReader
from cisfs.layer.sealed import SealedLayer
from cisfs.mount import image, wire
from cisfs.mount.board import Seat
from cisfs.mount.session import Answer

ALWAYS = 255
_UNKNOWN_NOTIFICATION = struct.pack("<IiQ", 16, 9999, 0)


class Act(enum.IntEnum):
    """What a worker does when it is asked to read."""

    ANSWER = 0
    DIE = 1
    HANG = 2
    RAISE = 3
    DIE_UNSEEN = 4  # with the request in hand, before saying so


class Switch:
    """The acts to come, and how many; two workers at a time may take the same one."""

    def __init__(self, path: Path) -> None:
        """Share what is in the file; it is made if there is none."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)

    def set(self, act: Act, times: int = 1) -> None:
        """Have the next reads come to `act`."""
        self._memory[1] = times
        self._memory[0] = act

    @property
    def left(self) -> int:
        """How many of them are still to come."""
        return self._memory[1]

    def take(self, *acts: Act) -> Act:
        """What the read at hand shall come to, if it is one of `acts`."""
        act, left = Act(self._memory[0]), self._memory[1]
        if act not in acts or not left:
            return Act.ANSWER
        if left != ALWAYS:
            self._memory[1] = left - 1
        return act


class _Forgetful:
    """Reads each time with a new reader."""

    def __init__(self, reader: Callable[[], ImageReader]) -> None:
        self._reader = reader

    def read(self, offset: int, size: int) -> memoryview:
        return self._reader().read(offset, size)


def obey(switch: Switch) -> None:
    """Make the workers of this process, and of those forked from it, look at the switch."""
    read, take = image.ImageServer._read, Seat.take

    def faulty_read(self: image.ImageServer, request: wire.Request) -> Answer | None:
        act = switch.take(Act.DIE, Act.HANG, Act.RAISE)
        if act is Act.DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        while act is Act.HANG:
            signal.pause()
        if act is Act.RAISE:
            raise KeyError("unforeseen")
        return read(self, request)

    def faulty_take(self: Seat, number: int) -> None:
        if switch.take(Act.DIE_UNSEEN) is Act.DIE_UNSEEN:
            os.kill(os.getpid(), signal.SIGKILL)
        take(self, number)

    patch.object(image.ImageServer, "_read", faulty_read).start()
    patch.object(Seat, "take", faulty_take).start()


def be_without_resending() -> None:
    """Have the kernel refuse to send requests again, as one before Linux 6.9 does."""
    patch.object(wire, "NOTIFY_RESEND", _UNKNOWN_NOTIFICATION).start()


def be_stillborn() -> None:
    """Let no worker live to its first request."""

    def serve(_self: image.ImageServer) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    patch.object(image.ImageServer, "serve", serve).start()


def be_forgetful() -> None:
    """Let workers keep nothing of what they have read or checked."""
    reader = SealedLayer.reader

    def forgetful(layer: SealedLayer, **options: Any) -> image.Readable:
        return _Forgetful(partial(reader, layer, **options))

    patch.object(SealedLayer, "reader", forgetful).start()


FLAGS = {
    "no-resend": be_without_resending,
    "stillborn": be_stillborn,
    "forgetful": be_forgetful,
}


if __name__ == "__main__":
    ours, theirs = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    obey(Switch(Path(ours[0])))
    for flag in ours[1:]:
        FLAGS[flag]()
    sys.exit(main(theirs))
