"""`cisfs init`: make a vault.

Parses, asks for the key, calls `cisfs.layer.vault`.  One call per process.
"""

from __future__ import annotations

import argparse

from cisfs.cli.arguments import path, unit_size

HELP = "make a new, empty vault"

_EPILOG = """\
VAULT is a directory: a new one, or an empty one.  It holds nothing but encrypted files from then
on, and may be copied, backed up and synchronised as it is while it is not mounted.

There is no way in without the passphrase or key.  Keep a copy of it.  "cisfs key" adds others.

examples:
  cisfs init secrets.vault
  cisfs keygen -o me.key && cisfs init -r me.key.pub secrets.vault
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_making_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("vault", metavar="VAULT", type=path, help="directory to make")
    parser.add_argument(
        "--unit-size",
        metavar="SIZE",
        type=unit_size,
        help="bytes encrypted together, a power of two from 4K to 1M: less suits small writes to "
        "large files, more suits large reads (default: 32K)",
    )
    add_making_options(parser)


def run(args: argparse.Namespace) -> int:
    """Make the vault; return 0."""
    from cisfs.keys.options import recipients
    from cisfs.layer import vault

    size = vault.DEFAULT_UNIT_SIZE if args.unit_size is None else args.unit_size
    purpose = f"new passphrase for {args.vault}"
    vault.create(args.vault, recipients(args, purpose), unit_size=size)
    print(f"made vault {args.vault}; next: cisfs mount {args.vault} DIRECTORY")
    return 0
