"""`cisfs scratch`: the persistent scratches of this host.

Parses, calls `cisfs.runtime.scratches`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cisfs.runtime.scratches import Kept

HELP = "list and destroy what containers have kept (--scratch persistent:NAME)"

_EPILOG = """\
list shows each scratch with its limit, the space that it takes on the disk, when it was made and
last written, and the containers that use it.  As --json: a list of objects with "name", "size"
(bytes, null if it is damaged), "used" (bytes), "made" and "written" (seconds since 1970), "in_use"
and "containers" (a list of names).

destroy removes scratches for good, none of them if one is in use.  The file with their keys is
overwritten first, so that what is left on the disk can be read by nobody; but a file system or a
drive that writes elsewhere instead of over it may keep that file for a while, and so does a backup.
At a terminal it asks, unless --yes is given.

Both take root.

examples:
  cisfs scratch list
  cisfs scratch destroy --yes db cache
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = _action(actions, "list", "show all of them")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    destroying = _action(actions, "destroy", "remove some for good")
    destroying.add_argument("names", metavar="NAME", nargs="+", help="the name of a scratch")
    destroying.add_argument("-y", "--yes", action="store_true", help="do not ask")
    for action in (listing, destroying):
        action.add_argument(
            "--store",
            metavar="DIR",
            type=Path,
            default=Path("/var/lib/cisfs"),
            help="where scratches are kept, below scratch/ (default: /var/lib/cisfs)",
        )


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    description = f"{text[0].upper()}{text[1:]}; see cisfs scratch --help."
    return actions.add_parser(name, help=text, description=description, allow_abbrev=False)


def run(args: argparse.Namespace) -> int:
    """List or destroy; return 0."""
    from cisfs.runtime import scratches

    if args.action == "list":
        _print(scratches.kept(args.store), as_json=args.json)
        return 0
    with scratches.claimed(args.store, args.names) as claim:
        if not args.yes:
            _confirm(args.names)
        for name in claim.held:
            claim.destroy(name)
            print(name, flush=True)
    return 0


def _confirm(names: Sequence[str]) -> None:
    """Ask, where there is somebody to be asked.  Raises UsageError for a no."""
    from cisfs.errors import UsageError

    if not sys.stdin.isatty():
        return
    print(f"Destroy {', '.join(names)}, which nothing brings back? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was destroyed")


def _print(found: Sequence[Kept], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_fields(each) for each in found], indent=2))
        return
    rows = [("NAME", "SIZE", "USED", "MADE", "WRITTEN", "CONTAINERS"), *map(_row, found)]
    print("\n".join(table.lines(rows)))


def _fields(each: Kept) -> dict[str, object]:
    return {
        "name": each.name,
        "size": each.size,
        "used": each.used,
        "made": each.made,
        "written": each.written,
        "in_use": each.in_use,
        "containers": list(each.users),
    }


def _row(each: Kept) -> tuple[str, ...]:
    idle = "in use" if each.in_use else table.NOTHING
    return (
        each.name,
        "damaged" if each.size is None else table.size(each.size),
        table.size(each.used),
        table.moment(each.made),
        table.moment(each.written),
        ", ".join(each.users) or idle,
    )
