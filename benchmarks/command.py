"""What the benchmarks of mounted systems share: options, signals, rounds and places to work.

Knows nothing of what is measured.  One thread.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

MEMORY = Path("/dev/shm")  # the sources lie here, so that no disk is read while writing is timed
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def options(
    name: str, purpose: str, trials: Iterable[str], systems: Iterable[str]
) -> argparse.ArgumentParser:
    """Return the parser of the options that all of them have."""
    trials, systems = list(trials), list(systems)
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=purpose)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--quick", action="store_true", help="a small smoke test, never saved")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where to work: on the disk of interest"
    )
    parser.add_argument(
        "--only", type=_names(trials), default=trials, metavar="TRIALS", help=", ".join(trials)
    )
    parser.add_argument(
        "--systems", type=_names(systems), default=systems, metavar="NAMES", help=", ".join(systems)
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser


def run(name: str, action: Callable[[], None]) -> int:
    """Do it as root, so that it ends in good order whatever happens; return the exit code."""
    if os.geteuid() != 0:
        print(f"benchmarks.{name}: needs root, to drop the kernel's caches", file=sys.stderr)
        return 1
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        action()
    except subprocess.CalledProcessError as error:
        said = error.stderr or ""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        print(f"benchmarks.{name}: {error}", *said.splitlines()[-3:], sep="\n", file=sys.stderr)
        return 1
    except (OSError, RuntimeError) as error:
        print(f"benchmarks.{name}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def places(disk: Path) -> Iterator[tuple[Path, Path]]:
    """Yield an empty directory on the disk and one in memory, gone afterwards, however it ends."""
    with (
        tempfile.TemporaryDirectory("-cisfs-bench", dir=disk.resolve()) as work,
        tempfile.TemporaryDirectory("-cisfs-bench", dir=MEMORY) as memory,
    ):
        yield Path(work), Path(memory)


def _names(known: list[str]) -> Callable[[str], list[str]]:
    """Return an argument type: names out of `known`, with commas between."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
        return names

    return parse


def _stop(number: int, _frame: object) -> NoReturn:
    """Turn a signal into an exit, so that every `finally` runs, undisturbed by further ones."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)
