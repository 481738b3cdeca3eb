"""`cisfs status`: which layers are unlocked, mounted and used here.

Parses, asks `cisfs.runtime.status`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from cisfs.cli import table
from cisfs.format.said import printable

if TYPE_CHECKING:
    from cisfs.runtime.status import Status

HELP = "show which layers are unlocked, mounted and used by containers"

_EPILOG = """\
LAYER is a path, or the name of a layer in /var/lib/cisfs/layers.  Without any, all that are known
here are shown: those in that directory, those that are mounted or used by a container, and pulled
layers and persistent scratches that are unlocked; and last the keys whose layers are elsewhere, by
their ids.

Unlocked means that "cisfs unlock" keeps the key.  A locked layer opens all the same for whoever has
its key, and for containers if it is in the key directory, /etc/cisfs/keys.  Each user sees their
own keys; which containers there are, only root does.

--json prints a list with an object for each layer:
  layer       its path, or null
  key         the id of its key in hexadecimal, or null
  state       "unlocked", "locked", or "unreadable", and then "error" says why
  until       when it is locked again, in seconds since 1970, or null
  stops       whether containers that use it are stopped then
  mounted     where "cisfs mount" has mounted it: a list of paths
  containers  a list of those that use it, each with "name", "id" and "kind", "embedded" for
              containers of "cisfs run" and "runtime" for those of engines; null unless root asks

examples:
  cisfs status
  cisfs status --json private.cis | jq -r '.[0].containers[].name'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layers", metavar="LAYER", nargs="*", help="a vault or sealed layer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the table; return 0."""
    from cisfs.layer import store
    from cisfs.runtime import status

    named = [store.resolve_from_here(each) for each in args.layers]
    found = status.of_layers(named) if named else status.of_all()
    if args.json:
        print(json.dumps([_fields(each) for each in found], indent=2))
        return 0
    rows = [("LAYER", "STATE", "MOUNTED AT", "CONTAINERS"), *map(_row, found)]
    print("\n".join(table.lines(rows)))
    return 0


def _state(each: Status) -> str:
    if each.trouble:
        return "unreadable"
    return "locked" if each.terms is None else "unlocked"


def _fields(each: Status) -> dict[str, object]:
    terms = each.terms
    ends = terms is not None and terms.until != float("inf")
    fields: dict[str, object] = {
        "layer": str(each.path) if each.path is not None else None,
        "key": each.key or None,
        "state": _state(each),
        "until": terms.until if terms is not None and ends else None,
        "stops": terms.stops if terms is not None else False,
        "mounted": list(map(str, each.mountpoints)),
        "containers": None,
    }
    if each.users is not None:
        fields["containers"] = [
            {"name": user.name, "id": user.identifier, "kind": user.kind} for user in each.users
        ]
    return {**fields, **({"error": each.trouble} if each.trouble else {})}


def _row(each: Status) -> tuple[str, str, str, str]:
    users = "?" if each.users is None else ", ".join(user.name for user in each.users)
    return (
        printable(str(each.path)) if each.path is not None else f"key {each.key}",
        _until(each),
        printable(", ".join(map(str, each.mountpoints))) or table.NOTHING,
        users or table.NOTHING,
    )


def _until(each: Status) -> str:
    if each.terms is None or each.terms.until == float("inf"):
        return _state(each)
    then = ", then stopped" if each.terms.stops else ""
    return f"unlocked until {table.moment(each.terms.until)}{then}"
