"""`cisfs init`: make a vault.

Parses, asks for the key, calls `cisfs.layer.vault`.  One call per process.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a new, empty vault"

_EPILOG = """\
VAULT is a directory: a new one, or an empty one.  It holds nothing but encrypted files from then
on, and may be copied, backed up and synchronised as it is while it is not mounted.

There is no way in without the passphrase or key.  Keep a copy of it.

examples:
  cisfs init secrets.vault
  (umask 077; head -c 32 /dev/urandom > vault.key) && cisfs init --key-file vault.key secrets.vault
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.credentials import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("vault", metavar="VAULT", type=Path, help="directory to make")
    parser.add_argument(
        "--unit-size",
        metavar="SIZE",
        type=_size,
        help="bytes encrypted together, a power of two from 4K to 1M: less suits small writes to "
        "large files, more suits large reads (default: 32K)",
    )
    add_key_options(parser)


def _size(text: str) -> int:
    """Parse "16384", "16K" or "1M"; the range is the format's to check."""
    factor = {"K": 1024, "M": 1024 * 1024}.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isascii() or not digits.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 16384 or 16K")
    size = int(digits) * factor
    if not 4096 <= size <= 1024 * 1024 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 4K to 1M")
    return size


def run(args: argparse.Namespace) -> int:
    """Make the vault; return 0."""
    from cisfs.keys.credentials import from_options
    from cisfs.layer import vault

    unit_size = vault.DEFAULT_UNIT_SIZE if args.unit_size is None else args.unit_size
    purpose = f"new passphrase for {args.vault}"
    credential = from_options(args, purpose=purpose, confirm=True)
    vault.create(args.vault, credential, unit_size=unit_size)
    print(f"made vault {args.vault}; next: cisfs mount {args.vault} DIRECTORY")
    return 0
