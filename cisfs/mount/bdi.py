"""How the kernel reads ahead on a device and writes back to it: /sys/class/bdi.

Each block device, FUSE mount and EROFS mount from a file has an entry there, which only root may
change: what is refused stays as it was.  Does not know what is on a device.  Stateless; safe
anywhere.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_DIRECTORY = Path("/sys/class/bdi")
_READ_AHEAD_KIB = "1024"
_KERNELS_READ_AHEAD_KIB = "128"
_MOST_DIRTY = 256 << 20  # bytes; writing back begins at half of it


def name_of(device: int) -> str:
    """Return a device number as the kernel writes it, "major:minor", which is a name here, too."""
    return f"{os.major(device)}:{os.minor(device)}"


def names(beginning: str) -> set[str]:
    """Return the names of all entries that begin so."""
    try:
        return {name for name in os.listdir(_DIRECTORY) if name.startswith(beginning)}
    except OSError:
        return set()


def read_ahead(name: str) -> None:
    """Make the kernel read ahead 1 MiB instead of 128 KiB."""
    _set(name, {"read_ahead_kb": _READ_AHEAD_KIB})


def write_soon(name: str) -> None:
    """Have what is written go to the device before there is much of it, as far as that can be set.

    By default the kernel begins when a tenth of the memory is to be written, and then whoever waits
    for it waits long; also, that much memory cannot be had back without the device's server.  Linux
    6.2.
    """
    _set(name, {"strict_limit": "1", "max_bytes": str(_MOST_DIRTY)})


def restore(name: str) -> None:
    """Set a device back to the kernel's defaults: the next user of its number may be anybody."""
    _set(name, {"strict_limit": "0", "max_ratio": "100", "read_ahead_kb": _KERNELS_READ_AHEAD_KIB})


def _set(name: str, settings: dict[str, str]) -> None:
    for setting, value in settings.items():
        with contextlib.suppress(OSError):  # without root, or a kernel that lacks it
            (_DIRECTORY / name / setting).write_text(value)
