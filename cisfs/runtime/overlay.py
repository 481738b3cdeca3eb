"""Overlay option strings: which directories lie over which, and with which features.

Pure functions over strings; does not mount, and does not know what a layer or a container is.  Safe
anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

OPTIONS_LIMIT = 4095  # bytes: mount(2) copies one page of options, with the ending zero
MAX_LOWERS = 500  # OVL_MAX_STACK, fs/overlayfs/super.c

# What every overlay of ours is mounted with:
#   redirect_dir  a directory that came from a layer can be renamed instead of failing with EXDEV
#   index=off     an index keeps hard links joined through copy-up, but only over filesystems with a
#                 UUID: over a FUSE layer the kernel turns it off again, with a line in its log
#   xino=auto     the default, stable inode numbers where they fit; "on" sets high bits, at which
#                 stat(2) of a 32-bit program fails with EOVERFLOW
_FEATURES = ("redirect_dir=on", "index=off", "xino=auto")


def escape(path: str) -> str:
    r"""Return `path` so that it means itself inside a lowerdir list.

    A backslash makes the next ":" or "\" literal in the list; the option parser below it splits at
    "," in the same way (Documentation/filesystems/overlayfs.rst, "Multiple lower layers").
    Raises ValueError for a path that no escape can express.
    """
    if not path or "\0" in path:
        raise ValueError(f"not a directory name: {path!r}")
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def options(
    lowers: Sequence[str],
    upper: str | None = None,
    work: str | None = None,
    features: Sequence[str] = (),
) -> str:
    """Return the mount(2) data for an overlay of `lowers`, the first one on top.

    `features` are options that the upper directory asks for, beyond those of all overlays.  With
    `upper` and `work` it is writable, without both read-only, which takes two lowers or more.
    Raises ValueError for a plan that the kernel would refuse with no more than EINVAL.
    """
    if (upper is None) != (work is None):
        raise ValueError("an overlay has both an upper and a work directory, or neither")
    if not lowers or (upper is None and len(lowers) < 2):
        raise ValueError("a read-only overlay takes at least two lower directories")
    if len(lowers) > MAX_LOWERS:
        raise ValueError(f"{len(lowers)} layers; an overlay holds at most {MAX_LOWERS}")
    parts = ["lowerdir=" + ":".join(map(escape, lowers))]
    if upper is not None and work is not None:
        # These two are single paths: a ":" means itself here.
        parts += [f"upperdir={_escape_single(upper)}", f"workdir={_escape_single(work)}"]
    text = ",".join([*parts, *_FEATURES, *features])
    if len(text.encode("utf-8", "surrogateescape")) > OPTIONS_LIMIT:
        raise ValueError(
            f"the overlay's options take more than {OPTIONS_LIMIT} bytes: use shorter paths"
        )
    return text


def _escape_single(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError(f"not a directory name: {path!r}")
    return path.replace("\\", "\\\\").replace(",", "\\,")
