"""A system under comparison: ext4 with the kernel's own file encryption, fscrypt, in a loop file.

The ioctls are those of linux/fscrypt.h and Documentation/filesystems/fscrypt.rst.  Knows nothing
of what is measured on it.  One thread.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loops import mount_image, unmount_image
from benchmarks.programs import disk_usage, missing
from benchmarks.servers import Usage
from benchmarks.systems import PARTS, System

IMAGE_SIZE = 4 << 30
_FEATURE = Path("/sys/fs/ext4/features/encryption")
_KEY = bytes(range(64))

_ADD_ENCRYPTION_KEY = 0xC0506617  # _IOWR('f', 23, struct fscrypt_add_key_arg)
_SET_ENCRYPTION_POLICY = 0x800C6613  # _IOR('f', 19, struct fscrypt_policy_v1), for v2 as well
# Type of the specifier, its 32 bytes (the kernel fills in an identifier of 16); size of the key.
_ADD_KEY_ARG = struct.Struct("=I4x32sI36x")
_BY_IDENTIFIER = 2
# Version, mode of contents, mode of names, flags, log2 of the data unit size (0: the block size).
_POLICY_V2 = struct.Struct("=BBBBB3x16s")
_AES_256_XTS, _AES_256_CTS, _PAD_NAMES_TO_32 = 1, 4, 3


class Fscrypt(System):
    """AES-256-XTS contents and AES-256-CTS names: the usual policy."""

    name = "fscrypt"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._image = self.backing / "ext4"
        self._root = self.work / self.name / "root"
        self.view = self._root / "encrypted"

    @classmethod
    def lacks(cls) -> str:
        """It needs a kernel with encryption for ext4."""
        return missing("mkfs.ext4") or ("" if _FEATURE.exists() else "encryption in ext4")

    def start(self) -> None:
        """Make the filesystem, and in it an encrypted directory."""
        self.backing.mkdir(parents=True)
        with self._image.open("wb") as image:
            os.posix_fallocate(image.fileno(), 0, IMAGE_SIZE)
        # Nothing is to be initialised later, when something is being measured, and the space is
        # to stay allocated.
        extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(
            ["mkfs.ext4", "-q", "-O", "encrypt", "-E", extended, str(self._image)], check=True
        )
        identifier = self._mount()
        self.view.mkdir()
        policy = _POLICY_V2.pack(2, _AES_256_XTS, _AES_256_CTS, _PAD_NAMES_TO_32, 0, identifier)
        _ioctl(self.view, _SET_ENCRYPTION_POLICY, bytearray(policy))

    def stop(self) -> None:
        """Unmount, and delete the image."""
        self.unmount()
        self._clear()

    def mount(self, parts: Sequence[str] = PARTS) -> None:  # noqa: ARG002 - it has them all
        """Mount it read-only and add the key."""
        self.unmount()
        self._mount("-o", "ro")

    def unmount(self) -> None:
        """Unmount it; the key goes with the mount."""
        unmount_image(self._image, self._root)

    def stored(self) -> int:
        """Return what it takes of its own filesystem, which must be mounted."""
        return disk_usage(self.view)

    def usage(self) -> Usage:
        """No server: the kernel encrypts on its own account, and decrypts on the reader's."""
        return Usage()

    def details(self) -> dict[str, str]:
        """What encrypts."""
        return {"fscrypt": "AES-256-XTS, v2 policy, ext4 on a loop device with direct I/O"}

    def _mount(self, *options: str) -> bytes:
        """Mount it, add the key, and return the key's identifier."""
        mount_image(self._image, self._root, *options, direct=True)
        argument = bytearray(_ADD_KEY_ARG.pack(_BY_IDENTIFIER, bytes(32), len(_KEY)) + _KEY)
        _ioctl(self._root, _ADD_ENCRYPTION_KEY, argument)
        return bytes(argument[8:24])


def _ioctl(directory: Path, request: int, argument: bytearray) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, request, argument)
    finally:
        os.close(descriptor)
