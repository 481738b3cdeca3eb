"""Whom a command in a container runs as, by the passwd and group files of that container.

Looks below a descriptor of the container's root, and nowhere else.  Does not know containers.  Safe
anywhere.
"""

from __future__ import annotations

from cisfs.mount import syscalls
from cisfs.runtime import account
from cisfs.runtime.account import Account

_LIMIT = 1 << 22  # bytes of a file


def resolve(root: int, user: str | None) -> Account:
    """Return the account that `user` stands for in the tree below the descriptor `root`.

    Raises EngineError as `account.resolve` does.
    """
    return account.resolve(user, _text(root, "/etc/passwd"), _text(root, "/etc/group"))


def _text(root: int, path: str) -> str:
    """Return a file of the container, empty when it has none."""
    content = syscalls.read_in_root(root, path, _LIMIT)
    return (content or b"").decode("utf-8", "surrogateescape")
