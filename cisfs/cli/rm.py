"""`cisfs rm`: take ended containers of the embedded engine off the list.

Parses and calls `cisfs.runtime.ending`.  One call per process.
"""

from __future__ import annotations

import argparse

HELP = "remove ended containers, and what they printed"

_EPILOG = """\
CONTAINER is a name, an id, or the beginning of one.

example:
  cisfs rm $(cisfs ps -aq)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("-f", "--force", action="store_true", help="kill those that are running")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="name, or id")


def run(args: argparse.Namespace) -> int:
    """Remove them; print the name of each; return 0."""
    from cisfs.runtime import ending, listing

    for container in [listing.find(name) for name in args.containers]:
        ending.remove(container, args.force)
        print(container.state.name, flush=True)
    return 0
