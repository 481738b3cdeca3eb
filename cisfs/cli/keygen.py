"""`cisfs keygen`: make a key pair.

Parses, asks for a passphrase, calls `cisfs.keys`.  One call per process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cisfs.errors import UsageError

HELP = "make a private key that opens layers, or one that signs them"

_EPILOG = """\
FILE gets the private key (PEM, PKCS #8), which only you can read, and FILE.pub the public key, to
give to whoever encrypts for you.  Neither replaces a file that is there.  Without -o the private
key goes to standard output, and the public key to standard error.

The key is an elliptic-curve key (P-256).  What openssl makes will do as well, RSA keys included;
skopeo and other tools that speak ocicrypt take the same files, if they are not encrypted.

There is no way into what was encrypted for a lost key, nor past a forgotten passphrase.

examples:
  cisfs keygen -o me.key
  cisfs keygen -o me.key --encrypt
  cisfs keygen --signing -o release.key
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="file to make")
    parser.add_argument(
        "--signing", action="store_true", help="make a key to sign layers with (Ed25519)"
    )
    group = parser.add_argument_group("passphrase", "By default the private key is not encrypted.")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--encrypt",
        action="store_true",
        help="ask for a passphrase, and encrypt the private key with it",
    )
    one.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help='the same with the first line of FILE ("-": standard input)',
    )
    one.add_argument(
        "--passphrase-command",
        metavar="COMMAND",
        help="the same with the passphrase that COMMAND prints",
    )


def run(args: argparse.Namespace) -> int:
    """Make the key pair; return 0."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from cisfs.keys.pkcs8 import private_pem
    from cisfs.keys.private_files import write_pair

    public_path = _public_path(args.output)
    passphrase = _passphrase(args)
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if args.signing:
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    private = private_pem(key, passphrase)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if public_path is None:
        sys.stdout.write(private.decode("ascii"))
        sys.stderr.write(public.decode("ascii"))
        return 0
    write_pair(args.output, private, public_path, public)
    print(f"made {args.output} and {public_path}; next: {_next(args, public_path)}")
    return 0


def _public_path(output: Path | None) -> Path | None:
    """Return the path of the public key; find out what is in the way before asking anything."""
    if output is None:
        return None
    if not output.name:
        raise UsageError(f"{output} is a directory; name the file to make")
    public_path = output.with_name(output.name + ".pub")
    for path in (output, public_path):
        if path.is_symlink() or path.exists():
            raise UsageError(f"{path} is there already; it was left alone")
    return public_path


def _passphrase(args: argparse.Namespace) -> bytes | None:
    from cisfs.keys import credentials

    if args.encrypt:
        return credentials.typed(
            "passphrase for the new private key",
            confirm=True,
            instead="no terminal to ask for a passphrase at: use --passphrase-file or "
            "--passphrase-command",
        ).secret
    if args.passphrase_file is not None:
        return credentials.from_file(args.passphrase_file).secret
    if args.passphrase_command is not None:
        return credentials.from_command(args.passphrase_command).secret
    return None


def _next(args: argparse.Namespace, public_path: Path) -> str:
    if args.signing:
        return f"cisfs sign --key {args.output} LAYER; cisfs verify --signer {public_path} LAYER"
    return f"cisfs seal -r {public_path} -o LAYER SOURCE; cisfs mount -i {args.output} LAYER DIR"
