"""The images that are unpacked on this host, below the store: found again, or fetched.

    STORE/images/sha256:HEX/rootfs         an image's tree, public and in plain
    STORE/images/sha256:HEX/config.json    its configuration
    STORE/images/refs/HEX.json             which image a name stood for, when last looked
    STORE/images/new-HEX                   one on its way, claimed by a lock

An image is there as a whole or not at all, and never changes.  Does not know what an image is for.
Any number of processes may look and fetch side by side; one name is fetched by one at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.layer.locking import try_lock
from cisfs.layer.writing import sync_file_system
from cisfs.runtime.images import config, layout, tools
from cisfs.runtime.images.config import ImageConfig
from cisfs.runtime.images.reference import Reference
from cisfs.runtime.ownership import owned

_NEW = "new-"
_NAME = "image"  # in layouts that only this module sees


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image."""

    digest: str
    rootfs: Path
    config: ImageConfig

    def raw_config(self) -> bytes:
        """Return its configuration as it came.  Raises OSError."""
        return (self.rootfs.parent / "config.json").read_bytes()


def provide(reference: Reference, store: Path, pull: str) -> Image:
    """Return the image of that name, fetched and unpacked if `pull` and the store say so.

    "missing" looks at the original where that costs no network, so that an image built anew is
    seen; "always" looks everywhere; "never" takes what is here.  Raises EngineError, OSError.
    """
    images = _prepared(store)
    known = _recall(images, reference)
    if pull == "never" or (pull == "missing" and known and not reference.local):
        if known is None:
            raise EngineError(
                f"image {reference} is not here, and --pull never forbids fetching it"
            )
        return known
    with _one_at_a_time(images, reference):
        _sweep(images)
        source = tools.digest(str(reference))
        known = _recall(images, reference, source)
        return known if known is not None else _fetch(images, reference, source)


def _prepared(store: Path) -> Path:
    images = store / "images"
    owned(store, 0o755)
    for directory in (images, images / "refs"):
        # A tree has set-uid programs of every age: nobody else has business in there.
        owned(directory, 0o700)
    return images


def _record(images: Path, reference: Reference) -> Path:
    name = hashlib.sha256(str(reference).encode("utf-8", "surrogateescape")).hexdigest()
    return images / "refs" / f"{name}.json"


def _recall(images: Path, reference: Reference, source: str | None = None) -> Image | None:
    """Return the image that the name stood for; with `source`, only if it still does."""
    try:
        record = json.loads(_record(images, reference).read_bytes())
        if source is not None and record["source"] != source:
            return None
        return _open(images, record["image"], reference)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never fetched, or a record that was damaged: as good as never


def _open(images: Path, digest: str, reference: Reference) -> Image | None:
    directory = images / digest
    try:
        data = (directory / "config.json").read_bytes()
    except FileNotFoundError:
        return None
    return Image(digest, directory / "rootfs", config.parse(data, str(reference)))


def _fetch(images: Path, reference: Reference, source: str) -> Image:
    with _new_directory(images) as new:
        tools.copy(str(reference), new / "layout", _NAME)
        found = layout.read(new / "layout", str(reference))
        image = _open(images, found.digest, reference)
        if image is None:
            parsed = config.parse(found.config, str(reference))
            config.check_platform(parsed, platform.machine(), str(reference))
            tools.unpack(new / "layout", _NAME, new / "rootfs")
            shutil.rmtree(new / "layout")
            (new / "config.json").write_bytes(found.config)
            _publish(new, images / found.digest)
            image = Image(found.digest, images / found.digest / "rootfs", parsed)
    _remember(images, reference, source, image.digest)
    return image


def _publish(new: Path, final: Path) -> None:
    # After a loss of power the name must not stand for half a tree.
    directory = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file_system(directory)
    finally:
        os.close(directory)
    try:
        new.rename(final)
    except OSError:
        if not (final / "config.json").exists():  # else somebody else was first with the same
            raise


def _remember(images: Path, reference: Reference, source: str, digest: str) -> None:
    record = _record(images, reference)
    text = json.dumps({"reference": str(reference), "source": source, "image": digest})
    temporary = record.with_suffix(f".{secrets.token_hex(8)}")
    temporary.write_text(text)
    temporary.replace(record)


@contextmanager
def _one_at_a_time(images: Path, reference: Reference) -> Iterator[None]:
    lock = os.open(
        _record(images, reference).with_suffix(".lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
        0o600,
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _new_directory(images: Path) -> Iterator[Path]:
    """Make a directory that is claimed by a lock, and remove it if it is still there afterwards."""
    path, lock = _claim(images)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _claim(images: Path) -> tuple[Path, int]:
    while True:
        path = images / f"{_NEW}{secrets.token_hex(16)}"
        path.mkdir(mode=0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # a sweep came first
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)


def _sweep(images: Path) -> None:
    """Remove what fetches left that were killed."""
    for path in images.glob(f"{_NEW}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # finished just now
        try:
            if try_lock(lock):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
