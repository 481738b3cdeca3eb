"""`cisfs seal` of an image: some of its layers are sealed as one, the others stay public.

Parses what only images take, calls `cisfs.runtime.images.sealing` and reports.  One call per
process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from cisfs.cli import making
from cisfs.cli.arguments import oci_layout, refuse
from cisfs.cli.reporting import progress_line

if TYPE_CHECKING:
    from cisfs.build.request import Request
    from cisfs.registry.ocicrypt.layers import Decrypting
    from cisfs.runtime.images.division import Choice
    from cisfs.runtime.images.reference import Reference
    from cisfs.runtime.images.sealing import Divided, Public
    from cisfs.runtime.images.suspects import Suspect

_SUFFIX = ".public"
_OPTIONS = ("top", "from_layer", "all_but", "public", "scrub")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options that are for images."""
    group = parser.add_argument_group("which layers of an image")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--top", metavar="N", type=int, help="the N topmost ones")
    one.add_argument(
        "--from-layer", metavar="DIGEST", help="that one, as a tar or as a blob, and all above it"
    )
    one.add_argument(
        "--all-but", metavar="IMAGE", help="all that are not of the image it was built on"
    )
    group.add_argument(
        "--public",
        metavar="oci:DIRECTORY[:NAME]",
        help="where the image of the others goes (default: beside LAYER, in NAME.public)",
    )
    group.add_argument(
        "--scrub",
        action="store_true",
        help="move what looks secret in environment and labels into the sealed layer, from where "
        "the environment comes back when it runs (but not in docker exec, podman exec, kubectl "
        "exec and health checks, since engines do not know it), and take it out of the history; "
        "where its values stay all the same, such as in commands, is said",
    )


def is_image(source: str) -> bool:
    """Whether a source is named as an image is."""
    from cisfs.runtime.images.reference import transport_of

    return transport_of(source) is not None


def refuse_options(args: argparse.Namespace) -> None:
    """Raise UsageError if options for images are given for something else."""
    refuse(args, _OPTIONS, "is for images, such as docker-daemon:NAME")


def run(args: argparse.Namespace, wanted: Request) -> int:
    """Seal and report; return 0.  Raises CisfsError, OSError."""
    from cisfs.keys import options
    from cisfs.runtime.images.sealing import divide

    reference = _reference(args.source)
    public = _public(args, reference)
    public.check(force=args.force)
    choice = _choice(args)
    recipients = options.recipients(args, f"new passphrase for {args.output}")
    signing_key = making.signing_key_of(args)
    decrypt = _decrypt(args)
    with progress_line(args, "reading") as progress:
        divided = divide(
            reference,
            choice,
            wanted,
            public,
            recipients,
            progress,
            scrub=args.scrub,
            signing_key=signing_key,
            decrypt=decrypt,
        )
    _report(args, wanted, public, divided)
    return 0


def _decrypt(args: argparse.Namespace) -> Decrypting | None:
    if not args.identity:
        return None
    from cisfs.keys.spelling import identities
    from cisfs.registry.ocicrypt.layers import Decrypting

    offered = [each for text in args.identity for each in identities(text)]
    return Decrypting(offered, args.max_size)


def _reference(text: str) -> Reference:
    from cisfs.errors import EngineError, UsageError
    from cisfs.runtime.images.reference import parse

    try:
        return parse(text)
    except EngineError as error:
        raise UsageError(str(error)) from None


def _choice(args: argparse.Namespace) -> Choice:
    from cisfs.errors import UsageError
    from cisfs.runtime.images.division import Choice
    from cisfs.runtime.images.sealing import diff_ids

    if args.top is None and args.from_layer is None and args.all_but is None:
        raise UsageError("say which layers to seal: --top N, --from-layer DIGEST, --all-but IMAGE")
    base = None if args.all_but is None else diff_ids(_reference(args.all_but))
    return Choice(args.top, args.from_layer, base)


def _public(args: argparse.Namespace, reference: Reference) -> Public:
    from cisfs.runtime.images.sealing import Public

    tag = re.search(r":([\w][\w.-]*)$", reference.rest, re.ASCII)
    name = tag[1] if tag and reference.transport != "docker-archive" else "latest"
    if args.public is None:
        return Public(args.output.with_suffix(_SUFFIX), name)
    path, given = oci_layout("--public", args.public)
    return Public(path, given or name)


def _report(args: argparse.Namespace, wanted: Request, public: Public, divided: Divided) -> None:
    if args.json:
        said = {
            **making.document(args, wanted, divided.sealed),
            "layers": divided.taken,
            "public": str(public),
            "public_digest": divided.digest,
            "public_layers": divided.kept,
            "suspects": [_described(each) for each in divided.suspects],
            "scrubbed": [_described(each) for each in divided.scrubbed],
        }
        print(json.dumps(said, indent=2))
        return
    from cisfs.runtime.images.division import can_be_scrubbed

    for each in divided.suspects:
        hint = "; --scrub takes it out" if can_be_scrubbed(each) and not args.scrub else ""
        print(f"cisfs: warning: stays public: {each}{hint}", file=sys.stderr)
    if not args.quiet:
        where = os.fspath(args.output)
        layers = "1 layer" if divided.taken == 1 else f"{divided.taken} layers"
        kept = "1 stays" if divided.kept == 1 else f"{divided.kept} stay"
        print(
            f"sealed {layers} as {where}, {divided.sealed.identity}; "
            f"{kept} public in {public}; next: cisfs run --layer {where} {public}"
        )


def _described(suspect: Suspect) -> dict[str, str]:
    return {"where": suspect.where, "name": suspect.name, "why": suspect.why}
