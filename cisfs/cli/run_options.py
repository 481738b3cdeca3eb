"""The options of `cisfs run`, and what they come to.

Describes and parses; does not know engines.  Spelled as docker spells them where docker has them.
One call per process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cisfs.cli.arguments import path, patience
from cisfs.cli.run_help import ENGINES, EPILOG, STORE
from cisfs.errors import EngineError

if TYPE_CHECKING:
    from cisfs.runtime.options import Options

Value = TypeVar("Value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "cisfs run [OPTION]... (IMAGE | --rootfs DIR --) [CMD [ARG]...]"
    parser.epilog = EPILOG
    _add_layers(parser)
    _add_process(parser)
    _add_mounts(parser)
    _add_isolation(parser)
    add_key_options(parser, short=False)
    parser.add_argument(
        "command",
        metavar="IMAGE CMD",
        nargs=argparse.REMAINDER,
        help="the image, and the command with its arguments (default: the image's)",
    )


def _add_layers(parser: argparse.ArgumentParser) -> None:
    from cisfs.runtime.options import PULL_POLICIES

    add = parser.add_argument
    add(
        "--layer",
        metavar="LAYER",
        dest="layers",
        action="append",
        default=[],
        help="vault or sealed layer to mount over the image; may be repeated, the first is on top",
    )
    add("--rootfs", metavar="DIR", type=path, help="a root filesystem to take instead of an image")
    add(
        "--scratch",
        metavar="SPEC",
        help="where the container's writes go: ephemeral (default), persistent:NAME, memory or "
        "none, with ,size=SIZE if you like",
    )
    add(
        "--fetch-timeout",
        metavar="SECONDS",
        type=patience,
        help="of a layer that is not all here, fail what has not come within so long (default: 30)",
    )
    add(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the container (default: auto)",
    )
    add(
        "--pull",
        choices=PULL_POLICIES,
        default="missing",
        help="when to fetch the image (default: missing)",
    )
    add(
        "--store",
        metavar="DIR",
        type=Path,
        default=STORE,
        help=f"where images and scratches are kept (default: {STORE})",
    )


def _add_process(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-e", "--env", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable")
    add(
        "--env-file",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="set the variables in FILE, one NAME=VALUE a line",
    )
    add("-w", "--workdir", metavar="DIR", help="where CMD starts; made if it is missing")
    add(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        help="run as this user of the container, by name or number (default: the image's, or root)",
    )
    add("--entrypoint", metavar="CMD", help='execute this instead of the image\'s ("": nothing)')
    add("-i", "--interactive", action="store_true", help="keep standard input open")
    add("-t", "--tty", action="store_true", help="give the container a terminal of its own")
    add("-d", "--detach", action="store_true", help="run it in the background and print its id")
    add("--rm", action="store_true", help="remove the container when it has ended")
    add("--name", metavar="NAME", help="what the container is called")
    add("--hostname", metavar="NAME", help="what it calls itself (default: from its id)")
    add("--label", metavar="NAME=VALUE", action="append", default=[], help="attach a label")


def _add_mounts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro]",
        action="append",
        default=[],
        help="show a directory or file of the host in the container; it is not encrypted",
    )
    add(
        "--tmpfs",
        metavar="DST[:OPTIONS]",
        action="append",
        default=[],
        help="mount an empty file system in memory",
    )
    add("--read-only", action="store_true", help="let the container write nowhere in its tree")


def _add_isolation(parser: argparse.ArgumentParser) -> None:
    from cisfs.runtime.options import PROFILES

    add = parser.add_argument
    add(
        "--profile",
        choices=PROFILES,
        default="default",
        help="how much is forbidden that was not asked for (default: default)",
    )
    add(
        "--userns",
        choices=("auto", "host"),
        help="auto: a user namespace of its own, or no container; host: none (default: with "
        "--profile strict one where it can be had, else none)",
    )
    add("--network", "--net", metavar="NET", help="none, host, or what the engine has")
    add(
        "-p",
        "--publish",
        metavar="[HOST:]PORT",
        action="append",
        default=[],
        help="let the host answer on a port of the container",
    )
    add("-m", "--memory", metavar="SIZE", help="at most so much memory, such as 512m")
    add("--cpus", metavar="NUMBER", help="at most so many processors, such as 1.5")
    add("--pids-limit", metavar="NUMBER", help="at most so many processes (default: 4096)")
    for option, text in (("--cap-add", "add a capability"), ("--cap-drop", "take one away")):
        add(option, metavar="CAP", action="append", default=[], help=f"{text}; ALL is all of them")


def options(args: argparse.Namespace) -> Options:
    """Return what the arguments ask for.  Raises EngineError, UsageError for a bad value."""
    from cisfs.runtime import environment, scratch, spelling
    from cisfs.runtime.options import Options

    image, command = _words(args)
    return Options(
        image=image,
        rootfs=args.rootfs,
        arguments=tuple(command),
        entrypoint=args.entrypoint,
        layers=tuple(args.layers),
        scratch=_given(args.scratch, scratch.parse),
        fetch_patience=args.fetch_timeout,
        profile=args.profile,
        pull=args.pull,
        environment=environment.assemble(args.env_file, args.env, os.environ),
        working_directory=args.workdir,
        user=args.user,
        interactive=args.interactive,
        terminal=args.tty,
        detach=args.detach,
        remove=args.rm,
        name=_given(args.name, spelling.name),
        hostname=_given(args.hostname, spelling.hostname),
        labels=dict(map(spelling.label, args.label)),
        volumes=tuple(map(spelling.volume, args.volume)),
        tmpfs=tuple(map(spelling.tmpfs, args.tmpfs)),
        network=args.network,
        ports=tuple(port for text in args.publish for port in spelling.ports(text)),
        memory=_given(args.memory, spelling.memory),
        cpus=_given(args.cpus, spelling.cpus),
        pids_limit=_given(args.pids_limit, spelling.pids_limit),
        read_only=args.read_only,
        cap_add=tuple(spelling.capability("--cap-add", word) for word in args.cap_add),
        cap_drop=tuple(spelling.capability("--cap-drop", word) for word in args.cap_drop),
        userns=args.userns,
    )


def _given(text: str | None, parse: Callable[[str], Value]) -> Value | None:
    return None if text is None else parse(text)


def _words(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Split the positional arguments into image, None with --rootfs, and command."""
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.rootfs is not None:
        return None, words
    if not words:
        raise EngineError("no image given: name one, such as oci:PATH, or use --rootfs DIR")
    return words[0], words[1:]
