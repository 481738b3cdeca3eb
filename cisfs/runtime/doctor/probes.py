"""What is tried out: each probe does in small what a container takes, and says how it went.

A probe works in an empty directory and in isolation (`isolated`), so it cleans up only what the
kernel would not.  Raises OSError or CisfsError when the host cannot do it.  Does not judge.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cisfs.errors import CisfsError, MountError
from cisfs.format import erofs
from cisfs.format.erofs import Dirent, Inode, Superblock
from cisfs.keys import keyctl
from cisfs.keys.credentials import RawKey
from cisfs.layer import vault
from cisfs.layer.opening import Layer, open_layer
from cisfs.layer.sealing import StoredImage, seal_image
from cisfs.mount import idmap, points, server, syscalls, wire
from cisfs.runtime import overlay

_FILE = "file"
_CONTENT = b"from the layer"
_ADDED = b", and from the container"
_EXT4_SIZE = 16 << 20  # bytes
_FIRST_OWNER = 1 << 20  # of the host's ids; any


def sealed_layer(place: Path) -> str:
    """Mount a sealed layer, and an overlay on it; say from what the kernel reads."""
    key = RawKey(secrets.token_bytes(32))
    with _mounted(_open_sealed(place, key), place) as mountpoint:
        _copy_up(place, mountpoint)
        return _backing(mountpoint)


def sealed_layer_on_loop(place: Path) -> str:
    """Mount a sealed layer as older kernels have to."""
    key = RawKey(secrets.token_bytes(32))
    with _mounted(_open_sealed(place, key), place, loop_device=True) as mountpoint:
        return _backing(mountpoint)


def vault_layer(place: Path) -> str:
    """Mount a vault, and change a file of it in an overlay."""
    key = RawKey(secrets.token_bytes(32))
    vault.create(place / "vault", key)
    with _mounted(open_layer(place / "vault", key, read_only=False), place) as mountpoint:
        (mountpoint / _FILE).write_bytes(_CONTENT)
        _copy_up(place, mountpoint)
    return "a file of a vault was changed in an overlay"


def resend(place: Path) -> str:
    """Ask the kernel to send requests again that a killed worker had taken."""
    device = os.open(points.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("cisfs", str(place), points.FSTYPE, syscalls.MS_RDONLY, options)
        os.write(device, wire.NOTIFY_RESEND)
    finally:
        os.close(device)
    return "requests of a killed worker are sent again"


def ext4(place: Path) -> str:
    """Mount an ext4 image as the scratch of a container is."""
    image, mountpoint = place / "image", place / "mountpoint"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(_EXT4_SIZE)
    _run("mkfs.ext4", "-q", "-F", str(image))
    _run("mount", "-t", "ext4", "-o", "loop", str(image), str(mountpoint))
    try:
        (mountpoint / _FILE).write_bytes(_CONTENT)
    finally:
        syscalls.unmount(str(mountpoint), syscalls.MNT_DETACH)
    return "mkfs.ext4, and a mount through a loop device"


def keyring(_place: Path) -> str:
    """Keep a key in the kernel's keyring; it goes with this thread."""
    secret = secrets.token_bytes(32)
    keyctl.link(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    key = keyctl.add_key(b"user", b"cisfs:probe", secret, keyctl.THREAD_KEYRING)
    if keyctl.read(key) != secret:
        raise CisfsError("the kernel's keyring has another key than it was given")
    return "a key was kept and found"


def user_namespace(place: Path) -> str:
    """Write to an overlay that is mounted with other owners, as strict containers do."""
    stored, shown, root = (place / name for name in ("stored", "shown", "root"))
    for directory in (stored / "lower", stored / "upper", stored / "work", shown, root):
        directory.mkdir(parents=True)
    with idmap.moved(_FIRST_OWNER) as owners:
        owners.mount(stored, shown)
        lower, upper, work = (str(shown / name) for name in ("lower", "upper", "work"))
        with owners.acting():
            syscalls.mount("cisfs", str(root), "overlay", 0, overlay.options([lower], upper, work))
            (root / _FILE).write_bytes(_CONTENT)
        owner = (root / _FILE).stat().st_uid, (stored / "upper" / _FILE).stat().st_uid
    if owner != (_FIRST_OWNER, 0):
        raise MountError(f"id 0 in an overlay with other owners is {owner[0]}, stored {owner[1]}")
    return "containers of cisfs run can have their own"


def tiny_image() -> bytes:
    """Return an EROFS image with one file."""
    root = erofs.nid_at(erofs.BLOCK_SIZE)
    names = (b".", b"..", _FILE.encode())
    directory, regular = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
    size = erofs.directory_size(names)
    file = root + erofs.nid_at(erofs.whole_slots(erofs.COMPACT_SIZE + size))
    dirents = zip(names, (root, root, file), (directory, directory, regular), strict=True)
    content = erofs.pack_directory(Dirent(*each) for each in dirents)
    block = _inode(root, directory, size) + content
    block = block.ljust(erofs.whole_slots(len(block)), b"\0")
    block += _inode(file, regular, len(_CONTENT)) + _CONTENT
    head = Superblock(blocks=2, inodes=2, root_nid=root, build_time_ns=0, uuid=bytes(16)).pack()
    return head + block.ljust(erofs.BLOCK_SIZE, b"\0")


def _inode(nid: int, mode: int, size: int) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    inode = Inode(nid, mode, 0, 0, links, size, 0, erofs.FLAT_INLINE, erofs.NO_BLOCKS, 0)
    return inode.pack(erofs.COMPACT_SIZE)


def _open_sealed(place: Path, key: RawKey) -> Layer:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        size = os.write(fd, tiny_image())
        seal_image(StoredImage(fd, size), place / "layer.cis", key, workers=1)
    finally:
        os.close(fd)
    return open_layer(place / "layer.cis", key)


@contextmanager
def _mounted(layer: Layer, place: Path, *, loop_device: bool = False) -> Iterator[Path]:
    mountpoint = place / "mountpoint"
    mountpoint.mkdir()
    options = server.MountOptions(detach=False, workers=1, loop_device=loop_device)
    running = server.start(layer, mountpoint, options)
    layer.abandon()
    try:
        yield mountpoint
    finally:
        running.stop()


def _copy_up(place: Path, lower: Path) -> None:
    """Append to the file in an overlay over `lower`, which copies it up."""
    upper, work, root = (place / name for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir()
    options = overlay.options([str(lower)], str(upper), str(work))
    syscalls.mount("cisfs", str(root), "overlay", 0, options)
    try:
        with (root / _FILE).open("ab") as file:
            file.write(_ADDED)
        if (root / _FILE).read_bytes() != _CONTENT + _ADDED:
            raise MountError("an overlay shows other content than was written")
    finally:
        syscalls.unmount(str(root), syscalls.MNT_DETACH)


def _backing(mountpoint: Path) -> str:
    entry = points.mounted_at(mountpoint)
    if entry is None:
        raise MountError(f"nothing is mounted at {mountpoint}")
    through_loop = entry.source.startswith("/dev/loop")
    return f"the kernel reads them {'through a loop device' if through_loop else 'from the file'}"


def _run(*words: str) -> None:
    """Run a program.  Raises CisfsError with what it said, OSError if there is none."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise CisfsError(f"{words[0]}: {said}")
