"""`cisfs run`: a container whose root filesystem has encrypted layers.

Parses, asks for the key, calls `cisfs.runtime.embedded` and reports; knows nothing of how it is
done.  One call per process.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache, partial
from pathlib import Path

HELP = "run a command in a container over encrypted layers"

_EPILOG = """\
LAYER is a vault or a sealed layer.  They are mounted read-only where only the container can see
them, one over the other, the first --layer on top and DIR at the bottom.  What the container writes
is kept in memory and is gone at its end; neither DIR nor a layer is ever changed.

A layer that "cisfs unlock" unlocked needs no key; all others are opened with the one given.  The
container has no network but its own loopback interface, and runc must be installed.  Needs root.

Ctrl-C, SIGTERM, SIGHUP and SIGQUIT go to the command; they end it even when it does not handle
them, and three within three seconds kill it whatever it does.

exit status:
  that of CMD, or 128+N when signal N ended it
  125  cisfs itself failed before CMD began, or was used wrongly
  126  CMD was found but cannot be executed
  127  CMD was not found

example:
  cisfs run --layer secrets.vault --rootfs ./rootfs -- cat /etc/app/token
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.credentials import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--layer",
        metavar="LAYER",
        dest="layers",
        action="append",
        default=[],
        type=Path,
        help="vault or sealed layer to mount over DIR; may be repeated, the first is on top",
    )
    parser.add_argument(
        "--rootfs", metavar="DIR", type=Path, required=True, help="the public root filesystem"
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable in the container; may be repeated",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        default="/",
        help="where CMD starts (default: /); made if it is missing",
    )
    parser.add_argument(
        "--user",
        metavar="USER[:GROUP]",
        help="run as this user of the container, by name or number (default: root)",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="let the container write nowhere in its tree"
    )
    parser.add_argument(
        "--tty", action="store_true", help="give the container a terminal of its own"
    )
    add_key_options(parser)
    parser.add_argument(
        "command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments"
    )


def run(args: argparse.Namespace) -> int:
    """Run the container; return the exit code.  Raises EngineError for every failure of ours."""
    from cisfs.errors import CisfsError, EngineError

    try:
        return _run(args)
    except EngineError:
        raise
    except (CisfsError, OSError) as error:
        # A container's exit status is its command's: only 125 can say that it never began.
        raise EngineError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    from cisfs.runtime import bundle, request

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    wanted = request.check(
        layers=args.layers,
        rootfs=args.rootfs,
        arguments=command,
        environment=bundle.parse_environment(args.env),
        working_directory=args.workdir,
        user=args.user,
        read_only=args.read_only,
        terminal=args.tty,
    )

    from cisfs.layer import unlocked
    from cisfs.layer.opening import Layer, open_layer
    from cisfs.runtime import embedded

    layers: list[Layer] = []
    if wanted.layers:
        from cisfs.keys.credentials import from_options

        purpose = "passphrase for " + ", ".join(map(str, args.layers))
        key = cache(lambda: from_options(args, purpose=purpose))
        try:
            for path in wanted.layers:
                opener = partial(unlocked.opener, path, args, key)
                layers.append(open_layer(path, opener, read_only=True))
        except BaseException:
            for layer in layers:
                layer.close()
            raise
    outcome = embedded.run(wanted, layers)
    if outcome.message:
        print(f"cisfs: {outcome.message}", file=sys.stderr)
    return outcome.exit_code
