"""`cisfs verify`: read a whole vault and say what is damaged.

Parses, asks for the key, calls `cisfs.layer.verify`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.layer.verify import Finding

HELP = "read everything in a vault and name what is damaged"

_EPILOG = """\
Each damaged file is named with the number of its damaged unit and what is wrong with it.  The vault
must not be mounted read-write meanwhile.

--salvage mends what a crash can have left half done, such as the authentication tag of a unit that
was being overwritten; it says what it mended, and changes nothing else.  Damage of any other kind
takes a backup.

exit status: 0 when all is well or mended, 19 when damage remains.

examples:
  cisfs verify secrets.vault
  cisfs verify --json --key-file vault.key secrets.vault
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.credentials import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("vault", metavar="VAULT", type=Path, help="the vault")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--salvage", action="store_true", help="mend what a crash left half done")
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Verify; return 0 or DamageFound's exit code, everything having been said."""
    from cisfs.errors import DamageFound
    from cisfs.keys.credentials import from_options
    from cisfs.layer.vault import Vault
    from cisfs.layer.verify import verify

    vault = Vault.open(
        args.vault,
        lambda: from_options(args, purpose=f"passphrase for {args.vault}"),
        read_only=not args.salvage,
    )
    try:
        report = _print_json if args.json else _print_lines
        damaged = report(args.vault, verify(vault, salvage=args.salvage))
    finally:
        vault.close()
    return DamageFound.exit_code if damaged else 0


def _print_lines(vault: Path, findings: Iterable[Finding]) -> int:
    """Print each finding as it comes, and a summary; return how many remain damaged."""
    mended = damaged = 0
    for finding in findings:
        mended += finding.mended
        damaged += not finding.mended
        where = finding.path if finding.unit is None else f"{finding.path}: unit {finding.unit}"
        print(f"{where}: {finding.problem}{' (mended)' if finding.mended else ''}", flush=True)
    if not damaged and not mended:
        print(f"{vault}: everything is whole")
    else:
        print(f"{vault}: {mended} mended, {damaged} damaged")
    return damaged


def _print_json(vault: Path, findings: Iterable[Finding]) -> int:
    """Print all findings as one document; return how many remain damaged."""
    found = [
        {
            "path": finding.path,
            "unit": finding.unit,
            "problem": finding.problem,
            "mended": finding.mended,
        }
        for finding in findings
    ]
    damaged = sum(not finding["mended"] for finding in found)
    print(json.dumps({"vault": str(vault), "damaged": damaged, "findings": found}, indent=2))
    return damaged
