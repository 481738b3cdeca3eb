"""PKCS #11 URIs (RFC 7512): which token, which key in it, and how to get at them.

Only what names a token and a key is taken; anything else is refused rather than passed over, since
a wrong spelling would name another key.  Does not speak to tokens.  Pure, but for looking which
module there is; safe anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cisfs.errors import UsageError

SCHEME = "pkcs11:"
MODULE_VARIABLE = "CISFS_PKCS11_MODULE"

# p11-kit's proxy stands for every module that is configured on the machine.
_PROXIES = (
    "/usr/lib/*/p11-kit-proxy.so",
    "/usr/lib64/p11-kit-proxy.so",
    "/usr/lib/p11-kit-proxy.so",
)

_PATH = {"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"}
_QUERY = {"module-path", "pin-source", "pin-value", "module-name"}


@dataclass(frozen=True, slots=True)
class Uri:
    """What a URI says, decoded; None for what it does not say."""

    shown: str  # the URI without its query, for messages
    token: str | None
    serial: str | None
    manufacturer: str | None
    model: str | None
    slot: int | None
    label: str | None
    key_id: bytes | None
    module_path: str | None
    pin_file: Path | None


def parse(text: str) -> Uri:
    """Read a URI; UsageError says what is wrong with it."""
    path, _, query = text.removeprefix(SCHEME).partition("?")
    shown = SCHEME + path
    if not text.startswith(SCHEME):
        raise UsageError(f"a PKCS #11 URI begins with {SCHEME}")
    names = _attributes(path.split(";"), _PATH, shown)
    options = _attributes(query.split("&"), _QUERY, shown)
    if "pin-value" in options:
        raise UsageError(f"{shown}: no pin-value, others see it in ps; use pin-source=/FILE")
    if "module-name" in options:
        raise UsageError(f"{shown}: no module-name; use module-path=/FILE")
    if names.get("type", b"private") not in (b"private", b"public", b"cert"):
        raise UsageError(f"{shown}: it does not name a key")
    return Uri(
        shown=shown,
        token=_text(names, "token", shown),
        serial=_text(names, "serial", shown),
        manufacturer=_text(names, "manufacturer", shown),
        model=_text(names, "model", shown),
        slot=_number(_text(names, "slot-id", shown), shown),
        label=_text(names, "object", shown),
        key_id=names.get("id"),
        module_path=_absolute(_text(options, "module-path", shown), "module-path", shown),
        pin_file=_pin_file(_text(options, "pin-source", shown), shown),
    )


def module(uri: Uri) -> str:
    """Return the path of the module to load: the URI's, the environment's, or p11-kit's proxy.

    Raises UsageError if there is none.
    """
    if named := uri.module_path or os.environ.get(MODULE_VARIABLE):
        return named
    for pattern in _PROXIES:
        for found in sorted(Path("/").glob(pattern[1:])):
            return str(found)
    raise UsageError(
        f"{uri.shown}: which module? say ?module-path=/FILE.so, set {MODULE_VARIABLE}, "
        "or install p11-kit"
    )


def _attributes(words: Iterable[str], known: set[str], shown: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for word in words:
        if not word:
            continue
        name, equals, value = word.partition("=")
        if name not in known or not equals:
            raise UsageError(f"{shown}: unknown attribute {name!r}; see RFC 7512")
        if name in found:
            raise UsageError(f"{shown}: {name} stands twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(attributes: Mapping[str, bytes], name: str, shown: str) -> str | None:
    if name not in attributes:
        return None
    try:
        text = attributes[name].decode()
    except UnicodeDecodeError:
        raise UsageError(f"{shown}: {name} is not UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{shown}: {name} has a zero byte")
    return text


def _number(text: str | None, shown: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 32:
        raise UsageError(f"{shown}: slot-id is not a number")
    return int(text)


def _absolute(path: str | None, name: str, shown: str) -> str | None:
    if path is not None and not path.startswith("/"):
        raise UsageError(f"{shown}: {name} is not an absolute path")
    return path


def _pin_file(source: str | None, shown: str) -> Path | None:
    """Return the file with the PIN: a path or a file: URI (RFC 8089), no command."""
    if source is None:
        return None
    path = source.removeprefix("file:")
    if path.startswith("//"):
        path = path.removeprefix("//").removeprefix("localhost")
    return Path(_absolute(path, "pin-source", shown) or "/")
