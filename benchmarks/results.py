"""Append a benchmark's outcome to benchmarks/results; nothing there is ever overwritten.

Knows nothing of what was measured.  One writer at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.facts import CHECKOUT

DIRECTORY = CHECKOUT / "benchmarks" / "results"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table that reads well as text and renders as Markdown: first column left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def number(value: float | None, digits: int = 2) -> str:
    """Write a figure for a table; nothing for one that was not measured."""
    return "" if value is None else f"{value:.{digits}f}"


def section(title: str, facts: Mapping[str, str], table: str, notes: Sequence[str] = ()) -> str:
    """Return one run as a Markdown section."""
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n\n".join([f"## {title}", told + ".", table, *notes]) + "\n"


def append_markdown(name: str, text: str) -> Path:
    """Append a section to benchmarks/results/NAME.md and return the file's path."""
    return _append(DIRECTORY / f"{name}.md", "\n" + text)


def append_json(name: str, record: Mapping[str, object]) -> Path:
    """Append one line to benchmarks/results/NAME.jsonl and return the file's path."""
    return _append(DIRECTORY / f"{name}.jsonl", json.dumps(record) + "\n")


def _append(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text if file.tell() else text.lstrip("\n"))
    hand_over(path)
    return path


def hand_over(path: Path) -> None:
    """Leave a result of a run through sudo, and its directory, to whom the checkout belongs."""
    owner = CHECKOUT.stat()
    for made in (path.parent, path):
        if os.geteuid() == 0:
            os.chown(made, owner.st_uid, owner.st_gid)
