"""The `cisfs` command: finds the subcommand, and turns what it raises into a line and an exit code.

Does not know what any subcommand does.  Imports only the one that is asked for: `cisfs-runtime` and
shell scripts start it often.  One call per process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from cisfs import __version__
from cisfs.errors import CisfsError, EngineError, in_words
from cisfs.format.said import printable

COMMANDS = (
    "keygen",
    "init",
    "mount",
    "umount",
    "seal",
    "push",
    "pull",
    "save",
    "load",
    "sign",
    "run",
    "commit",
    "ps",
    "exec",
    "stop",
    "logs",
    "rm",
    "key",
    "unlock",
    "lock",
    "status",
    "scratch",
    "runtime",
    "inspect",
    "verify",
    "doctor",
)
# Those that read keys, or are given what opens them: their memory is for nobody else.
WITH_KEYS = frozenset(
    {
        "keygen",
        "init",
        "mount",
        "seal",
        "sign",
        "run",
        "commit",
        "push",
        "key",
        "unlock",
        "status",
        "verify",
    }
)
_INTERRUPTED = 130  # what a shell reports of a command that SIGINT ended
_NOBODY_READS = 141  # the same of SIGPIPE
_DESCRIPTION = (
    "Container layers that stay encrypted on disk and are decrypted while a container runs."
)
_EPILOG = """\
getting started:
  cisfs init secrets.vault             make an encrypted vault (asks for a passphrase)
  mkdir open; cisfs mount secrets.vault open
  cp -a my-private-files/. open/       what is written to open/ is encrypted in secrets.vault/
  cisfs umount open
  cisfs seal secrets.vault -o secrets.cis
                                       one file of it that never changes, to ship and to run
  cisfs run --layer secrets.cis --rootfs ./rootfs -- /bin/sh
                                       a container that sees the files; needs root

"cisfs COMMAND --help" describes each command.

exit status:
   0  success                          14  no passphrase or key was given
   1  any other failure                15  the vault or layer is in use
   2  wrong use of the command line    16  altered or forged by someone without the key
  10  no vault or layer at that path   17  the mount point will not do, or mounting failed
  11  damaged or truncated data        18  this machine has no usable /dev/fuse
  12  wrong passphrase or key          19  verify found damage
  13  written by a newer cisfs         20  too little memory for a key slot
  21  a required signature is missing or wrong
  22  a registry refused, failed or sent what cannot be right
  23  a sealed layer is bound to another base
  24  a part of a layer was not fetched yet
                                      125  run failed before the command began
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's); return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _dispatch(given)
        sys.stdout.flush()
    except CisfsError as error:
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        _give_up_stdout()
        return _NOBODY_READS
    except OSError as error:
        _complain(in_words(error))
        return CisfsError.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _dispatch(given: list[str]) -> int:
    wanted = next((word for word in given if not word.startswith("-")), None)
    try:
        args = _parser(only=wanted if wanted in COMMANDS else None).parse_args(given)
    except SystemExit as ended:
        if ended.code and wanted in (
            "run",
            "exec",
        ):  # 2 would be taken for the container's own status
            raise SystemExit(EngineError.exit_code) from None
        raise
    if args.cisfs_command in WITH_KEYS:
        _keep_memory_private()
    return int(_module(args.cisfs_command).run(args))


def _keep_memory_private() -> None:
    """See to it before a command of ours has read anything, because it cannot erase it all."""
    from cisfs.keys import memory

    memory.keep_private()
    memory.lock()


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"cisfs.cli.{command}")


def _parser(only: str | None) -> argparse.ArgumentParser:
    """Return the parser for every command, or, which is quicker, for the one in `only`."""
    parser = argparse.ArgumentParser(
        prog="cisfs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cisfs {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="cisfs_command", metavar="COMMAND", required=True
    )
    for name in COMMANDS if only is None else (only,):
        module = _module(name)
        text = module.HELP
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if only is not None:
            module.add_arguments(command)
    return parser


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr itself may be gone
        print(f"cisfs: {printable(' '.join(message.splitlines()))}", file=sys.stderr)


def _give_up_stdout() -> None:
    """Keep the interpreter from complaining, at its end, that it cannot flush stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
