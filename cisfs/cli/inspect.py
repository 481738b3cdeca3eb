"""`cisfs inspect`: what a vault or sealed layer tells without its key.

Parses, calls `cisfs.layer.opening`, prints.  What is in registries is for `remote_inspect`.  One
call per process.
"""

from __future__ import annotations

import argparse
import json

from cisfs.cli.arguments import layer
from cisfs.format.said import printable

HELP = "show what a vault or sealed layer is, without its key"

_EPILOG = """\
Nothing here is a secret, and without the key nothing of it is authenticated either.

The identity of a sealed layer names it: it covers every bit of the content, and stays the same when
its keys change.

With --remote, LAYER is an image in a registry: HOST/NAME[:TAG][@DIGEST].  Shown is what anyone can
see who may pull it: which layers are public and what in the configuration looks secret, who can
open the sealed layers and who has signed them.  A little of each is downloaded from random places,
checked against the identity that the image names, and judged: plaintext does not look like that,
but what is well compressed may.  The key slots are those that the registry has now; whether their
owner put them there, only a key can tell.

examples:
  cisfs inspect secrets.vault
  cisfs inspect --json secrets.vault | jq .unit_size
  cisfs inspect --json secrets.cis | jq -r .identity
  cisfs inspect --remote registry.example/team/app:1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.cli.registries import add_access_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layer", metavar="LAYER", help="the vault or sealed layer")
    parser.add_argument(
        "--remote", action="store_true", help="LAYER is an image in a registry (or docker://LAYER)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_access_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the description; return 0."""
    from cisfs.cli.registries import PREFIX

    if args.remote or args.layer.startswith(PREFIX):
        from cisfs.cli import remote_inspect

        return remote_inspect.run(args)
    from cisfs.layer.opening import describe

    described = describe(layer(args.layer))
    if args.json:
        print(json.dumps(described, indent=2))
        return 0
    for key, value in described.items():
        print(f"{key.replace('_', ' ')}: {_text(value)}")
    return 0


def _text(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"\n  {number}: {_text(item)}" for number, item in enumerate(value, 1))
    return printable(str(value))
