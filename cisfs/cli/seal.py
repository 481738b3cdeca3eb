"""`cisfs seal`: make a sealed layer of a directory, a vault, a tar or an EROFS image.

Parses, asks for the keys, calls `cisfs.build.seal` and reports.  One call per process.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli import making, seal_image
from cisfs.cli.arguments import given, refuse, size, unit_size, workers
from cisfs.cli.interruption import interruptible
from cisfs.cli.reporting import add_report_options

if TYPE_CHECKING:
    from cisfs.build.request import Kind, Request
    from cisfs.keys.credentials import Opener, Recipients

HELP = "make a sealed layer of a directory, vault, tar, EROFS image or layers of an image"

# More than registries and engines take for a layer, and what a disk for them has.
DEFAULT_MAX_SIZE = 64 << 30

_SOURCE_SECRETS = ("source_passphrase_file", "source_passphrase_command", "source_key_file")

_EPILOG = """\
SOURCE is one of

  a directory    read where it is; owners, modes, times, links, devices and extended attributes
                 are kept
  a vault        read through its key, and mounted nowhere; it must not be mounted for writing
  a tar          plain or compressed, "-" for standard input; never unpacked anywhere
  an EROFS image ready made, taken as it is
  an image       docker-daemon:NAME, docker://NAME, oci:DIRECTORY[:NAME], docker-archive:FILE[:NAME]

Of an image some layers are chosen.  They are sealed as one, which is bound to the layers below
them; those become an image of their own, in an OCI layout beside LAYER.  The configuration stays
public, but for what builders add about the build; what looks secret in it is said.

The names by which an OCI layer deletes what is below it (.wh.NAME, .wh..wh..opq) are understood in
directories and tars.

Nothing plaintext is ever written to a disk.  The image is made piece by piece as it is encrypted.
With --compression it is made by mkfs.erofs, in memory that is not swapped out or, if it is too
large for half of the free memory, in an encrypted file whose key is never stored.  That file lies
beside LAYER, in a directory .LAYER.XXXXXXXX.scratch; what a kill -9 or a power failure leaves of it
can be read by nobody, and may be deleted.

LAYER appears when it is whole, or not at all.  It is for keeps: to change it, seal it again.  There
is no way in without the passphrase or key.  Keep a copy of it.

examples:
  cisfs seal ./private-files -o private.cis
  cisfs seal --source-passphrase-file words --key-file layer.key secrets.vault -o secrets.cis
  cisfs seal --sign publisher.key ./private-files -o private.cis
  cisfs seal docker-daemon:app:1 --top 2 -o app.cis
  tar c -C private-files . | cisfs seal --key-file layer.key - -o private.cis
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_making_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="SOURCE", type=given, help="what to seal; see below")
    making.add_output_options(
        parser,
        "replace LAYER if it is there, and an image of the name that the public one gets: what no "
        "other image in its directory has is deleted",
    )
    parser.add_argument(
        "--compression",
        metavar="KIND",
        type=_compression,
        default="none",
        help="none (default), lz4, or lz4hc[,LEVEL] with a LEVEL of 1 to 12: smaller, but sealed "
        "more slowly, and listed more slowly from a cold start; takes mkfs.erofs and FUSE",
    )
    parser.add_argument(
        "--unit-size",
        metavar="SIZE",
        type=unit_size,
        help="bytes encrypted together, a power of two from 4K to 1M: less suits small reads here "
        "and there, more suits large ones (default: 64K)",
    )
    parser.add_argument(
        "--max-size",
        metavar="SIZE",
        type=size,
        default=DEFAULT_MAX_SIZE,
        help="refuse a tar of more than this when decompressed (default: 64G)",
    )
    parser.add_argument(
        "--allow-devices",
        action="store_true",
        help="take device nodes from a tar: make sure that they are meant for your machines",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=workers,
        help="processes that encrypt (default: one for each processor)",
    )
    add_report_options(parser)
    making.add_sign_option(parser)
    seal_image.add_arguments(parser)
    add_making_options(parser)
    _add_source_key_options(parser)


def _add_source_key_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "key of a vault that is sealed, or of encrypted layers of an image",
        "Without any of these, what the new layer is made for opens the vault.  For layers\n"
        "that skopeo, podman and others encrypted (ocicrypt), it is -i.",
    )
    group.add_argument(
        "-i",
        "--identity",
        metavar="IDENTITY",
        action="append",
        default=[],
        help="a private key's FILE, pkcs11:URI or provider:NAME (see cisfs key --help); any number",
    )
    one = group.add_mutually_exclusive_group()
    for name, metavar in zip(_SOURCE_SECRETS, ("FILE", "COMMAND", "FILE"), strict=True):
        option = f"--{name.replace('_', '-')}"
        kind = Path if metavar == "FILE" else str
        one.add_argument(option, metavar=metavar, type=kind, help="as above")


def _compression(text: str) -> str:
    if not re.fullmatch(r"none|lz4|lz4hc(,([1-9]|1[0-2]))?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of none, lz4, lz4hc, lz4hc,1..12")
    return text


def run(args: argparse.Namespace) -> int:
    """Seal; return 0, or 128+N when signal N ended it."""
    return interruptible(lambda: _run(args), "sealing")


def _run(args: argparse.Namespace) -> int:
    from cisfs.build import request
    from cisfs.layer.sealing import DEFAULT_UNIT_SIZE

    is_image = seal_image.is_image(args.source)
    if not is_image:
        seal_image.refuse_options(args)
    wanted = request.check(
        source=args.source,
        output=args.output,
        unit_size=DEFAULT_UNIT_SIZE if args.unit_size is None else args.unit_size,
        compression=args.compression,
        max_size=args.max_size,
        devices=args.allow_devices,
        workers=args.workers,
        force=args.force,
        name=args.source if is_image else "",
    )
    _refuse_keys(args, wanted.kind)
    if is_image:
        with making.full_disk_named(args, wanted):
            return seal_image.run(args, wanted)
    _check_standard_input(args)
    signing_key = making.signing_key_of(args)
    recipients, vault_opener = _keys(args, wanted)
    making.seal_and_report(args, wanted, recipients, vault_opener, signing_key)
    return 0


def _refuse_keys(args: argparse.Namespace, kind: Kind) -> None:
    """Raise UsageError if a key is given for a source of a kind that has none of its own."""
    from cisfs.build.request import Kind

    if kind is Kind.LAYERS:
        refuse(args, _SOURCE_SECRETS, "is for a vault; encrypted layers of an image take -i")
    elif kind is not Kind.VAULT:
        why = f"is for a vault or encrypted layers of an image, and {args.source} is neither"
        refuse(args, ("identity", *_SOURCE_SECRETS), why)


def _check_standard_input(args: argparse.Namespace) -> None:
    """Raise UsageError if two things are to be read from the standard input."""
    from cisfs.errors import UsageError

    files = (args.passphrase_file, args.source_passphrase_file)
    wanted = [str(each) for each in (args.source, *files) if each is not None]
    if wanted.count("-") > 1:
        raise UsageError("only one of the source and the passphrases can be standard input")


def _keys(args: argparse.Namespace, wanted: Request) -> tuple[Recipients, Opener | None]:
    """Return whom the layer is for, and what opens a vault that is sealed, perhaps the same."""
    from cisfs.build.request import Kind
    from cisfs.keys import credentials, options
    from cisfs.layer import unlocked

    source = argparse.Namespace(
        identity=args.identity,
        passphrase_file=args.source_passphrase_file,
        passphrase_command=args.source_passphrase_command,
        key_file=args.source_key_file,
    )
    purpose = f"new passphrase for {args.output}"
    if wanted.kind is not Kind.VAULT:
        return options.recipients(args, purpose), None
    if args.recipient or args.identity or credentials.is_given(source):
        return options.recipients(args, purpose), unlocked.opener(wanted.path, source)
    both = credentials.from_options(
        args, purpose=f"passphrase for {args.source}, and for {args.output} too"
    )
    return both, both
