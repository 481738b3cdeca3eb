"""Several layers as one: what overlayfs would show of them, with what they hide of those below.

OCI image-spec, layer.md, "Applying Changesets"; Linux, Documentation/filesystems/overlayfs.rst.
Whiteouts are overlayfs's own here (`cisfs.build.whiteouts`).  Does not know tars.  One thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cisfs.build.index import NO_XATTRS, Directory
from cisfs.build.tar import describe
from cisfs.build.whiteouts import OPAQUE_XATTR, REDIRECT_XATTR, is_opaque, make_opaque


def put_over(lower: Directory, upper: Directory) -> None:
    """Change `lower` into both layers in one; `upper` is used up.

    A whiteout stays, for it may be about layers below the two.  So does what makes a directory
    opaque; and one that takes the place of a file, or of a whiteout, has hidden since then what any
    directory below would show.
    """
    if is_opaque(upper):
        lower.children.clear()
    waiting = [(lower, upper)]  # paths may be longer than Python's stack
    while waiting:
        into, layer = waiting.pop()
        _redescribe(into, layer)
        for name, entry in layer.children.items():
            before = into.children.get(name)
            if isinstance(entry, Directory) and before is not None:
                if isinstance(before, Directory) and not is_opaque(entry):
                    waiting.append((before, entry))
                    continue
                if isinstance(before, Directory) and entry.implied:
                    describe(entry, before)
                make_opaque(entry)
            into.children[name] = entry


def implied(root: Directory) -> Iterator[tuple[bytes, ...]]:
    """Yield the paths of directories that no layer has described, if others could be below them.

    The root is not among them: what a container sees of it comes from its scratch.
    """
    waiting: list[tuple[tuple[bytes, ...], Directory]] = [((), root)]
    while waiting:
        path, directory = waiting.pop()
        for name, entry in directory.children.items():
            if isinstance(entry, Directory) and not is_opaque(entry):
                if entry.implied:
                    yield (*path, name)
                waiting.append(((*path, name), entry))


def describe_as(root: Directory, base: Directory) -> None:
    """Give directories that no layer has described the attributes of what they lie over."""
    waiting = [(root, base)]
    while waiting:
        over, under = waiting.pop()
        for name, entry in over.children.items():
            below = under.children.get(name)
            if not (isinstance(entry, Directory) and isinstance(below, Directory)):
                continue
            if not is_opaque(entry):
                if entry.implied:
                    describe(entry, below)
                    entry.xattrs = _without_overlays(entry.xattrs)
                waiting.append((entry, below))


def _redescribe(directory: Directory, layer: Directory) -> None:
    """Let a directory be as the layer above says, if that says anything."""
    hides = is_opaque(directory) or is_opaque(layer)
    if not layer.implied:
        describe(directory, layer)
    if hides:
        make_opaque(directory)


def _without_overlays(xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """What another layer says to overlayfs is not repeated."""
    own = (OPAQUE_XATTR, REDIRECT_XATTR)
    return {name: value for name, value in xattrs.items() if name not in own} or NO_XATTRS
