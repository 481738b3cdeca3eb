"""`cisfs-decoder`: decrypts one layer for containerd, which starts it as a stream processor.

containerd's docs/stream_processors.md: ciphertext on standard input, plaintext on standard output,
the layer's annotations on descriptor 3, complaints on standard error.  The ciphertext is put into a
file without a name, so that nothing is written before all of it was found authentic.

Does not know layers' contents.  One thread; does one layer and ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import syslog
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import CisfsError, FormatError
from cisfs.keys import memory
from cisfs.layer.writing import write_all
from cisfs.registry.ocicrypt import payload

if TYPE_CHECKING:
    from cisfs.keys.credentials import Credential
    from cisfs.keys.wrapping import Identity

DESCRIPTION = """\
Decrypt a layer that was encrypted in ocicrypt's way, as a stream processor of containerd: in
/etc/containerd/config.toml, and the same with tar+gzip and tar+zstd in place of tar,

  [stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
    accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
    returns = "application/vnd.oci.image.layer.v1.tar"
    path = "cisfs-decoder"
    args = ["--keys", "/etc/cisfs/keys"]

Without --keys and --identity, the key directory and the configured key providers are used.
"""
_SPOOL = Path("/var/tmp")  # noqa: S108 - a file without a name, and ciphertext; not in memory as /tmp
_STARTED_BY_CONTAINERD = "STREAM_PROCESSOR_MEDIATYPE"
_PIECE = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Decrypt the layer on standard input.  Returns 0, or 1 for any failure, as containerd asks."""
    memory.keep_private()
    memory.lock()
    try:
        args = _parser().parse_args(argv)
        told = payload.receive()  # now: once files are opened, descriptor 3 may be one of them
        _decode(told, _identities(args, told))
    except CisfsError as error:
        return _failed(error)
    except BrokenPipeError:
        return _failed("whoever started this does not read the layer")
    except OSError as error:
        return _failed(error.strerror or error)
    except KeyboardInterrupt:
        return _failed("interrupted")
    return 0


def _decode(told: payload.Payload, offered: Sequence[Identity | Credential]) -> None:
    from cisfs.registry.ocicrypt.layers import decrypt_layer

    fd = _spooled(sys.stdin.fileno(), told.layer.size)
    try:
        with decrypt_layer(told.layer, fd, offered) as layer:
            for piece in layer.pieces():
                write_all(sys.stdout.fileno(), piece)
    finally:
        os.close(fd)


def _identities(args: argparse.Namespace, told: payload.Payload) -> list[Identity | Credential]:
    from cisfs.keys import keydir, spelling
    from cisfs.keys.identity_files import identities_in
    from cisfs.layer import unlocked

    found: list[Identity | Credential] = []
    for number, (key, password) in enumerate(told.keys, 1):
        found += identities_in(key, f"key {number} of the payload", partial(bytes, password))
    for place in args.keys:
        found += keydir.identities(place)
    for words in args.identity:
        found += spelling.identities(words)
    return found if args.keys or args.identity else [*found, *unlocked.ready()]


def _spooled(source: int, size: int) -> int:
    """Return a file without a name with all that comes from `source`.

    Raises FormatError if it is more than `size` bytes, which may have no end; OSError.
    """
    from cisfs.layer.nameless import nameless

    fd = nameless(Path(os.environ.get("TMPDIR") or _SPOOL))
    try:
        left = size
        while piece := os.read(source, _PIECE):
            left -= len(piece)
            if left < 0:
                raise FormatError(f"more than the layer's {size} bytes came in")
            write_all(fd, piece)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cisfs-decoder",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--keys",
        "--decryption-keys-path",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="private keys, one or more in each file, which nobody else can read",
    )
    parser.add_argument(
        "-i",
        "--identity",
        metavar="IDENTITY",
        action="append",
        default=[],
        help="a private key's FILE, pkcs11:URI or provider:NAME, as `cisfs unlock` takes it",
    )
    return parser


def _failed(why: object) -> int:
    print(f"cisfs-decoder: {why}", file=sys.stderr)
    if _STARTED_BY_CONTAINERD in os.environ:
        # It may know nothing better to say than that the empty layer has a wrong digest.
        syslog.openlog("cisfs-decoder", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, str(why))
    return 1
