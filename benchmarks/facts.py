"""What a reader of a figure must know about the machine and the programs that made it.

Knows nothing of what is measured.  Pure queries; one thread.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import cisfs

CHECKOUT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, str]:
    """Return the facts of this machine, of Python and of this checkout; no names of people."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": platform.release(),
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "cisfs": f"{cisfs.__version__} ({_commit()})",
        "cryptography": version("cryptography"),
        "blake3": version("blake3"),
    }


def first_line(*command: str) -> str:
    """Return the first line that a command prints, or "unknown" if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]


def filesystem_of(directory: Path) -> str:
    """Return the type of the filesystem that holds a directory, such as ext4."""
    return first_line("findmnt", "-n", "-o", "FSTYPE", "-T", str(directory))


def cache_drops() -> int:
    """Tell how often the kernel's page cache has been dropped since the machine started."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts.get("drop_pagecache", 0))


def available_memory() -> int:
    """Return how many bytes could be allocated without swapping (proc(5))."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(values["MemAvailable"].split()[0]) << 10  # in KiB


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    commit = first_line("git", "describe", "--always", "--dirty", "--exclude=*")
    return "no commit" if commit == "unknown" else commit
