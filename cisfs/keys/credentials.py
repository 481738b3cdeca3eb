"""Where a passphrase or key comes from: a file, a command, the environment's file name, a terminal.

Never from argv or an environment variable's value.  Does not know what was unlocked before
(`cisfs.layer.unlocked`) nor what a credential opens (`cisfs.keys.slots`).  Reads each source once,
when asked; not for several threads at a time.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cisfs.crypto.keys import SecretKey
from cisfs.errors import NoKeyError, UsageError
from cisfs.keys.private_files import MAX_SECRET_SIZE, limited, read_private
from cisfs.keys.wrapping import Identity, Recipient

KEY_SIZE = 32  # bytes in a key file
FILE_VARIABLE = "CISFS_PASSPHRASE_FILE"
_OPTIONS = (
    "no passphrase or key: use --passphrase-file, --passphrase-command, --key-file or --identity, "
    f"or set {FILE_VARIABLE}"
)
_OPTIONS_TO_MAKE = _OPTIONS.replace("--identity", "--recipient")


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase, as bytes without the line end it was read with."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RawKey:
    """The 32 bytes of a key file."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A layer's master key itself, unwrapped before and kept in memory since."""

    secret: SecretKey


@dataclass(frozen=True, slots=True)
class Identities:
    """Everything that is offered to open a layer, in the order in which it is to be tried.

    `ask` is called when none of it opened a slot and there is one that takes a passphrase.
    """

    offered: tuple[Identity | Passphrase | RawKey, ...]
    ask: Callable[[], Passphrase] | None = None


Credential = Passphrase | RawKey  # a secret that a key slot is made for, and that opens it
Opener = Credential | MasterKey | Identities  # what opens a layer
Recipients = Credential | Recipient | Sequence[Credential | Recipient]  # what slots are made for


def is_named(args: argparse.Namespace) -> bool:
    """Tell whether an option in `args` or the environment names a credential."""
    return is_given(args) or bool(os.environ.get(FILE_VARIABLE))


def is_given(args: argparse.Namespace) -> bool:
    """Tell whether an option in `args` names a credential."""
    given = (args.key_file, args.passphrase_command, args.passphrase_file)
    return any(each is not None for each in given)


def from_options(args: argparse.Namespace, *, purpose: str, confirm: bool = False) -> Credential:
    """Return the credential that the options in `args` name, or ask for one.

    `purpose` is the prompt's words; with `confirm` a typed passphrase is asked for twice.
    Raises NoKeyError when nothing was offered, UsageError for a source that will not do.
    """
    if args.key_file is not None:
        return key_file(args.key_file)
    if args.passphrase_command is not None:
        return from_command(args.passphrase_command)
    named = args.passphrase_file
    if named is None and os.environ.get(FILE_VARIABLE):
        named = Path(os.environ[FILE_VARIABLE])
    if named is not None:
        return from_file(named)
    return typed(purpose, confirm=confirm, instead=_OPTIONS_TO_MAKE if confirm else _OPTIONS)


def key_file(path: Path) -> RawKey:
    """Return the key in a key file.  Raises UsageError."""
    key = _read(path, "key file")
    if len(key) != KEY_SIZE:
        raise UsageError(
            f"key file {path} has {len(key)} bytes instead of {KEY_SIZE}; make one with: "
            f"(umask 077; head -c {KEY_SIZE} /dev/urandom > FILE)"
        )
    return RawKey(key)


def _read(path: Path, what: str) -> bytes:
    if str(path) != "-":
        return read_private(path, what)
    if sys.stdin is None:
        raise UsageError(f"cannot read {what} {path}: standard input is closed")
    return limited(sys.stdin.buffer.read(MAX_SECRET_SIZE + 1), f"{what} {path}")


def _first_line(data: bytes, where: str) -> bytes:
    line = data.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise UsageError(f"no passphrase: the first line of the {where} is empty")
    return line


def _from_command(command: str) -> bytes:
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"cannot run the passphrase command: {error}") from None
    if done.returncode:
        raise UsageError(f"the passphrase command failed with status {done.returncode}")
    return _first_line(done.stdout, "passphrase command's output")


def _ask(purpose: str, confirm: bool, instead: str) -> bytes:
    try:
        with open("/dev/tty", "rb"):
            pass
    except OSError:
        raise NoKeyError(instead) from None
    try:
        typed = getpass.getpass(f"{purpose}: ")
        if confirm and getpass.getpass("the same again: ") != typed:
            raise UsageError("the two passphrases differ; nothing was done")
    except EOFError:
        raise NoKeyError("no passphrase was typed") from None
    if not typed:
        raise NoKeyError("no passphrase was typed")
    return typed.encode("utf-8", "surrogateescape")


def from_file(path: Path) -> Passphrase:
    """Return the passphrase in the first line of a file, "-" being standard input.

    Raises UsageError.
    """
    return Passphrase(_first_line(_read(path, "passphrase file"), f"passphrase file {path}"))


def from_command(command: str) -> Passphrase:
    """Return the passphrase that a command prints.  Raises UsageError."""
    return Passphrase(_from_command(command))


def typed(purpose: str, *, confirm: bool = False, instead: str = _OPTIONS) -> Passphrase:
    """Ask for a passphrase at the terminal, twice with `confirm`; `purpose` is the prompt's words.

    `instead` says what to do where there is no terminal.  Raises NoKeyError if there is none or
    nothing is typed, UsageError for two that differ.
    """
    return Passphrase(_ask(purpose, confirm, instead))
