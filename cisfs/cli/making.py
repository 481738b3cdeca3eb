"""What commands that make a sealed layer have in common: options, the signing key, the report.

Does not know what a layer is made of.  One call per process.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cisfs.cli.arguments import path
from cisfs.cli.reporting import progress_line

if TYPE_CHECKING:
    from cisfs.build.request import Request
    from cisfs.build.seal import Sealed
    from cisfs.crypto.signatures import SigningKey
    from cisfs.keys.credentials import Opener, Recipients


def add_output_options(
    parser: argparse.ArgumentParser, force: str = "replace LAYER if it is there"
) -> None:
    """Give `parser` -o and --force, which does what `force` says."""
    parser.add_argument(
        "-o", "--output", metavar="LAYER", type=path, required=True, help="the layer to make"
    )
    parser.add_argument("--force", action="store_true", help=force)


def add_sign_option(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option that signs what is sealed."""
    parser.add_argument(
        "--sign",
        metavar="FILE",
        help="sign the layer with this private key, and put the signature into it; see cisfs sign",
    )


def signing_key_of(args: argparse.Namespace) -> SigningKey | None:
    """Return the key of `args.sign`, if there is one.  Raises as `signing.signing_key` does."""
    from cisfs.keys import signing

    return signing.signing_key(args.sign) if args.sign is not None else None


def seal_and_report(
    args: argparse.Namespace,
    wanted: Request,
    recipients: Recipients,
    vault_opener: Opener | None = None,
    signing_key: SigningKey | None = None,
) -> None:
    """Seal, and say what was made as `args.json` and `args.quiet` have it.

    Raises what `cisfs.build.seal.seal` raises.
    """
    from cisfs.build.seal import seal

    with full_disk_named(args, wanted), progress_line(args, "reading") as progress:
        sealed = seal(wanted, recipients, vault_opener, progress, signing_key)
    _report(args, wanted, sealed)


@contextlib.contextmanager
def full_disk_named(args: argparse.Namespace, wanted: Request) -> Iterator[None]:
    """Say which disk it is that becomes full.  Raises CisfsError then."""
    from cisfs.errors import CisfsError

    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CisfsError(
                f"no space left to make {args.output}: the file system of {wanted.output.parent} "
                "is full"
            ) from error
        raise


def _report(args: argparse.Namespace, wanted: Request, sealed: Sealed) -> None:
    if args.json:
        print(json.dumps(document(args, wanted, sealed), indent=2))
    elif not args.quiet:
        where = os.fspath(args.output)
        print(f"sealed {where}, {sealed.identity}; next: cisfs mount {where} DIRECTORY")


def document(args: argparse.Namespace, wanted: Request, sealed: Sealed) -> dict[str, object]:
    """Return what --json says of a sealed layer."""
    return {
        "path": str(args.output),
        "identity": sealed.identity,
        "source": wanted.kind.value,
        "entries": sealed.entries,
        "input_bytes": sealed.input_bytes,
        "image_size": sealed.image_size,
        "stored_size": sealed.stored_size,
        "unit_size": wanted.unit_size,
        "compression": wanted.compression if wanted.mkfs else None,
        "seconds": round(sealed.seconds, 3),
    }
