"""The layers of an image to one index: each tar is read, checked, and laid over those before it.

Does not know where images come from, nor which of their layers are chosen.  One thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cisfs.build.archive import Archive
from cisfs.build.index import NO_XATTRS, Directory, Index
from cisfs.build.tar import IMPLIED_MODE, Limits, Spent, Tree
from cisfs.build.union import depends_on_base, fit, put_over
from cisfs.errors import FormatError, UsageError


class OpenLayer(Protocol):
    """How a layer's tar is opened: as `cisfs.build.opening` does it, hashed."""

    def __call__(self, max_size: int, scratch_directory: Path) -> Archive:
        """Open it.  Raises CisfsError, OSError."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: what messages call it, the digest that its tar must have, and how to read it."""

    label: str
    diff_id: str
    open: OpenLayer


def index_layers(
    layers: Sequence[Layer],
    below: Sequence[Layer],
    limits: Limits,
    scratch_directory: Path,
    attributes: Mapping[bytes, bytes] = NO_XATTRS,
) -> Index:
    """Return the index of `layers` laid one over the other, the lowest first.

    `attributes` are added to the root's extended ones.

    `below` are those that stay apart.  They are read, but for the content of files, if `layers`
    delete something, or have it in a directory that they do not describe.  The limits are
    for all together.  Raises FormatError for what is no whole tar or not the one that its digest
    names, UsageError for one that may not be sealed, OSError.
    """
    with contextlib.ExitStack() as undo:
        root = _union(layers, limits, scratch_directory, undo.callback)
        if depends_on_base(root):
            with contextlib.ExitStack() as soon:
                skimmed = dataclasses.replace(limits, devices=True, content=False)
                fit(root, _union(below, skimmed, scratch_directory, soon.callback))
        root.xattrs = {**root.xattrs, **attributes}
        return Index(root, undo.pop_all().close)


def _union(
    layers: Sequence[Layer],
    limits: Limits,
    scratch_directory: Path,
    undo: Callable[[Callable[[], None]], object],
) -> Directory:
    union, spent = Directory(IMPLIED_MODE, implied=True), Spent()
    for layer in layers:
        try:
            archive = layer.open(limits.max_size, scratch_directory)
            undo(archive.close)
            tree = Tree(archive, limits, spent, union).read()
            archive.finish()
            if archive.digest() != layer.diff_id:
                raise FormatError("its content is not what the image's configuration says")
        except (FormatError, UsageError) as error:
            raise type(error)(f"{layer.label}: {error}") from None
        put_over(union, tree)
    return union
