"""`cisfs push --format ocicrypt`: an image whose layers skopeo, podman and containerd decrypt.

Parses what only this takes, calls `cisfs.registry.ocicrypt.images` and pushes.  One call per
process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli.arguments import oci_layout, refuse
from cisfs.cli.reporting import progress_line, show

if TYPE_CHECKING:
    from cisfs.registry.layout import Layout
    from cisfs.registry.manifest import Manifest
    from cisfs.registry.reference import Reference

_OCI = "oci:"
_FOR_SEALED_LAYERS = ("rebase", "identity", "passphrase_file", "passphrase_command", "key_file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options that are for this format."""
    from cisfs.keys.options import add_recipient_option

    group = parser.add_argument_group("--format ocicrypt")
    group.add_argument(
        "--encrypt-layer",
        metavar="N",
        type=int,
        action="append",
        help="the layer to encrypt: 0 is the lowest, -1 the topmost; any number (default: all)",
    )
    add_recipient_option(parser)


def run(args: argparse.Namespace, reference: Reference) -> int:
    """Encrypt and push; return 0."""
    from cisfs.cli.registries import repository_of
    from cisfs.registry.layout import Layout
    from cisfs.registry.push import push_layout

    source, name = _layout(args)
    with (
        tempfile.TemporaryDirectory(prefix="cisfs-push-") as directory,
        progress_line(args, "encrypting") as shown,
    ):
        target = Layout.create(Path(directory, "layout"))
        manifest = _encrypted(args, source, name, target, shown.update)
        with repository_of(args, reference) as repository:
            tag = reference.tag or "latest"
            push_layout(repository, tag, target, manifest, partial(show, shown, "pushing"))
    digest = manifest.descriptor.digest
    if args.json:
        print(json.dumps({"image": args.image, "digest": digest}, indent=2))
    elif not args.quiet:
        print(f"pushed {args.image}, {digest}, encrypted as ocicrypt does")
    return 0


def _layout(args: argparse.Namespace) -> tuple[Path, str | None]:
    """Return the layout that holds the image, and its name in it."""
    from cisfs.errors import UsageError

    refuse(args, _FOR_SEALED_LAYERS, "is for sealed layers, not for --format ocicrypt; see -r")
    if args.layers:
        raise UsageError("--layer is for sealed layers, which --format ocicrypt does not know")
    if not args.base.startswith(_OCI):
        raise UsageError(
            f"--base {args.base}: --format ocicrypt takes oci:DIRECTORY[:NAME] only, because it "
            "makes no copy in plain of what is to be encrypted"
        )
    return oci_layout("--base", args.base)


def _encrypted(
    args: argparse.Namespace,
    path: Path,
    name: str | None,
    target: Layout,
    progress: Callable[[int], None],
) -> Manifest:
    from cisfs.cli.registries import machine
    from cisfs.errors import UsageError
    from cisfs.keys import options
    from cisfs.registry.found import choose
    from cisfs.registry.layout import Layout
    from cisfs.registry.manifest import Manifest
    from cisfs.registry.ocicrypt.images import Encrypting, encrypt_image

    recipients = options.recipients(args)
    if not recipients:
        raise UsageError("--format ocicrypt takes recipients: -r jwe:KEY.pem")
    source = Layout.open(path)
    image = choose(source.manifest(source.find(name)), source.manifest, machine())
    how = Encrypting(recipients, args.encrypt_layer, progress)
    made = target.manifest(encrypt_image(source, image.descriptor, target, how))
    if not isinstance(made, Manifest):
        raise UsageError(f"{args.base} is no image")
    return made
