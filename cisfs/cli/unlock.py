"""`cisfs unlock`: keep the key of a layer in the kernel's keyring, for containers to come.

Parses, asks for the key, calls `cisfs.layer` and `cisfs.keys.keyring`.  One call per process.
"""

from __future__ import annotations

import argparse
import time

from cisfs.cli.arguments import duration
from cisfs.cli.table import moment

HELP = "let containers open a vault or sealed layer for a while"

DEFAULT_TIMEOUT = "1h"

_EPILOG = """\
LAYER is a path, or the name of a layer in /var/lib/cisfs/layers.

Its key is kept in the kernel's keyring, in memory that is never swapped out, until "cisfs lock",
the timeout or a restart of the machine.  Meanwhile whatever the same user starts opens the layer
without a key: "cisfs mount", "cisfs run", and containers of engines whose runtime is cisfs-runtime,
for which root has to unlock it.  What is running goes on when the key goes; with --stop, containers
that use the layer are stopped when the time is up, also those that were running before, unless it
is unlocked anew by then.

examples:
  cisfs unlock private.cis
  cisfs unlock --timeout 8h --stop private.cis
  cisfs unlock --timeout none --key-file /etc/keys/private.key /var/lib/cisfs/layers/private.cis
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layer", metavar="LAYER", help="the vault or sealed layer")
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration,
        default=DEFAULT_TIMEOUT,
        help=f"forget the key after 30s, 15m, 1h, 2d ..., or none (default: {DEFAULT_TIMEOUT})",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="when the time is up, stop the containers that use the layer",
    )
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Unlock; return 0."""
    from cisfs.errors import UsageError
    from cisfs.keys import keyring
    from cisfs.layer import opening, unlocked
    from cisfs.registry import attach

    if args.stop and args.timeout is None:
        raise UsageError("--stop is for the end of a --timeout, and none never ends")
    path = attach.resolve_from_here(args.layer)
    name = opening.key_id(path)
    credential = unlocked.opener(path, args, kept=False)
    keyring.store(name, opening.master_key(path, credential), args.timeout, stops=args.stop)
    print(_until(args.timeout))
    return 0


def _until(seconds: int | None) -> str:
    if seconds is None:
        return "unlocked until the machine restarts"
    return f"unlocked until {moment(time.time() + seconds)}"
