"""Whom a container's command runs as: `--user` read against the container's own passwd and group.

Pure functions over the text of the two files, with docker's rules; does not know where the text
comes from.  Nothing of the host's accounts is ever asked.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cisfs.errors import EngineError

MAX_ID = (1 << 32) - 2  # the last number is (uid_t)-1, "no change"


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers to run with, and the home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(user: str | None, passwd: str, group: str) -> Account:
    """Return the account that `user` ("NAME", "UID", either with ":GROUP" or ":GID") stands for.

    None is uid 0.  A number needs no entry, a name does.  An explicit group replaces the
    supplementary ones.  Raises EngineError for an unknown name or a number out of range.
    """
    wanted, _, wanted_group = (user if user is not None else "0").partition(":")
    if user is not None and (not wanted or user.endswith(":")):
        raise EngineError(f"--user {user!r}: write NAME or UID, or either with :GROUP or :GID")
    number = _number(wanted, "user")
    entry = next((one for one in _users(passwd) if wanted == one.name or number == one.uid), None)
    if entry is None:
        if number is None:
            raise EngineError(
                f"--user: no user {wanted!r} in the container's /etc/passwd; name one, or use a UID"
            )
        entry = _User("", number, 0, "/")
    if wanted_group:
        return Account(entry.uid, _gid(wanted_group, group), (), entry.home or "/")
    groups = tuple(one.gid for one in _groups(group) if entry.name and entry.name in one.members)
    return Account(entry.uid, entry.gid, groups, entry.home or "/")


def _gid(wanted: str, text: str) -> int:
    number = _number(wanted, "group")
    for one in _groups(text):
        if wanted == one.name or number == one.gid:
            return one.gid
    if number is None:
        raise EngineError(
            f"--user: no group {wanted!r} in the container's /etc/group; name one, or use a GID"
        )
    return number


def _number(text: str, what: str) -> int | None:
    """Return the id that `text` writes in decimal, None when it is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > len(str(MAX_ID)) or int(text) > MAX_ID:
        raise EngineError(f"--user: {what} number {text} is out of range")
    return int(text)


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    """Yield the rows of a passwd(5)-like file, padded; whatever is not one is skipped."""
    for line in text.split("\n"):
        row = line.strip().split(":")
        if row[0] and not row[0].startswith("#"):
            yield row + [""] * (fields - len(row))


def _users(text: str) -> Iterator[_User]:
    for name, _, uid, gid, _, home, *_ in _rows(text, 7):
        if _is_id(uid) and _is_id(gid):
            yield _User(name, int(uid), int(gid), home)


def _groups(text: str) -> Iterator[_Group]:
    for name, _, gid, members, *_ in _rows(text, 4):
        if _is_id(gid):
            yield _Group(name, int(gid), tuple(filter(None, members.split(","))))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID
