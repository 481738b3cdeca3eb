"""`cisfs verify`: read a whole vault or sealed layer and say what is damaged.

Parses, asks for the key, calls `cisfs.layer`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli.arguments import layer
from cisfs.format.said import printable

if TYPE_CHECKING:
    from cisfs.layer.opening import Layer
    from cisfs.layer.verify import Finding

HELP = "read everything in a vault or sealed layer and name what is damaged"

_EPILOG = """\
Each damaged file of a vault is named with the number of its damaged unit and what is wrong with it.
The vault must not be mounted read-write meanwhile.  Of a sealed layer the damaged units are named,
and all processors take part.

--salvage mends what a crash can have left half done, such as the authentication tag of a unit that
was being overwritten; it says what it mended, and changes nothing else.  Damage of any other kind
takes a backup.

A sealed layer is never mended: fetch it again.

With --signer no key is needed: the signature is checked, which is embedded, in LAYER.sig or in a
file of --signature, and that the layer has the very content that was signed.  With several, all
of them must have signed.

exit status: 0 when all is well or mended, 19 when damage remains, 21 when a signature is missing or
wrong.

examples:
  cisfs verify secrets.vault
  cisfs verify --json --key-file vault.key secrets.vault
  cisfs verify --key-file layer.key secrets.cis
  cisfs verify --signer publisher.key.pub --signature secrets.cis.sig secrets.cis
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layer", metavar="LAYER", type=layer, help="the vault or sealed layer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--salvage", action="store_true", help="mend what a crash left half done")
    signed = parser.add_argument_group("signatures")
    signed.add_argument(
        "--signer",
        metavar="KEY",
        action="append",
        default=[],
        help="require the signature of this public key, a PEM file or ed25519:BASE64, and use no "
        "key of the layer",
    )
    signed.add_argument(
        "--signature",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="take signatures from FILE, too",
    )
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Verify; return 0 or DamageFound's exit code, everything having been said."""
    from cisfs.errors import DamageFound, UsageError
    from cisfs.layer import unlocked
    from cisfs.layer.opening import is_sealed, open_layer

    if args.salvage and is_sealed(args.layer):
        raise UsageError(f"{args.layer} is a sealed layer, and those are never mended")
    if args.signer:
        return _verify_signed(args)
    if args.signature:
        raise UsageError("--signature takes a --signer, whose signature is to be in it")
    layer = open_layer(
        args.layer,
        lambda: unlocked.opener(args.layer, args),
        read_only=not args.salvage,
    )
    try:
        report = _print_json if args.json else _print_lines
        damaged = report(args.layer, _findings(layer, salvage=args.salvage))
    finally:
        layer.close()
    return DamageFound.exit_code if damaged else 0


def _verify_signed(args: argparse.Namespace) -> int:
    from cisfs.errors import DamageFound, UsageError
    from cisfs.keys import signing
    from cisfs.layer import admission
    from cisfs.layer.opening import is_sealed
    from cisfs.layer.policy import Signer
    from cisfs.layer.sealed_file import carried
    from cisfs.layer.sealed_verify import verify_sealed

    if args.layer.is_dir() and not is_sealed(args.layer):
        raise UsageError(f"{args.layer} is no sealed layer, and only those can be signed")
    wanted = [Signer(signing.signer(text), text) for text in args.signer]
    with carried(args.layer) as layer:
        admission.require(layer.candidate, wanted, args.signature)
        report = _print_json if args.json else _print_lines
        damaged = report(args.layer, verify_sealed(layer))
    if not damaged and not args.json:
        print(f"{args.layer}: signed by {', '.join(args.signer)}")
    return DamageFound.exit_code if damaged else 0


def _findings(layer: Layer, *, salvage: bool) -> Iterator[Finding]:
    from cisfs.layer.sealed import SealedLayer
    from cisfs.layer.sealed_verify import verify_sealed
    from cisfs.layer.verify import verify

    if isinstance(layer, SealedLayer):
        return verify_sealed(layer)
    return verify(layer, salvage=salvage)


def _print_lines(layer: Path, findings: Iterable[Finding]) -> int:
    """Print each finding as it comes, and a summary; return how many remain damaged."""
    from cisfs.layer.lazy import units_here

    mended = damaged = 0
    for finding in findings:
        mended += finding.mended
        damaged += not finding.mended
        where = finding.path if finding.unit is None else f"{finding.path}: unit {finding.unit}"
        mark = " (mended)" if finding.mended else ""
        print(printable(f"{where}: {finding.problem}{mark}"), flush=True)
    here = units_here(layer)
    if not damaged and not mended:
        print(f"{layer}: everything {'' if here is None else 'that is here '}is whole")
    else:
        print(f"{layer}: {mended} mended, {damaged} damaged")
    if here is not None:
        print(f"{layer}: {here[0]} of {here[1]} units are here; the rest was not fetched yet")
    return damaged


def _print_json(layer: Path, findings: Iterable[Finding]) -> int:
    """Print all findings as one document; return how many remain damaged."""
    from cisfs.layer.lazy import units_here

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
    document: dict[str, object] = {"layer": str(layer), "damaged": damaged, "findings": found}
    if (here := units_here(layer)) is not None:
        document["units_here"], document["units"] = here
    print(json.dumps(document, indent=2))
    return damaged
