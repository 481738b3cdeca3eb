"""`cisfs umount`: the end of `cisfs mount`.

Parses, calls `cisfs.mount.unmount`.  One call per process.
"""

from __future__ import annotations

import argparse
import os
import sys

from cisfs.cli.arguments import path

HELP = "unmount a vault or sealed layer"

_EPILOG = """\
When the command returns, everything written to a vault is in it, and it can be mounted again at
once.
A mount whose server was killed is cleaned up, too.  Only cisfs mounts are ever touched.

example:
  cisfs umount ./open
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=path, help="where it is mounted")
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="detach a mount in use: gone from the tree at once, ended by its last user",
    )


def run(args: argparse.Namespace) -> int:
    """Unmount; return 0."""
    from cisfs.mount import points, unmount

    mountpoint = points.resolved(args.mountpoint)
    os.chdir("/")  # not to keep the mount busy ourselves
    if not unmount.unmount(mountpoint, lazy=args.lazy):
        print(
            f"cisfs: note: {mountpoint} is unmounted, but its layer goes on being decrypted for "
            "another mount namespace, or an overlay, that has it: until that ends",
            file=sys.stderr,
        )
    return 0
