"""`cisfs exec`: a further command in a running container of the embedded engine.

Parses and calls `cisfs.runtime.joining`.  One call per process.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "run a command in a running container"

_EPILOG = """\
CONTAINER is a name, an id, or the beginning of one.  The command has the container's environment,
user, capabilities and limits.

exit status: that of CMD; 125 when cisfs failed, 126 and 127 when CMD cannot be run or is not there

example:
  cisfs exec -it web sh
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="keep standard input open")
    add("-t", "--tty", action="store_true", help="give the command a terminal of its own")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user of the container")
    add("-w", "--workdir", metavar="DIR", help="where CMD starts")
    add("-e", "--env", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable")
    add(
        "--env-file",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="set the variables in FILE",
    )
    add("container", metavar="CONTAINER", help="where")
    add("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")


def run(args: argparse.Namespace) -> int:
    """Run the command; return the exit code.  Raises EngineError for every failure of ours."""
    from cisfs.errors import CisfsError, EngineError, in_words

    try:
        return _run(args)
    except EngineError:
        raise
    except (CisfsError, OSError) as error:
        raise EngineError(in_words(error)) from error


def _run(args: argparse.Namespace) -> int:
    from cisfs.errors import EngineError
    from cisfs.runtime import environment, joining, listing

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise EngineError("no command given: end with the command to run and its arguments")
    if args.tty and not os.isatty(0):
        raise EngineError("--tty: standard input is not a terminal; leave --tty out")
    if args.workdir is not None and not args.workdir.startswith("/"):
        raise EngineError(f"--workdir {args.workdir!r}: give an absolute path")
    order = joining.Order(
        arguments=command,
        terminal=args.tty,
        user=args.user,
        working_directory=args.workdir,
        environment=environment.assemble(args.env_file, args.env, os.environ),
    )
    container = listing.find_running(args.container)
    if not (args.interactive or args.tty):
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    return joining.execute(container, order)
