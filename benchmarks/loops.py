"""Images mounted through loop devices.

Touches no loop device but those of the given images.  Knows nothing of what is in them.  One
thread.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.servers import unmount


def mount_image(image: Path, view: Path, *options: str, direct: bool = False) -> None:
    """Mount an image; `options` are mount(8)'s.  `direct`: cache nothing twice.

    Raises subprocess.CalledProcessError.
    """
    view.mkdir(exist_ok=True)
    attach = ["losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", str(image)]
    try:
        done = subprocess.run(attach, capture_output=True, text=True, check=True)
        subprocess.run(["mount", *options, done.stdout.strip(), str(view)], check=True)
    except BaseException:
        _detach(image)
        raise


def unmount_image(image: Path, view: Path) -> None:
    """Unmount it, and let go of its loop device; harmless when there is neither."""
    unmount(view)
    _detach(image)


def _detach(image: Path) -> None:
    # Not --associated: that looks at the image, which a server that died no longer shows.
    listing = ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        device, _, backing = line.partition(" ")
        if backing.strip() == str(image):
            subprocess.run(["losetup", "--detach", device], check=True)
