"""Several layers as one: what overlayfs would show of them, with what they hide of those below.

OCI image-spec, layer.md, "Applying Changesets"; Linux, Documentation/filesystems/overlayfs.rst.
Whiteouts are overlayfs's own here (`cisfs.build.whiteouts`).  Does not know tars.  One thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from cisfs.build.index import NO_XATTRS, Directory, Entry
from cisfs.build.tar import describe
from cisfs.build.whiteouts import OPAQUE_XATTR, REDIRECT_XATTR, is_opaque, is_whiteout, make_opaque


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
                if entry.implied:
                    _continue(entry, before)
                make_opaque(entry)
            into.children[name] = entry


def depends_on_base(root: Directory) -> bool:
    """Whether `fit` could change anything: there are whiteouts, or directories never described.

    The root is not among those: what a container sees of it comes from its scratch.
    """
    waiting = [root]
    while waiting:
        for entry in waiting.pop().children.values():
            if is_whiteout(entry):
                return True
            if isinstance(entry, Directory):
                if entry.implied:
                    return True
                waiting.append(entry)
    return False


def fit(root: Directory, base: Directory) -> None:
    """Fit layers to what they lie over.

    Directories that none of them has described get the attributes of those below.  Whiteouts of
    what is not there go: in a directory that is in one layer only, overlayfs lists them as if they
    were files (fs/overlayfs/readdir.c, ovl_dir_is_real).
    """
    waiting: list[tuple[Directory, Directory | None]] = [(root, base)]
    while waiting:
        over, under = waiting.pop()
        shown = {} if under is None else under.children
        for name, entry in list(over.children.items()):
            below = shown.get(name)
            if is_whiteout(entry) and (below is None or is_whiteout(below)):
                del over.children[name]
            elif isinstance(entry, Directory):
                hides, same = is_opaque(entry), below if isinstance(below, Directory) else None
                if same is not None and entry.implied:
                    describe(entry, same)
                    entry.xattrs = _without_overlays(entry.xattrs)
                    if hides:
                        make_opaque(entry)
                waiting.append((entry, None if hides else same))


def _continue(directory: Directory, before: Entry) -> None:
    """Let a directory that its layer does not describe be as the one that it hides.

    That may not be described either, but by layers further down.  In the place of anything else it
    is a new one.
    """
    if isinstance(before, Directory):
        implied = before.implied
        describe(directory, before)
        directory.implied = implied
    else:
        directory.implied = False


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
