"""The options of commands that open something with keys, and of those that make something.

Describes them, and turns what was given into openers and recipients.  Does not know what was
unlocked before (`cisfs.layer.unlocked`).  One thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cisfs.keys import credentials
from cisfs.keys.credentials import (
    FILE_VARIABLE,
    KEY_SIZE,
    Credential,
    Identities,
    Opener,
    RawKey,
)
from cisfs.keys.wrapping import Recipient


def add_key_options(parser: argparse.ArgumentParser, *, short: bool = True) -> None:
    """Give `parser` the options that name what opens a layer; `short`: -i is free."""
    group = parser.add_argument_group(
        "key",
        "Without any of these, a layer that was unlocked needs none.  Failing that,\n"
        f"${FILE_VARIABLE} names the passphrase file, the key directory and the key\n"
        "providers are tried, and then the passphrase is asked for on the terminal.",
    )
    group.add_argument(
        *(("-i", "--identity") if short else ("--identity",)),
        metavar="IDENTITY",
        action="append",
        default=[],
        help="a private key's FILE, pkcs11:URI or provider:NAME (see cisfs key --help); any number",
    )
    _add_secret_options(group)


def add_recipient_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Give `parser` the option that says whom something is made for."""
    parser.add_argument(
        "-r",
        "--recipient",
        metavar="RECIPIENT",
        action="append",
        default=[],
        required=required,
        help="let the holder of this key open it: a public key's FILE, age1..., pkcs11:URI, "
        "provider:NAME, passphrase ... (see cisfs key --help); any number",
    )


def add_making_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options that say what is to open the layer that it makes."""
    add_recipient_option(parser)
    group = parser.add_argument_group(
        "key of the new layer",
        f"Without any of these and without -r, ${FILE_VARIABLE} names the\n"
        "passphrase file; failing that, a passphrase is asked for on the terminal.",
    )
    _add_secret_options(group)


def named_opener(args: argparse.Namespace) -> Opener | None:
    """Return what the options in `args`, or else the environment, offer; None if nothing.

    Identities are tried in the order given, after a key file and before a passphrase, which costs
    most.  Raises UsageError for a source that will not do, NoKeyError, WrongKeyError for an
    encrypted file.
    """
    from cisfs.keys.spelling import identities

    found = [each for text in args.identity for each in identities(text)]
    secret = credentials.from_options(args, purpose="") if credentials.is_named(args) else None
    if not found:
        return secret
    if secret is None:
        return Identities(tuple(found))
    return Identities((secret, *found) if isinstance(secret, RawKey) else (*found, secret))


def recipients(
    args: argparse.Namespace, purpose: str | None = None
) -> list[Credential | Recipient]:
    """Return whom something is made for: those of -r, and a passphrase or key file if given.

    When there is none, a new passphrase is asked for, `purpose` being the prompt's words; without
    it, the options of secrets are not about recipients.  Raises UsageError, NoKeyError.
    """
    from cisfs.keys.spelling import recipients as spelled

    found: list[Credential | Recipient] = []
    for text in args.recipient:
        found += spelled(text)
    if purpose is not None and (not found or credentials.is_given(args)):
        found.append(credentials.from_options(args, purpose=purpose, confirm=True))
    return found


def _add_secret_options(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help='read the passphrase from the first line of FILE, which others may not read ("-": '
        "standard input)",
    )
    one.add_argument(
        "--passphrase-command",
        metavar="COMMAND",
        help="run COMMAND through the shell's word splitting and read the passphrase it prints",
    )
    one.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        help=f"use the {KEY_SIZE} random bytes in FILE; make one with: "
        f"(umask 077; head -c {KEY_SIZE} /dev/urandom > FILE)",
    )
