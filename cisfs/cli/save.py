"""`cisfs save`: an image with sealed layers to one file, for machines without a network.

Parses, pulls what is not here, calls `cisfs.runtime.images.saving`, reports.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING

from cisfs.cli.arguments import path
from cisfs.cli.reporting import add_report_options, progress_line, show

if TYPE_CHECKING:
    from cisfs.runtime.images.saving import Saved

HELP = "save an image with sealed layers to a file"

_EPILOG = """\
FILE is an OCI archive with the sealed layers of IMAGE, encrypted as they are, and their key slots.
The public layers are named in it, for machines that have them; --with-base puts them in.

Layers that are not in the store are pulled first.

examples:
  cisfs save registry.example/team/app:1 -o app.tar --with-base
  cisfs load app.tar --engine docker               (there)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.cli.registries import add_access_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("image", metavar="IMAGE", help="HOST/NAME[:TAG]")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=path, required=True, help="the file to make"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--with-base", action="store_true", help="put the public layers in as well")
    add_report_options(parser)
    add_access_options(parser)


def run(args: argparse.Namespace) -> int:
    """Save; return 0."""
    from cisfs.cli.pull import allowed
    from cisfs.cli.registries import access_of, reference_of, repository_of
    from cisfs.layer import store
    from cisfs.layer.wholefile import whole_file
    from cisfs.registry.pull import pull
    from cisfs.runtime.images.saving import save

    reference = reference_of(args.image)
    with (
        progress_line(args, "looking") as shown,
        whole_file(args.output, replace=args.force) as fd,
        repository_of(args, reference) as repository,
    ):
        found = allowed(repository, reference)
        progress = partial(show, shown, "pulling")
        pulled = pull(repository, found.identities, store.local(), access_of(args), progress)
        shown.begin("saving")
        paths = [each.path for each in pulled]
        name = str(reference)
        saved = save(repository, name, found, paths, fd, with_base=args.with_base)
    _report(args, saved)
    return 0


def _report(args: argparse.Namespace, saved: Saved) -> None:
    if args.json:
        document = {
            "image": args.image,
            "digest": saved.image,
            "path": str(args.output),
            "layers": list(saved.identities),
            "public_layers": saved.public,
        }
        print(json.dumps(document, indent=2))
    elif not args.quiet:
        what = f"{saved.public} public layers" if saved.public else "without the public layers"
        print(
            f"saved {args.image} to {args.output}: {len(saved.identities)} sealed, {what}; "
            f"next, where it is to run: cisfs load {args.output}"
        )
