"""The key directory: keys that lie ready for whatever opens a layer and cannot ask.

/etc/cisfs/keys for root, ~/.config/cisfs/keys (XDG_CONFIG_HOME) for others.  Every file in it is
offered, in the order of their names, but for hidden ones, directories, and public halves (*.pub,
*.crt).  If anybody else could read or change anything in it, nothing of it is used.

Does not know what its keys open.  One thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cisfs.errors import UsageError
from cisfs.keys.credentials import RawKey
from cisfs.keys.wrapping import Identity

SYSTEM = Path("/etc/cisfs/keys")
_PUBLIC = (".pub", ".crt")


def directory() -> Path:
    """Return where this user's key directory is, or would be."""
    if os.geteuid() == 0:
        return SYSTEM
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".config"
    return base / "cisfs/keys"


def identities(place: Path | None = None) -> list[Identity | RawKey]:
    """Return what the files in the key directory offer, or in another that is used as one.

    Nothing if there is no such directory.  Raises UsageError for a file or directory that others
    can read or change, and for a file that is no private key; NoKeyError for one that is encrypted:
    nobody is asked for its password.
    """
    place = place or directory()
    try:
        status = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"cannot read the key directory {place}: {error.strerror}") from None
    _check(place, status, 0o700)
    files = [path for path in sorted(place.iterdir()) if _is_offered(path)]
    for path in files:
        _check(path, path.stat(), 0o600)
    if not files:
        return []
    from cisfs.keys.identity_files import load_identities

    return [each for path in files for each in load_identities(path)]


def _is_offered(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix in _PUBLIC:
        return False
    return stat.S_ISREG(path.stat().st_mode)


def _check(path: Path, status: os.stat_result, mode: int) -> None:
    """Refuse what others own, or have any right to."""
    owner = os.geteuid()
    if status.st_uid != owner:
        raise UsageError(f"{path} belongs to user {status.st_uid}: chown {owner} {path}")
    if status.st_mode & 0o077:
        raise UsageError(
            f"others have a right to {path}, so no key in the directory is used: "
            f"chmod {mode:o} {path}"
        )
