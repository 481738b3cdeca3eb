"""`cisfs sign`: put a publisher's signature on a sealed layer.

Parses, asks for the password of the signing key, calls `cisfs.layer`.  One call per process.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cisfs.cli.arguments import layer

HELP = "sign a sealed layer, for those who ask who made it"

_EPILOG = """\
What is signed is the layer's identity, which covers every bit of its content, and neither its name
nor its keys: a signature lasts when keys are added or removed.  No key of the layer is needed; make
sure that LAYER is the one that you sealed, by the identity that is shown.

The signature goes to LAYER.sig, beside others that are there already, to be kept beside the layer;
with --embed it goes into the layer itself.

"cisfs verify --signer" checks it, and the trust policy, /etc/cisfs/policy.toml, can ask for it
before a layer is used.

examples:
  cisfs keygen --signing -o publisher.key
  cisfs sign secrets.cis --key publisher.key
  cisfs sign secrets.cis --key publisher.key:file=password --embed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("layer", metavar="LAYER", type=layer, help="the sealed layer")
    parser.add_argument(
        "--key",
        metavar="FILE",
        required=True,
        help="the private Ed25519 key, in PEM; FILE:file=PATH or FILE:fd=N say where its password "
        "is, which else is asked for",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="where to write (default: LAYER.sig)"
    )
    where.add_argument("--embed", action="store_true", help="write into the layer")


def run(args: argparse.Namespace) -> int:
    """Sign; return 0."""
    from cisfs.format.signatures import spelled_signer
    from cisfs.keys import signing
    from cisfs.layer import detached, sealed_file

    identity = sealed_file.stored(args.layer)[0].identity
    signature = signing.signature_of(signing.signing_key(args.key), identity)
    where = args.layer if args.embed else args.output or detached.beside(args.layer)
    if args.embed:
        sealed_file.embed(args.layer, identity, signature)
    else:
        detached.add(where, identity, signature)
    print(f"signed {identity} as {spelled_signer(signature.signer)}, in {where}")
    return 0
