"""The ext4 on a scratch image: making it, and mounting it through a loop device.

Made in memory by mkfs.ext4(8), which never sees the image: what it wrote is then copied there, so
that nothing of a file system of many GiB is written but the few hundred KiB that are not zeros.

Does not know what an image is encrypted with, or who serves it.  For a process with one thread that
does not serve the image.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cisfs.errors import MountError
from cisfs.layer.block_image import BlockImage
from cisfs.mount import newmount, programs

BLOCK_SIZE = 4096
_INODE_RATIO = 16384  # bytes of the image for each inode
_PIECE = 1 << 20
# In the superblock, at 1024: the kernel's Documentation/filesystems/ext4/super.rst.
_MAGIC_OFFSET = 1024 + 0x38
_MAGIC = b"\x53\xef"


def is_on(image: BlockImage) -> bool:
    """Whether there is an ext4 on an image.  Raises IntegrityError, OSError."""
    return bytes(image.read(_MAGIC_OFFSET, len(_MAGIC))) == _MAGIC


def make(image: BlockImage) -> None:
    """Make an empty ext4 on an image that is all holes.  Raises MountError, OSError.

    One that need not last has no journal.
    """
    memory = os.memfd_create("cisfs scratch", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, image.size)
        _run_mkfs(memory, journal=image.durable)
        # The superblock comes last: until it is there, this may be done once more.
        for start, end in reversed(list(_extents(memory, image.size))):
            for at in range(start, end, _PIECE):
                image.write(at, memoryview(os.pread(memory, min(_PIECE, end - at), at)))
    finally:
        os.close(memory)


def _run_mkfs(file: int, *, journal: bool) -> None:
    features = "^resize_inode,^metadata_csum" + ("" if journal else ",^has_journal")
    words = [
        *(_find_mkfs(), "-q", "-F", "-b", str(BLOCK_SIZE), "-i", str(_INODE_RATIO), "-m", "0"),
        *("-O", features, "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"),
        f"/proc/self/fd/{file}",
    ]
    ended = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[file],
        env={"PATH": os.defpath, "LC_ALL": "C"},
        check=False,
    )
    if ended.returncode:
        complaint = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise MountError(f"mkfs.ext4 failed: {complaint or ended.returncode}")


def _find_mkfs() -> str:
    found = programs.find("mkfs.ext4")
    if found is None:
        raise MountError("mkfs.ext4 is not installed; on Debian and Ubuntu: apt install e2fsprogs")
    return found


def _extents(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The byte ranges of a sparse file that hold anything, lseek(2)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def mount(device: str, mountpoint: Path, *, durable: bool) -> None:
    """Mount the ext4 on a block device.  Raises MountError."""
    configured = newmount.Configured("ext4")
    try:
        configured.string("source", device)
        configured.flag("discard")
        if durable:
            configured.string("errors", "remount-ro")
        else:
            configured.flag("nobarrier")
        mounted = configured.mount(read_only=False, attributes=newmount.ATTR_NOATIME)
    except OSError as error:
        raise MountError(f"the kernel cannot mount the scratch: {error.strerror}") from None
    finally:
        configured.close()
    try:
        newmount.place(mounted, mountpoint)
    finally:
        os.close(mounted)
