"""`cisfs lock`: the end of `cisfs unlock`.

Parses, calls `cisfs.layer`, `cisfs.keys.keyring` and `cisfs.runtime.usage`.  One call per process.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from cisfs.cli.stop import seconds

if TYPE_CHECKING:
    from pathlib import Path

    from cisfs.mount.mounted import Mounted
    from cisfs.runtime.usage import User

_KEY = re.compile("[0-9a-f]{32}")  # the id of one, as keyrings have it

HELP = "forget the key of an unlocked vault or sealed layer"

_EPILOG = """\
Containers and mounts that are running keep their own copies of the key, and go on.  With --stop,
which takes root, every container that uses the layer is stopped once the key is gone, and is named
when nothing of it is left: those of engines and those of "cisfs run".  They are sent their stop
signal (SIGTERM where the engine does not say), and are killed when they have not ended after some
seconds.  What "cisfs mount" has mounted stays, and is named: "cisfs umount" ends it.

A layer opens again, without being unlocked, if its key is in the key directory.

A layer that is gone, damaged or replaced is locked by its key, as "cisfs status" shows it.

examples:
  cisfs lock private.cis
  cisfs lock 1bead00bcafcc2ca2cebe148b28e777b
  cisfs lock --all --stop --time 30
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "layer", metavar="LAYER", nargs="?", help="the vault or sealed layer, or a key's id"
    )
    one.add_argument("--all", action="store_true", help="forget the keys of all layers")
    parser.add_argument(
        "--stop", action="store_true", help="then stop the containers that use the layer"
    )
    parser.add_argument(
        "-t",
        "--time",
        metavar="SECONDS",
        type=seconds,
        default=10.0,
        help="with --stop, how long to wait before killing (default: 10)",
    )


def run(args: argparse.Namespace) -> int:
    """Lock; return 0, also when there was nothing to lock."""
    from cisfs.layer import opening, store

    if args.all:
        _forget_all()
        if args.stop:
            _stop(args.time, lambda _: True, lambda _: True)
        return 0
    if _KEY.fullmatch(args.layer) and not os.path.lexists(args.layer):
        _lock(f"key {args.layer}", None, args.layer, args)
    else:
        path = store.resolve_from_here(args.layer)
        _lock(str(path), path.resolve(), opening.key_id(path, whole=False), args)
    return 0


def _lock(name: str, real: Path | None, key: str, args: argparse.Namespace) -> None:
    """Lock what has a key; `real` is where it is, if that is known."""
    from cisfs.keys import keyring

    print(f"locked {name}" if keyring.forget(key) else f"{name} was not unlocked", flush=True)
    if args.stop:
        _stop(args.time, lambda user: user.uses(real, key), lambda each: each.layer == real)


def _forget_all() -> None:
    from cisfs.keys import keyring

    count = keyring.forget_all()
    print(f"locked {count} layer{'' if count == 1 else 's'}" if count else "none was unlocked")


def _stop(seconds: float, uses: Callable[[User], bool], shows: Callable[[Mounted], bool]) -> None:
    """Stop the containers that use what was locked; name the mounts that stay.

    Raises CisfsError that names those that go on.
    """
    from cisfs.errors import CisfsError
    from cisfs.mount import mounted
    from cisfs.runtime import usage

    try:
        wanted = [user for user in usage.users() if uses(user)]
    except PermissionError:
        raise CisfsError("only root can stop containers: none was stopped") from None
    left = []
    for user, error in usage.stop_all(wanted, seconds):
        if error is None:
            print(f"stopped {user.name}", flush=True)
        else:
            left.append(str(error))
    for each in filter(shows, mounted.mounted()):
        print(f"still mounted at {each.mountpoint}: {each.layer}", flush=True)
    if left:
        raise CisfsError("; ".join(left))
