"""`cisfs pull`: an image's sealed layers into the local store, and its public part to an engine.

Parses, calls `cisfs.registry.pull`, reports.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING

from cisfs.cli.arguments import limit
from cisfs.cli.reporting import add_report_options, progress_line, show

if TYPE_CHECKING:
    from cisfs.registry.found import FoundImage
    from cisfs.registry.pull import Pulled
    from cisfs.registry.reference import Reference
    from cisfs.registry.repository import Repository

HELP = "pull an image with sealed layers from a registry"

ENGINES = ("docker", "podman", "embedded", "none")

_EPILOG = """\
The sealed layers of IMAGE go to the store (/var/lib/cisfs, or ~/.local/share/cisfs without root) as
they are: encrypted.  Everything is checked on the way, and interrupted the same command goes on.
Layers that are there already only get the key slots that the registry has now.

The public image goes to the engine, if one is named.

examples:
  cisfs pull registry.example/team/app:1 --engine docker
  cisfs pull registry.example/team/app:1 && cisfs run docker://registry.example/team/app:1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.cli.registries import add_access_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("image", metavar="IMAGE", help="HOST/NAME[:TAG][@DIGEST]")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="none",
        help="where the public image goes (default: none); docker and podman know it by its TAG",
    )
    parser.add_argument(
        "--limit",
        metavar="SIZE",
        type=limit,
        help="from now on, let the store keep at most so much of pulled layers, such as 20G, or "
        "none for no limit: of those not in use, the longest unused one is given up first; what "
        "cisfs load brought is not counted and stays",
    )
    add_report_options(parser)
    add_access_options(parser)


def run(args: argparse.Namespace) -> int:
    """Pull; return 0."""
    from cisfs.cli.registries import access_of, engine_failures, reference_of, repository_of
    from cisfs.layer import eviction, store
    from cisfs.registry.pull import pull
    from cisfs.runtime.images import delivery

    reference = reference_of(args.image)
    if args.engine in ("docker", "podman"):
        delivery.target(reference, args.engine)  # refuses what could not be given to it later
    with (
        progress_line(args, "looking") as shown,
        repository_of(args, reference) as repository,
    ):
        found = allowed(repository, reference)
        progress = partial(show, shown, "pulling")
        pulled = pull(repository, found.identities, store.local(), access_of(args), progress)
    if args.limit is not None:
        eviction.set_limit(store.local(), args.limit)
    eviction.make_room(store.local(), 0)
    if args.engine != "none":
        with engine_failures():
            delivery.deliver(
                reference,
                found.manifest.descriptor.digest,
                found.config,
                args.engine,
                store.local(),
                plain=args.plain_http,
                ca_file=args.ca_file,
            )
    _report(args, pulled)
    return 0


def allowed(repository: Repository, reference: Reference) -> FoundImage:
    """Return the image that a reference stands for, if the trust policy allows all its layers."""
    from cisfs.cli.registries import machine
    from cisfs.errors import UsageError
    from cisfs.layer import admission
    from cisfs.registry.found import choose, find_artifact, find_image, find_keys
    from cisfs.registry.ocicrypt.layers import is_encrypted

    manifest = choose(repository.manifest(reference.target), repository.described, machine())
    found = find_image(repository, manifest)
    if not found.identities:
        if any(map(is_encrypted, manifest.layers)):
            raise UsageError(
                f"{reference} has no sealed layers, but layers that are encrypted as ocicrypt does "
                f"it: cisfs seal docker://{reference} --top N -i KEY -o LAYER makes a sealed one"
            )
        raise UsageError(f"{reference} has no sealed layers: pull it with the engine")
    find_artifact(repository, found)
    policy = admission.load(admission.named_by_environment())
    for identity in found.identities:
        signatures = find_keys(repository, identity).text.signatures
        policy.check(identity, signatures, repository.name)
    return found


def _report(args: argparse.Namespace, pulled: list[Pulled]) -> None:
    if args.json:
        layers = [
            {"identity": each.identity, "path": str(each.path), "fetched": each.fetched}
            for each in pulled
        ]
        print(json.dumps({"image": args.image, "layers": layers}, indent=2))
    elif not args.quiet:
        for each in pulled:
            print(f"{'pulled' if each.fetched else 'had'} {each.identity}")
