"""Layers laid over each other are one layer that shows the same over the same base.

The reference applies one layer after the other to a tree of paths, as the OCI image-spec has it
(layer.md, "Applying Changesets"), and knows nothing of indexes.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.build.index import Directory, Entry, Index
from cisfs.build.layers import index_layers
from cisfs.build.tar import Limits
from cisfs.build.whiteouts import OPAQUE_XATTR
from tests.unit import tars
from tests.unit.image_layers import as_it_is, layer_of

Place = tuple[bytes, ...]
# What is at a path: the mode of a directory, or the content of a file.
Tree = dict[Place, int | bytes]

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
# None is a whiteout, a negative mode an opaque directory.
CHANGES = st.dictionaries(
    PATHS,
    st.one_of(
        st.none(),
        st.binary(max_size=4),
        st.integers(0o700, 0o777),
        st.integers(0o700, 0o777).map(lambda mode: -mode),
    ),
    max_size=6,
)
Changes = dict[Place, int | bytes | None]


def consistent(changes: Changes) -> Changes:
    """Without what lies below a file or a whiteout of the same layer."""
    return {
        path: change
        for path, change in changes.items()
        if all(isinstance(changes.get(path[:n], 0), int) for n in range(1, len(path)))
    }


LAYERS = st.lists(CHANGES.map(consistent), min_size=1, max_size=4)


# -- the reference ---------------------------------------------------------------------------


def remove(tree: Tree, path: Place, *, itself: bool = True) -> None:
    for each in [each for each in tree if each[: len(path)] == path and (itself or each != path)]:
        del tree[each]


def apply(tree: Tree, changes: Changes) -> None:
    for path, change in changes.items():
        if change is None:
            remove(tree, path)
        elif isinstance(change, int) and change < 0:
            remove(tree, path, itself=False)
    for path, change in sorted(changes.items()):
        for n in range(1, len(path)):
            if not isinstance(tree.setdefault(path[:n], 0o755), int):
                tree[path[:n]] = 0o755
        if isinstance(change, bytes):
            remove(tree, path)
            tree[path] = change
        elif change is not None:
            tree[path] = abs(change)


# -- what is tested --------------------------------------------------------------------------


def tar_of(changes: Changes) -> bytes:
    members = []
    for path, change in sorted(changes.items()):
        *above, name = path
        if change is None:
            members.append(tars.file(b"/".join([*above, b".wh." + name])))
        elif isinstance(change, bytes):
            members.append(tars.file(b"/".join(path), change))
        else:
            members.append(tars.directory(b"/".join(path) + b"/", abs(change)))
            if change < 0:
                members.append(tars.file(b"/".join([*path, b".wh..wh..opq"])))
    return tars.tar(*members)


@contextmanager
def index_of(below: list[Changes], chosen: list[Changes], *, packed: bool) -> Iterator[Index]:
    upper, lower = (
        [layer_of(tar_of(each), gzip.compress if packed else as_it_is) for each in some]
        for some in (chosen, below)
    )
    with index_layers(upper, lower, Limits(1 << 24), Path("/tmp")) as index:
        yield index


def lay_over(tree: Tree, directory: Directory, at: Place = ()) -> None:
    """What overlayfs shows."""
    for name, entry in directory.children.items():
        path = (*at, name)
        if is_whiteout(entry):
            remove(tree, path)
        elif isinstance(entry, Directory):
            if OPAQUE_XATTR in entry.xattrs or not isinstance(tree.get(path, 0), int):
                remove(tree, path)
            tree[path] = stat.S_IMODE(entry.mode)
            lay_over(tree, entry, path)
        else:
            remove(tree, path)
            tree[path] = tars.content(entry)


def places(directory: Directory, at: Place = ()) -> Iterator[tuple[Place, Entry]]:
    for name, entry in directory.children.items():
        yield (*at, name), entry
        if isinstance(entry, Directory):
            yield from places(entry, (*at, name))


def is_whiteout(entry: Entry) -> bool:
    return stat.S_ISCHR(entry.mode) and entry.rdev == 0


@settings(max_examples=150)
@given(below=LAYERS, chosen=LAYERS, packed=st.booleans())
def test_one_layer_shows_what_all_of_them_did(
    below: list[Changes], chosen: list[Changes], packed: bool
) -> None:
    wanted: Tree = {}
    for changes in [*below, *chosen]:
        apply(wanted, changes)
    shown: Tree = {}
    for changes in below:
        apply(shown, changes)
    with index_of(below, chosen, packed=packed) as index:
        lay_over(shown, index.root)
        gone = [path for path, entry in places(index.root) if is_whiteout(entry)]
    assert shown == wanted
    base: Tree = {}
    for changes in below:
        apply(base, changes)
    assert all(path in base for path in gone)  # overlayfs may list any other
