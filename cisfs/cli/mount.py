"""`cisfs mount`: show a vault decrypted.

Parses, asks for the key, calls `cisfs.mount.server`.  One call per process; the server that it
leaves behind is another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "show a vault's files, decrypted, in a directory"

_EPILOG = """\
MOUNTPOINT is an empty directory.  The files appear there when the command returns, and a process of
cisfs serves them until "cisfs umount MOUNTPOINT", or until SIGTERM or Ctrl-C with --foreground.
Nothing decrypted is ever written to a disk.  Works without root where fusermount3 is installed.

Damage that turns up while reading is logged to syslog, with --foreground to standard error.

examples:
  cisfs mount secrets.vault ./open
  cisfs mount --read-only --key-file vault.key secrets.vault /mnt/secrets
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.credentials import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the vault")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory")
    parser.add_argument(
        "--read-only", action="store_true", help="allow no changes; several such mounts may coexist"
    )
    parser.add_argument(
        "--foreground", action="store_true", help="serve in this process group until interrupted"
    )
    parser.add_argument(
        "--allow-other",
        action="store_true",
        help="let other users in, as far as the files' modes allow them",
    )
    parser.add_argument(
        "--log-file", metavar="FILE", type=Path, help="log there instead of to syslog"
    )
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Mount; return 0, or with --foreground the server's exit code."""
    from cisfs.keys.credentials import from_options
    from cisfs.layer.vault import Vault
    from cisfs.mount import server

    options = server.MountOptions(
        read_only=args.read_only,
        allow_other=args.allow_other,
        foreground=args.foreground,
        detach=not args.foreground,
        log_file=args.log_file and args.log_file.absolute(),
    )
    server.check(args.source, args.mountpoint)
    vault = Vault.open(
        args.source,
        lambda: from_options(args, purpose=f"passphrase for {args.source}"),
        read_only=args.read_only,
    )
    running = server.start(vault, args.mountpoint, options)
    vault.abandon()
    return running.wait() if args.foreground else 0
