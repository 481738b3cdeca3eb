"""`cisfs logs`: what a container in the background has printed.

Parses, reads through `cisfs.runtime.output`, prints.  One call per process.
"""

from __future__ import annotations

import argparse
import sys

HELP = "show what a container in the background has printed"

_EPILOG = """\
CONTAINER is a name, an id, or the beginning of one.  The latest 8 MiB at least are kept, output and
errors in one, in memory only, until "cisfs rm".

example:
  cisfs logs -f web
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    parser.add_argument("container", metavar="CONTAINER", help="which one")


def run(args: argparse.Namespace) -> int:
    """Print the log; return 0."""
    from cisfs.errors import EngineError
    from cisfs.runtime import listing, output

    container = listing.find(args.container)
    if not container.log:
        raise EngineError(
            f"container {args.container} is not in the background: "
            "its output went where `cisfs run` was started"
        )

    def goes_on() -> bool:
        current = listing.current(container)
        return current is not None and current.state.status != listing.EXITED

    try:
        follow = goes_on if args.follow else lambda: False
        for piece in output.read(container.keeper, container.log, follow):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except FileNotFoundError:
        pass  # it was removed just now
    except KeyboardInterrupt:
        pass  # the way to end --follow
    return 0
