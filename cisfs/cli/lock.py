"""`cisfs lock`: the end of `cisfs unlock`.

Parses, calls `cisfs.layer` and `cisfs.keys.keyring`.  One call per process.
"""

from __future__ import annotations

import argparse

HELP = "forget the key of an unlocked vault or sealed layer"

_EPILOG = """\
Containers and mounts that are running keep their own copies of the key, and go on.

examples:
  cisfs lock private.cis
  cisfs lock --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("layer", metavar="LAYER", nargs="?", help="the vault or sealed layer")
    one.add_argument("--all", action="store_true", help="forget the keys of all layers")


def run(args: argparse.Namespace) -> int:
    """Lock; return 0, also when there was nothing to lock."""
    from cisfs.keys import keyring
    from cisfs.layer import opening, store

    if args.all:
        count = keyring.forget_all()
        print(f"locked {count} layer{'' if count == 1 else 's'}" if count else "none was unlocked")
        return 0
    path = store.resolve_from_here(args.layer)
    forgotten = keyring.forget(opening.key_id(path))
    print(f"locked {path}" if forgotten else f"{path} was not unlocked")
    return 0
