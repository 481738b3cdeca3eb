"""What the writable layer of a container can do as a block image, whatever it is kept in.

Does not know file systems, FUSE or encryption.  An image belongs to one thread.
"""

from __future__ import annotations

from typing import Protocol


class BlockImage(Protocol):
    """An image that a disk could be; `size` is in bytes.

    `durable`: what was written and synced is there when the image is opened again.
    """

    size: int
    durable: bool

    def read(self, offset: int, size: int) -> memoryview:
        """Return bytes, fewer than `size` only at the end; the view is valid until the next call.

        Raises IntegrityError, OSError.
        """

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, which lies within the image.  Raises IntegrityError, OSError."""

    def discard(self, offset: int, size: int) -> None:
        """Make bytes zeros, and give their space back.  Raises OSError: EOPNOTSUPP if it cannot."""

    def tidy(self) -> bool:
        """Do a bit of what can wait until nobody does; tells whether there was any."""

    def sync(self) -> None:
        """Make what was written durable.  Raises OSError: ENOSYS if it is not meant to be."""

    def destroy(self) -> None:
        """Forget the key: reads fail with ESHUTDOWN now, and what is written is dropped."""

    def close(self) -> None:
        """Let the image go, in good order."""

    def abandon(self) -> None:
        """Let go of this process's copy of an image, which a forked process may serve on."""

    def descriptors(self) -> set[int]:
        """The descriptors that the image cannot be without."""
