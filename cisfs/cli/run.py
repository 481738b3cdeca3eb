"""`cisfs run`: a container whose root filesystem has encrypted layers.

Parses, asks for the key, calls the engine and reports; knows nothing of how it is done.  One call
per process.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli import run_options
from cisfs.format.said import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cisfs.crypto.keys import SecretKey
    from cisfs.runtime.holdings import Opened
    from cisfs.runtime.options import Options
    from cisfs.runtime.request import Outcome

HELP = "run a command in a container over encrypted layers"

_NO_USER_NAMESPACE = (
    "no user namespace of its own: docker and podman decide that for all of their containers; "
    "with --engine embedded it has one"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    run_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the container; return the exit code.  Raises EngineError for every failure of ours."""
    from cisfs.errors import CisfsError, EngineError, in_words

    try:
        outcome = _run(args)
    except EngineError:
        raise
    except (CisfsError, OSError) as error:
        # A container's exit status is its command's: only 125 can say that it never began.
        raise EngineError(in_words(error)) from error
    if outcome.message:
        # An image's author chooses names in it, and what its scripts begin with.
        print(f"cisfs: {printable(' '.join(outcome.message.splitlines()))}", file=sys.stderr)
    return outcome.exit_code


def _run(args: argparse.Namespace) -> Outcome:
    from cisfs.runtime.engines import choose

    options = run_options.options(args)
    engine = choose.choose(args.engine, options)
    if engine == choose.EMBEDDED:
        return _embedded(args, options)

    if options.strict and sys.stderr.isatty():
        print(f"cisfs: note: {_NO_USER_NAMESPACE}", file=sys.stderr)
    from cisfs.runtime.engines import docker, names, podman
    from cisfs.runtime.engines.keys import Loan

    loan = Loan(_master_keys(args, names.places(options)))
    return docker.run(options, loan) if engine == choose.DOCKER else podman.run(options, loan)


def _embedded(args: argparse.Namespace, options: Options) -> Outcome:
    from cisfs.mount import attendance
    from cisfs.mount.assignment import MountOptions
    from cisfs.registry.fetcher_launch import become
    from cisfs.runtime import background, embedded, request
    from cisfs.runtime.images.config import ImageConfig

    request.check_caller(options)
    rootfs, config = options.rootfs, ImageConfig()
    if rootfs is None:
        from cisfs.runtime.images import reference, store

        image = store.provide(reference.parse(options.image or ""), args.store, options.pull)
        rootfs, config = image.rootfs, image.config
    wanted = request.check(options, rootfs, config, args.store)
    for path in wanted.layers:
        attendance.begin(path, MountOptions(fetch=become))
    opened = _opened(args, wanted.layers, config.diff_ids)
    if not options.detach:
        return embedded.run(wanted, opened)
    started = background.start(wanted, opened)
    if started.identifier:
        print(started.identifier)
    return started.outcome


def _opened(args: argparse.Namespace, paths: Sequence[Path], below: Sequence[str] | None) -> Opened:
    """Open the layers, those that are unlocked without asking, the others with one key for all.

    `below` are the diff_ids of the image that they go on.
    """
    from cisfs.keys.credentials import typed
    from cisfs.layer import admission, unlocked
    from cisfs.runtime.holdings import open_layers

    admits = admission.from_environment()
    purpose = "passphrase for " + ", ".join(map(str, paths))
    key = cache(lambda: typed(purpose))
    return open_layers(paths, lambda path: unlocked.opener(path, args, key), admits, below)


def _master_keys(args: argparse.Namespace, paths: Sequence[Path]) -> dict[str, SecretKey]:
    """Return what opens the layers if a key was given; what is locked, the runtime will say."""
    from cisfs.keys import options
    from cisfs.layer import opening

    opener = options.named_opener(args) if paths else None
    if opener is None:
        return {}
    return {opening.key_id(path): opening.master_key(path, opener) for path in paths}
