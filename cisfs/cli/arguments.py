"""Kinds of arguments that several commands take: sizes, durations.

Pure functions for argparse, which makes wrong use of their ArgumentTypeError.  Knows no command.
Safe anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path

from cisfs.errors import CisfsError, UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_DURATION = 3650 * 86_400
_OCI = "oci:"
_FACTORS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Parse a number of bytes above zero, such as "16384", "16K" or "64G"."""
    factor = _FACTORS.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isascii() or not digits.isdigit() or not int(digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 16384 or 16K")
    return int(digits) * factor


def limit(text: str) -> int:
    """Parse a number of bytes that something is limited to; "none" is 0."""
    return 0 if text == "none" else size(text)


def unit_size(text: str) -> int:
    """Parse the size of a data unit."""
    wanted = size(text)
    if not 4096 <= wanted <= 1024 * 1024 or wanted & (wanted - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 4K to 1M")
    return wanted


def duration(text: str) -> int | None:
    """Parse a time such as "30s", "15m", "1h" or "2d" into seconds; "none" is None."""
    if text == "none":
        return None
    digits, factor = text[:-1], _SECONDS.get(text[-1:])
    if factor is None or not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30s, 15m, 1h, 2d or none")
    if not 0 < int(digits) * factor <= MAX_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from 1s to 3650d")
    return int(digits) * factor


def patience(text: str) -> float:
    """Parse for how many seconds something is waited for."""
    from cisfs.mount import assignment

    try:
        return assignment.patience(text)
    except CisfsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def given(text: str) -> str:
    """Return what names a file or directory.

    Nothing would name the current directory, and is more likely a variable that is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("nothing is given; . is the current directory")
    return text


def path(text: str) -> Path:
    """Return the path of a file or directory."""
    return Path(given(text))


def layer(text: str) -> Path:
    """Return the path of a vault or layer.

    What is named by its identity lies in the store, and a name may be one in the host's directory
    of layers; what is neither stays as it is, for the command to refuse.
    """
    from cisfs.layer import store

    here = Path(text)
    identity = store.identity_in(text)
    if identity is not None:
        return here if here.exists() else store.pulled(identity)
    with contextlib.suppress(CisfsError, OSError):
        return store.resolve_from_here(text)
    return here


def refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise UsageError, with `why`, if one of the options was given that `args` has as `names`."""
    for name in names:
        if getattr(args, name) not in (None, False, []):
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def oci_layout(option: str, text: str) -> tuple[Path, str | None]:
    """Return the directory and the name in oci:DIRECTORY[:NAME], which `option` was given.

    Raises UsageError for anything else.
    """
    directory, colon, name = text.removeprefix(_OCI).partition(":")
    if not text.startswith(_OCI) or not directory or (colon and not name):
        raise UsageError(f"{option} {text!r}: write it as oci:DIRECTORY[:NAME]")
    return Path(directory), name or None


def workers(text: str) -> int:
    """Parse a number of processes."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256")
    return int(text)
