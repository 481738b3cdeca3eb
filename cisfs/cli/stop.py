"""`cisfs stop`: end containers of the embedded engine.

Parses and calls `cisfs.runtime.ending`.  One call per process.
"""

from __future__ import annotations

import argparse
import math

HELP = "end running containers"

_EPILOG = """\
CONTAINER is a name, an id, or the beginning of one.  It is sent the stop signal of its image
(default: SIGTERM), and is killed when it has not ended after some seconds.  One that has ended
already is no error.

example:
  cisfs stop -t 30 web db
"""


def seconds(text: str) -> float:
    """Parse a number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "-t",
        "--time",
        metavar="SECONDS",
        type=seconds,
        default=10.0,
        help="how long to wait before killing (default: 10)",
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="what to end")


def run(args: argparse.Namespace) -> int:
    """End them; print the name of each as it has ended; return 0."""
    from cisfs.runtime import ending, listing

    for container in [listing.find(name) for name in args.containers]:
        ending.stop(container, args.time)
        print(container.state.name, flush=True)
    return 0
