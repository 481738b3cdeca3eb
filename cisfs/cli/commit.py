"""`cisfs commit`: seal what a running container has written.

Parses, asks for the key, calls `cisfs.runtime.commit` and seals as `cisfs seal` does.  One call per
process.
"""

from __future__ import annotations

import argparse

from cisfs.cli import making
from cisfs.cli.interruption import interruptible
from cisfs.cli.reporting import add_report_options

HELP = "seal what a running container has written, as a new layer"

_EPILOG = """\
CONTAINER is the name, the id or the start of the id of a running container with encrypted layers or
an encrypted scratch, of "cisfs run" or of an engine.  Its writes become a layer: new and
changed files, and whiteouts for what it deleted.  Laid over the layers and the image that the
container was started from, it gives the same tree again.  Nothing plaintext is written to a disk.

The container is paused meanwhile.  Needs root.

example:
  docker run -d --name author --runtime=cisfs -e CISFS_SCRATCH=ephemeral IMAGE sleep 1d
  docker exec author sh -c 'generate-secrets > /etc/app/token'
  cisfs commit author -o secrets.cis
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_making_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("container", metavar="CONTAINER", help="a running container")
    making.add_output_options(parser)
    add_report_options(parser)
    making.add_sign_option(parser)
    add_making_options(parser)


def run(args: argparse.Namespace) -> int:
    """Seal; return 0, or 128+N when signal N ended it."""
    return interruptible(lambda: _run(args), "the commit")


def _run(args: argparse.Namespace) -> int:
    from cisfs.build import request
    from cisfs.keys.options import recipients
    from cisfs.layer.sealing import DEFAULT_UNIT_SIZE
    from cisfs.runtime import commit

    writes = commit.find(args.container)
    args.output = request.check_output(args.output, force=args.force)
    signing_key = making.signing_key_of(args)
    made_for = recipients(args, f"new passphrase for {args.output}")
    # Paused: a directory that became a symlink under our eyes would lead out of the container.
    with writes.paused(), writes.shown() as directory:
        wanted = request.check(
            source=str(directory),
            output=args.output,
            unit_size=DEFAULT_UNIT_SIZE,
            compression=request.UNCOMPRESSED,
            max_size=0,  # of a tar only
            devices=False,  # likewise
            workers=None,
            force=args.force,
        )
        making.seal_and_report(args, wanted, made_for, signing_key=signing_key)
    return 0
