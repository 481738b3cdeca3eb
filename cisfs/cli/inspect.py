"""`cisfs inspect`: what a vault or sealed layer tells without its key.

Parses, calls `cisfs.layer.opening`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import json

from cisfs.cli.arguments import layer

HELP = "show what a vault or sealed layer is, without its key"

_EPILOG = """\
Nothing here is a secret, and without the key nothing of it is authenticated either.

The identity of a sealed layer names it: it covers every bit of the content, and stays the same when
its keys change.

examples:
  cisfs inspect secrets.vault
  cisfs inspect --json secrets.vault | jq .unit_size
  cisfs inspect --json secrets.cis | jq -r .identity
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layer", metavar="LAYER", type=layer, help="the vault or sealed layer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the description; return 0."""
    from cisfs.layer.opening import describe

    described = describe(args.layer)
    if args.json:
        print(json.dumps(described, indent=2))
        return 0
    for key, value in described.items():
        print(f"{key.replace('_', ' ')}: {_text(value)}")
    return 0


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"\n  {number}: {_text(item)}" for number, item in enumerate(value, 1))
    return str(value)
