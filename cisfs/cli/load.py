"""`cisfs load`: what `cisfs save` wrote, into the local store, and its public part to an engine.

Parses, calls `cisfs.runtime.images.loading`, reports.  One call per process.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli.arguments import oci_layout
from cisfs.cli.reporting import add_report_options

if TYPE_CHECKING:
    from cisfs.format.slotarea import SlotText
    from cisfs.registry.pull import Pulled
    from cisfs.runtime.images.loading import Bundle

HELP = "load an image with sealed layers from a file"

_MAX_SIZE = 1 << 50  # bytes: a file that is here has its room already

_EPILOG = """\
The sealed layers in FILE go to the store (/var/lib/cisfs, or ~/.local/share/cisfs without root) as
they are: encrypted.  Everything is checked.  No network is needed.

The public image goes to the engine or the layout that is named, if it is in FILE.

examples:
  cisfs load app.tar --engine docker && docker run --runtime=cisfs registry.example/team/app:1
  cisfs load app.tar --public oci:app && cisfs run oci:app
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="what cisfs save wrote")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--engine", choices=("docker", "podman"), help="give the public image to that engine"
    )
    target.add_argument(
        "--public", metavar="oci:DIRECTORY[:NAME]", help="put the public image into a layout"
    )
    add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Load; return 0."""
    from cisfs.build.opening import open_archive
    from cisfs.errors import FormatError
    from cisfs.layer import admission, store
    from cisfs.runtime.images import delivery
    from cisfs.runtime.images.loading import Bundle

    public = None if args.public is None else oci_layout("--public", args.public)
    directory = store.local()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    policy = admission.load(admission.named_by_environment())
    try:
        fd = os.open(args.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            archive = open_archive(fd, str(args.file), _MAX_SIZE, directory)
        finally:
            os.close(fd)
        try:
            bundle = Bundle(archive)
            if args.engine is not None:
                delivery.target(bundle.reference, args.engine)  # refuses before anything is loaded

            def check(identity: str, text: SlotText) -> None:
                # Under the name that is in it: that is what it will be judged by when it is used.
                policy.check(identity, text.signatures, bundle.reference.name)

            pulled = bundle.load(directory, check)
            _give(args, bundle, public)
        finally:
            archive.close()
    except FormatError as error:
        raise type(error)(f"{args.file}: {error}") from None
    _report(args, bundle, pulled)
    return 0


def _give(args: argparse.Namespace, bundle: Bundle, public: tuple[Path, str | None] | None) -> None:
    """Give the public image to whom it is for; `public` is a layout, and a name in it."""
    import tempfile

    from cisfs.cli.registries import engine_failures
    from cisfs.registry.layout import Layout
    from cisfs.runtime.images import delivery, tools

    if public is not None:
        path, name = public
        bundle.store_base(Layout.create(path), name or bundle.reference.tag or "latest")
    elif args.engine is not None:
        target = delivery.target(bundle.reference, args.engine)
        with tempfile.TemporaryDirectory(prefix="cisfs-load-") as directory:
            place = Path(directory, "layout")
            bundle.store_base(Layout.create(place), "image")
            with engine_failures():
                tools.deliver(f"oci:{place}:image", target, plain=False)


def _report(args: argparse.Namespace, bundle: Bundle, pulled: list[Pulled]) -> None:
    if args.json:
        layers = [
            {"identity": each.identity, "path": str(each.path), "fetched": each.fetched}
            for each in pulled
        ]
        said = {"image": str(bundle.reference), "with_base": bundle.has_base, "layers": layers}
        print(json.dumps(said, indent=2))
    elif not args.quiet:
        for each in pulled:
            print(f"{'loaded' if each.fetched else 'had'} {each.identity}")
        taker = args.engine or args.public
        if taker:
            print(f"gave {bundle.reference} to {taker}")
        elif bundle.has_base:
            print(
                f"its public image is given to nobody: {bundle.reference}; see --engine, --public"
            )
        else:
            print(f"its public image is not in {args.file}: {bundle.reference}")
