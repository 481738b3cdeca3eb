"""`cisfs push`: a public image and sealed layers, to a registry.

Parses, calls `cisfs.registry.push`, reports.  One call per process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli import push_ocicrypt
from cisfs.cli.reporting import add_report_options, progress_line, show

if TYPE_CHECKING:
    from cisfs.registry.push import Base, Pushed
    from cisfs.registry.repository import Repository

HELP = "push a public image with sealed layers to a registry"

_EPILOG = """\
IMAGE becomes an ordinary image: the public layers of BASE, with a configuration that names the
sealed layers by their identities.  Any engine pulls and runs it, without what is sealed.  The
sealed layers go to the same repository as artifacts that refer to it, encrypted as they are, and
their key slots apart from them: "cisfs key add docker://IMAGE" sends a few kilobytes.

BASE is docker://NAME, oci:DIRECTORY[:NAME], docker-archive:FILE or docker-daemon:NAME; with
--format ocicrypt, oci: only.  Nothing is sent that the registry has already, and what "cisfs key"
changed there stays: a push does not put a recipient back.

examples:
  cisfs push registry.example/team/app:1 --base docker-daemon:app-base:1 --layer private.cis
  docker run --runtime=cisfs registry.example/team/app:1
  cisfs push registry.example/team/app:1 --format ocicrypt --base oci:app:1 -r jwe:alice.pem
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.cli.registries import add_access_options
    from cisfs.keys.options import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("image", metavar="IMAGE", help="HOST/NAME[:TAG] to push to")
    parser.add_argument(
        "--base", metavar="BASE", required=True, help="the public image below the sealed layers"
    )
    parser.add_argument(
        "--layer",
        metavar="LAYER",
        action="append",
        default=[],
        dest="layers",
        help="a sealed layer, the topmost first; any number",
    )
    parser.add_argument(
        "--rebase",
        action="store_true",
        help="bind layers that were sealed for another base to BASE; takes their keys, and changes "
        "LAYER and its identity; not of pulled ones",
    )
    parser.add_argument(
        "--format",
        choices=("cisfs", "ocicrypt"),
        default="cisfs",
        help="cisfs: sealed layers over BASE (default); ocicrypt: BASE with its layers encrypted, "
        "which skopeo, podman and containerd decrypt onto their disk",
    )
    push_ocicrypt.add_arguments(parser)
    add_report_options(parser)
    add_access_options(parser)
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Push; return 0."""
    from cisfs.cli.registries import reference_of, repository_of
    from cisfs.errors import UsageError
    from cisfs.layer import store
    from cisfs.registry.push import push

    reference = reference_of(args.image)
    if reference.digest is not None or reference.tag is None:
        raise UsageError(f"{args.image}: push to a tag, not to a digest")
    if args.format == "ocicrypt":
        return push_ocicrypt.run(args, reference)
    if args.recipient or args.encrypt_layer:
        raise UsageError("-r and --encrypt-layer are for --format ocicrypt; see cisfs key add")
    if not args.layers:
        raise UsageError("name a sealed layer with --layer, or push the image with your engine")
    layers = [store.resolve_from_here(each) for each in args.layers]
    with (
        progress_line(args, "reading") as shown,
        repository_of(args, reference) as repository,
        _base(args, repository) as base,
    ):
        if args.rebase:
            _rebase(args, base, layers)
        pushed = push(repository, reference.tag, base, layers, partial(show, shown, "pushing"))
    _report(args, pushed)
    return 0


def _rebase(args: argparse.Namespace, base: Base, layers: Sequence[Path]) -> None:
    """Bind those layers that were sealed for another base to this one; they get new identities."""
    from cisfs.errors import BaseMismatchError
    from cisfs.format.sealed import check_base
    from cisfs.layer import unlocked
    from cisfs.layer.rebase import rebase
    from cisfs.layer.sealed_file import stored
    from cisfs.registry.image import diff_ids

    below = diff_ids(base.config())
    for path in layers:
        try:
            check_base(stored(path)[0], below)
        except BaseMismatchError:
            identity, lost = rebase(path, partial(unlocked.opener, path, args), below)
            signatures = f", without its {lost} signatures" if lost else ""
            print(f"bound {path} to {args.base}: it is {identity} now{signatures}", file=sys.stderr)


@contextmanager
def _base(args: argparse.Namespace, target: Repository) -> Iterator[Base]:
    """Yield the base image: in a registry, or copied to a layout, where it may lie in plain."""
    from cisfs.cli.registries import engine_failures
    from cisfs.runtime.images import reference

    with engine_failures():
        name = reference.parse(args.base)
    if name.transport == "docker":
        with _in_registry(args, name.rest.removeprefix("//"), target) as base:
            yield base
        return
    import tempfile

    from cisfs.cli.registries import machine
    from cisfs.registry.found import choose
    from cisfs.registry.layout import Layout
    from cisfs.registry.push import LayoutBase
    from cisfs.runtime.images import tools

    with tempfile.TemporaryDirectory(prefix="cisfs-push-") as directory:
        place = Path(directory, "layout")
        with engine_failures():
            tools.copy(str(name), place, "base")
        layout = Layout.open(place)
        found = layout.manifest(layout.find("base"))
        yield LayoutBase(layout, choose(found, layout.manifest, machine()))


@contextmanager
def _in_registry(args: argparse.Namespace, name: str, target: Repository) -> Iterator[Base]:
    from cisfs.cli.registries import machine, reference_of, repository_of
    from cisfs.registry.found import choose
    from cisfs.registry.push import RemoteBase

    reference = reference_of(name)
    with repository_of(args, reference) as repository:
        found = repository.manifest(reference.target)
        manifest = choose(found, repository.described, machine())
        yield RemoteBase(repository, manifest, reference.registry == target.session.registry)


def _report(args: argparse.Namespace, pushed: Pushed) -> None:
    if args.json:
        document = {
            "image": args.image,
            "digest": pushed.image,
            "artifact": pushed.layers_artifact,
            "layers": list(pushed.identities),
            "uploaded": pushed.uploaded,
            "kept_key_slots": list(pushed.kept),
        }
        print(json.dumps(document, indent=2))
    elif not args.quiet:
        for identity in pushed.kept:
            print(f"kept the key slots of {identity} that the registry has: they are later ones")
        count = len(pushed.identities)
        print(
            f"pushed {args.image}, {pushed.image}, with {count} sealed layer"
            f"{'' if count == 1 else 's'}; next: cisfs pull {args.image}"
        )
