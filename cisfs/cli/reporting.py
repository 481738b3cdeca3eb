"""How much a command says: its result for people, for machines or not at all, and how far it is.

Does not know what any command does.  Safe anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.build.progress import Progress


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` --json and --quiet, of which one may be given."""
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--json", action="store_true", help="print one JSON document")
    said.add_argument("--quiet", action="store_true", help="say nothing unless something is wrong")


@contextmanager
def progress_line(args: argparse.Namespace, doing: str) -> Iterator[Progress]:
    """Yield a line that begins with what is being done, and take it away in the end.

    It is drawn on the standard error if that is a terminal and neither --json nor --quiet was
    given.
    """
    from cisfs.build.progress import Progress

    watched = sys.stderr.isatty() and not (args.json or getattr(args, "quiet", False))
    shown = Progress(sys.stderr if watched else None)
    shown.begin(doing)
    try:
        yield shown
    finally:
        shown.end()


def show(shown: Progress, doing: str, done: int, total: int) -> None:
    """Draw how many bytes of `total` are done; with other words or another total, begin anew."""
    if done == 0 or not shown.begun:
        shown.begin(doing, total)
    shown.update(done)
