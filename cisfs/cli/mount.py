"""`cisfs mount`: show a vault or a sealed layer decrypted.

Parses, asks for the key, calls `cisfs.mount.server`.  One call per process; the server that it
leaves behind is another.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cisfs.cli.arguments import layer, path, patience, workers

HELP = "show the files of a vault or sealed layer, decrypted, in a directory"

_EPILOG = """\
MOUNTPOINT is an empty directory.  The files appear there when the command returns, and a process of
cisfs serves them until "cisfs umount MOUNTPOINT", or until SIGTERM or Ctrl-C with --foreground.
Nothing decrypted is ever written to a disk.  Works without root where fusermount3 is installed.

A sealed layer is always read-only.  Its workers may be killed at any moment: others take over.  As
root its files appear, to all users as far as the files' modes allow; without root the kernel cannot
be asked to mount what is in the image, so MOUNTPOINT then shows the decrypted image as one file,
which programs such as fsck.erofs read.

Damage that turns up while reading is logged to syslog, with --foreground to standard error.

examples:
  cisfs mount secrets.vault ./open
  cisfs mount --read-only --key-file vault.key secrets.vault /mnt/secrets
  cisfs mount --key-file layer.key secrets.cis /mnt/secrets
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    from cisfs.keys.options import add_key_options

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="SOURCE", help="the vault or sealed layer")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=path, help="an empty directory")
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
    sealed = parser.add_argument_group("sealed layers")
    sealed.add_argument(
        "--workers",
        metavar="N",
        type=workers,
        help="processes that decrypt (default: one for each processor, 8 at most)",
    )
    sealed.add_argument(
        "--worker-timeout",
        metavar="SECONDS",
        type=patience,
        default=60.0,
        help="replace a worker that has not answered for so long (default: 60)",
    )
    sealed.add_argument(
        "--loop-device",
        action="store_true",
        help="mount through a loop device even where the kernel mounts from a file",
    )
    sealed.add_argument(
        "--fetch-timeout",
        metavar="SECONDS",
        type=patience,
        default=30.0,
        help="of a layer that is not all here, fail what has not come within so long (default: 30)",
    )
    add_key_options(parser)


def run(args: argparse.Namespace) -> int:
    """Mount; return 0, or with --foreground the server's exit code."""
    from cisfs.layer import admission, unlocked
    from cisfs.layer.opening import open_layer
    from cisfs.layer.sealed import SealedLayer
    from cisfs.mount import attendance, server
    from cisfs.registry import attach
    from cisfs.registry.fetcher_launch import become

    options = server.MountOptions(
        read_only=args.read_only,
        allow_other=args.allow_other,
        foreground=args.foreground,
        detach=not args.foreground,
        log_file=args.log_file and args.log_file.absolute(),
        workers=args.workers,
        worker_patience=args.worker_timeout,
        loop_device=args.loop_device,
        fetch=become,
        fetch_patience=args.fetch_timeout,
    )
    source = layer(args.source)
    attach.check(args.source, source, admission.named_by_environment())
    server.check(source, args.mountpoint)
    attendance.begin(source, options)
    opened = open_layer(
        source,
        lambda: unlocked.opener(source, args),
        read_only=args.read_only,
        admission=admission.from_environment(),
    )
    running = server.start(opened, args.mountpoint, options)
    opened.abandon()
    if isinstance(opened, SealedLayer) and os.geteuid() != 0:
        image = args.mountpoint / server.IMAGE_NAME
        print(f"without root only the decrypted image is shown: {image}")
    return running.wait() if args.foreground else 0
