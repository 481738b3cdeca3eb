"""What one `cisfs seal` was asked for, and the checks that need no key and no work.

Values and read-only looks at the file system; does not know how anything is sealed.  Safe anywhere.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cisfs.build import mkfs
from cisfs.build.superblock import is_image
from cisfs.errors import UsageError
from cisfs.format.names import DIRECTORY_FILE, VAULT_FILE
from cisfs.layer.opening import is_sealed
from cisfs.mount import points

STANDARD_INPUT = "-"
UNCOMPRESSED = "none"


class Kind(enum.Enum):
    """What a source is."""

    DIRECTORY = "directory"
    VAULT = "vault"
    TAR = "tar"
    IMAGE = "EROFS image"
    LAYERS = "layers of an image"


@dataclass(frozen=True, slots=True)
class Request:
    """One seal.  `source` and `output` are absolute; a source of None is the standard input, or is
    named by `name`: an image.

    `unit_size` and `max_size` are in bytes.  `mkfs` is the program that makes compressed images, ""
    when it is not needed.
    """

    source: Path | None
    kind: Kind
    output: Path
    unit_size: int
    compression: str
    max_size: int
    devices: bool
    workers: int | None
    force: bool
    mkfs: str
    name: str = ""

    @property
    def path(self) -> Path:
        """The source, which is not the standard input."""
        if self.source is None:
            raise ValueError("the standard input has no path")
        return self.source

    @property
    def label(self) -> str:
        """What messages call the source."""
        return self.name or ("standard input" if self.source is None else str(self.source))


def check(
    *,
    source: str,
    output: Path,
    unit_size: int,
    compression: str,
    max_size: int,
    devices: bool,
    workers: int | None,
    force: bool,
    name: str = "",
) -> Request:
    """Return the request; with a `name`, it is for layers of that image.

    Raises UsageError or NoFuseError for what cannot be sealed, OSError.
    """
    target = check_output(output, force=force)
    origin, kind = (None, Kind.LAYERS) if name else _source(source)
    if origin is not None:
        _keep_apart(origin, target)
    is_compressed = kind is not Kind.IMAGE and compression != UNCOMPRESSED
    if is_compressed:
        points.require_fuse()
    return Request(
        source=origin,
        kind=kind,
        output=target,
        unit_size=unit_size,
        compression=compression,
        max_size=max_size,
        devices=devices,
        workers=workers,
        force=force,
        mkfs=mkfs.find() if is_compressed else "",
        name=name,
    )


def check_output(path: Path, *, force: bool) -> Path:
    """Return where the layer is to be, free of symlinks on the way.  Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name the layer to make in it")
    parent = points.resolved(path.parent)
    if not parent.is_dir():
        raise UsageError(f"there is no directory {path.parent} to make {path.name} in")
    if not os.access(parent, os.W_OK | os.X_OK):
        if os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise UsageError(f"cannot make {path}: its file system is mounted read-only")
        raise UsageError(f"no permission to make {path.name} in {path.parent}")
    if os.path.lexists(path):
        if not force:
            raise UsageError(f"{path} is there already; use --force to replace it")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path} is not a regular file, so it is not replaced")
    return parent / path.name


def _source(text: str) -> tuple[Path | None, Kind]:
    if text == STANDARD_INPUT:
        if os.isatty(0):
            raise UsageError("standard input is a terminal: pipe a tar into it")
        return None, Kind.TAR
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"cannot seal {path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return points.resolved(path), Kind.VAULT if _is_vault(path) else Kind.DIRECTORY
    if is_sealed(path):
        raise UsageError(f"{path} is a sealed layer already")
    if stat.S_ISBLK(mode):
        raise UsageError(f"{path} is a block device: mount it, and seal the directory")
    # Not resolved: bash's <(...) is a symlink to a pipe that no path leads to.
    return path.absolute(), Kind.IMAGE if _has_image(path, mode) else Kind.TAR


def _is_vault(path: Path) -> bool:
    return all((path / os.fsdecode(name)).is_file() for name in (VAULT_FILE, DIRECTORY_FILE))


def _has_image(path: Path, mode: int) -> bool:
    if not stat.S_ISREG(mode):
        return False  # a pipe: opening it is for the one who reads it
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return is_image(fd)
    finally:
        os.close(fd)


def _keep_apart(source: Path, output: Path) -> None:
    """Raise UsageError if the output lies in the source or is the source.

    By inode: bind mounts have more than one path.
    """
    status = source.stat()
    if any(os.path.samestat(status, above.stat()) for above in output.parents):
        raise UsageError(f"{output} lies inside {source}, which is to be sealed: choose a place")
    if output.exists() and os.path.samestat(status, output.stat()):
        raise UsageError(f"{output} is what is to be sealed: choose another name")
