"""`cisfs ps`: the containers of the embedded engine.

Parses, asks `cisfs.runtime.listing`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from cisfs.cli import table
from cisfs.format.said import printable

if TYPE_CHECKING:
    from cisfs.runtime.listing import State

HELP = "list the containers of the embedded engine"

_EPILOG = """\
Containers in the background stay on the list when they have ended, until "cisfs rm"; -a shows them.

examples:
  cisfs ps -a
  cisfs ps --json | jq -r '.[].name'
"""
_WIDTH = 30  # characters of a command line
_UNITS = (
    (86400 * 2, 86400, "days"),
    (7200, 3600, "hours"),
    (120, 60, "minutes"),
    (0, 1, "seconds"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-q", "--quiet", action="store_true", help="ids only")
    form.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the list; return 0."""
    from dataclasses import asdict

    from cisfs.runtime import listing

    states = [one.state for one in listing.containers()]
    shown = [one for one in states if args.all or one.status != listing.EXITED]
    if args.json:
        print(json.dumps([asdict(state) for state in shown], indent=2))
    elif args.quiet:
        for state in shown:
            print(state.identifier[:12])
    else:
        _print(shown)
    return 0


def _print(states: list[State]) -> None:
    rows = [("CONTAINER ID", "NAME", "IMAGE", "COMMAND", "STATUS")]
    rows += [
        (state.identifier[:12], state.name, state.image, _command(state), _status(state))
        for state in states
    ]
    print("\n".join(table.lines(rows)))


def _command(state: State) -> str:
    text = printable(" ".join(state.command))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _status(state: State) -> str:
    if state.status == "running":
        return f"up {_since(state.created)}"
    if state.status == "exited":
        return f"exited ({state.exit_code}) {_since(state.ended)} ago"
    return state.status


def _since(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    length, name = next((length, name) for least, length, name in _UNITS if seconds >= least)
    return f"{seconds // length} {name}"
