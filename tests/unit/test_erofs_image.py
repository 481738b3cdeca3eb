"""The layout of EROFS images, the bytes at any offset of them, and what is refused."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

import pytest

from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Directory, Entry, Index
from cisfs.errors import CisfsError, UsageError
from tests.unit import erofs_trees as trees
from tests.unit.erofs_reader import Image, Inode
from tests.unit.erofs_trees import TIME, Stored, directory, file, image_of, text, whole
from tests.unit.vaults import same

BLOCK = 4096


def parsed(children: dict[bytes, Entry], *, inline_limit: int = 512) -> Image:
    return Image(whole(image_of(children, inline_limit=inline_limit)))


def placed(inode: Inode) -> list[tuple[int, int]]:
    """How many of an inode's bytes lie in blocks of their own, and how many beside it."""
    inline = sum(place.length for place in inode.places if place.start % BLOCK)
    return [(inode.size - inline, inline)]


def sample() -> Directory:
    """Some of everything, in an order of its own in each directory."""
    shared = file(text(5000, 1))
    names: dict[bytes, Entry] = {
        b"small": file(b"hello", xattrs={b"user.x": b"abc"}),
        b"block": file(text(4096, 2), owner=(70000, 80000)),
        b"hard": shared,
        b"empty": file(),
        b"link": trees.link(b"target"),
        b"null": trees.device(stat.S_IFCHR | 0o666, 0x103),
        b"fifo": trees.device(stat.S_IFIFO | 0o644, 0),
        b"deep": directory(
            {
                b"deeper": directory({b"z": file(text(513, 3)), b"a": file(text(512, 4))}),
                b"again": shared,
                b"nothing": directory(),
            },
            mode=0o1777,
        ),
        b"later": file(text(9000, 5), mtime_ns=TIME + 1),
    }
    return directory(names)


def shuffled(root: Directory, seed: int) -> Directory:
    """The same tree, found in another order."""
    generator = random.Random(seed)
    waiting = [root]
    while waiting:
        found = waiting.pop()
        items = list(found.children.items())
        generator.shuffle(items)
        found.children = dict(items)
        waiting += [child for child in found.children.values() if isinstance(child, Directory)]
    return root


MIB = 1 << 20


def holey(size: int, *extents: tuple[int, int], xattrs: dict[bytes, bytes] | None = None) -> Entry:
    """A file with data at these places only."""
    data = bytearray(size)
    for number, (start, length) in enumerate(extents):
        data[start : start + length] = text(length, number)
    entry = file(bytes(data), xattrs=xattrs)
    entry.extents = extents
    return entry


# -- what is in it -------------------------------------------------------------------------


def test_an_image_is_read_back_as_it_was_meant() -> None:
    image = Image(whole(ErofsImage(Index(sample()))))
    found = dict(image.walk())
    assert sorted(found) == sorted(
        b"/ /block /deep /deep/again /deep/deeper /deep/deeper/a /deep/deeper/z /deep/nothing"
        b" /empty /fifo /hard /later /link /null /small".split()
    )
    assert image.bytes_of(found[b"/small"]) == b"hello"
    assert found[b"/small"].xattrs == {b"user.x": b"abc"}
    assert image.bytes_of(found[b"/block"]) == text(4096, 2)
    assert (found[b"/block"].uid, found[b"/block"].gid) == (70000, 80000)
    assert found[b"/hard"] is found[b"/deep/again"]
    assert found[b"/hard"].links == 2
    assert image.bytes_of(found[b"/hard"]) == text(5000, 1)
    assert (found[b"/empty"].size, found[b"/empty"].links) == (0, 1)
    assert image.bytes_of(found[b"/link"]) == b"target"
    assert found[b"/null"].rdev == 0x103
    assert found[b"/fifo"].mode == stat.S_IFIFO | 0o644
    assert found[b"/deep"].mode == stat.S_IFDIR | 0o1777
    assert [found[path].links for path in (b"/", b"/deep", b"/deep/nothing")] == [3, 4, 2]
    assert found[b"/later"].mtime_ns == TIME + 1
    assert image.bytes_of(found[b"/later"]) == text(9000, 5)


def test_an_image_says_how_much_it_holds() -> None:
    image = ErofsImage(Index(sample()))
    assert image.size % BLOCK == image.metadata_size % BLOCK == 0
    assert image.entries == 14
    assert image.content_bytes == 5000 + 5 + 4096 + 513 + 512 + 9000
    assert image.size == image.metadata_size + (2 + 1 + 1 + 3) * BLOCK


def test_an_empty_root_makes_an_image() -> None:
    image = ErofsImage(Index(directory()))
    assert (image.size, image.metadata_size) == (2 * BLOCK, 2 * BLOCK)
    assert list(Image(whole(image)).walk())[1:] == []


# -- where it is ---------------------------------------------------------------------------


def test_the_roots_nid_has_16_bits_whatever_is_in_the_image() -> None:
    many = {b"%05d" % number: directory() for number in range(3000)}
    image = Image(whole(image_of(many)))
    assert image.root.nid < 1 << 16
    assert max(inode.nid for inode in image.all_inodes()) > image.root.nid


def test_find_reads_nothing_but_directories() -> None:
    """The blocks with directories, and what is in them, come before all others."""
    tree = directory({b"%d" % number: sample() for number in range(30)})
    image = Image(whole(ErofsImage(Index(tree))))
    blocks = set()
    for inode in image.all_inodes():
        if stat.S_ISDIR(inode.mode):
            blocks.add(inode.offset // BLOCK)
            blocks.update(place.start // BLOCK for place in inode.places)
    assert blocks == set(range(1, 1 + len(blocks)))
    assert len(blocks) < 10


def test_all_but_the_content_of_files_comes_first() -> None:
    made = ErofsImage(Index(sample()))
    image = Image(whole(made))
    for inode in image.all_inodes():
        assert inode.offset < made.metadata_size
        large = stat.S_ISREG(inode.mode) and inode.size > 512
        for place in inode.places:
            assert (place.start >= made.metadata_size) is large


def test_inodes_and_content_are_in_the_order_of_a_walk() -> None:
    image = Image(whole(ErofsImage(Index(shuffled(sample(), 7)))))
    walk = [inode for _, inode in image.walk()]
    first = list({inode.nid: inode for inode in walk}.values())
    for directories in (True, False):
        nids = [inode.nid for inode in first if stat.S_ISDIR(inode.mode) is directories]
        assert nids == sorted(nids)
    starts = [each.places[0].start for each in first if stat.S_ISREG(each.mode) and each.size > 512]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("size", "beside"),
    [(0, 0), (1, 1), (511, 511), (512, 512), (513, 0), (4095, 0), (4096, 0), (4097, 0), (4608, 0)],
)
def test_small_files_lie_beside_their_inodes(size: int, beside: int) -> None:
    image = parsed({b"f": file(text(size))})
    inode = image.root.children[b"f"]
    assert placed(inode) == [(size - beside, beside)]
    assert image.bytes_of(inode) == text(size)


@pytest.mark.parametrize(("limit", "beside"), [(0, 0), (99, 0), (100, 100), (4095, 100)])
def test_how_small_is_the_callers_choice(limit: int, beside: int) -> None:
    image = parsed({b"f": file(text(100))}, inline_limit=limit)
    assert placed(image.root.children[b"f"]) == [(100 - beside, beside)]


@pytest.mark.parametrize(
    ("xattr", "beside"),
    # before the content are 32 of the inode, 12 of the header, and 5 + 3947 of the attribute
    [(3947, 100), (3948, 0)],
)
def test_content_beside_an_inode_does_not_leave_its_block(xattr: int, beside: int) -> None:
    image = parsed({b"f": file(text(100), xattrs={b"user.x": bytes(xattr)})})
    assert placed(image.root.children[b"f"]) == [(100 - beside, beside)]


@pytest.mark.parametrize(
    ("size", "beside"), [(1, 1), (4064, 4064), (4065, 0), (4095, 0), (4096, 0), (5000, 904)]
)
def test_symlinks_lie_beside_their_inodes_if_they_fit(size: int, beside: int) -> None:
    made = image_of({b"l": trees.link(text(size))})
    image = Image(whole(made))
    assert placed(image.root.children[b"l"]) == [(size - beside, beside)]
    assert image.bytes_of(image.root.children[b"l"]) == text(size)
    assert made.size == made.metadata_size


def test_a_directorys_whole_blocks_and_its_rest() -> None:
    names: dict[bytes, Entry] = {b"%04d" % number + b"n" * 240: file() for number in range(40)}
    image = parsed(names)
    # 27 bytes of . and .., and 256 for each name: 15 names in the first block, 16 in the second
    assert image.root.size == 2 * BLOCK + 9 * 256
    assert placed(image.root) == [(2 * BLOCK, 9 * 256)]
    assert sorted(image.root.children) == sorted(names)


def test_inodes_with_more_xattrs_than_a_block_holds() -> None:
    xattrs = {b"user.%02d" % number: text(1000, number) for number in range(20)}
    names: dict[bytes, Entry] = {b"f": file(b"x", xattrs=xattrs), b"d": directory()}
    names[b"d"].xattrs = xattrs
    names[b"g"] = file(b"y")
    image = parsed(names)
    for name in (b"d", b"f"):
        assert image.root.children[name].xattrs == xattrs
        assert not image.root.children[name].inline
    assert image.bytes_of(image.root.children[b"f"]) == b"x"
    assert image.root.children[b"g"].offset < image.root.children[b"f"].offset + 6 * BLOCK


def test_little_of_the_metadata_is_gaps() -> None:
    """Directories of all sizes leave some room in their blocks, but others go on there."""
    generator = random.Random(5)
    root = directory()
    for number in range(100):
        names = {b"name-%d" % n: file() for n in range(generator.randrange(400))}
        root.children[b"%d" % number] = directory(names)
    made = ErofsImage(Index(root))
    image = Image(whole(made))
    used = sum(
        inode.length + (inode.size if stat.S_ISDIR(inode.mode) else 0)
        for inode in image.all_inodes()
    )
    assert used > 0.92 * made.metadata_size


def test_compact_inodes_are_those_of_the_build_time() -> None:
    names: dict[bytes, Entry] = {
        b"a": file(mtime_ns=5),
        b"b": file(mtime_ns=6),
        b"c": file(mtime_ns=5, owner=(0, 65536)),
        b"d": file(mtime_ns=5, owner=(65535, 65535)),
    }
    image = Image(whole(ErofsImage(Index(directory(names)), build_time_ns=5)))
    lengths = {name: inode.length for name, inode in image.root.children.items()}
    assert lengths == {b"a": 32, b"b": 64, b"c": 64, b"d": 32}
    assert (image.build_time_ns, image.root.length, image.root.mtime_ns) == (5, 64, TIME)


@pytest.mark.parametrize(("times", "commonest"), [([9, 8, 9, 7], 9), ([9, 9, -7, -7, 8], -7)])
def test_the_build_time_is_the_commonest_time(times: list[int], commonest: int) -> None:
    """Of two that are as common, the earlier one."""
    names: dict[bytes, Entry] = {}
    for number, time in enumerate(times):
        names[b"%d" % number] = file(mtime_ns=time)
    assert parsed(names).build_time_ns == commonest


# -- the same bytes ------------------------------------------------------------------------


def test_the_same_tree_gives_the_same_bytes_in_whatever_order_it_was_found() -> None:
    images = {whole(ErofsImage(Index(shuffled(sample(), seed)))) for seed in range(5)}
    assert len(images) == 1


def test_images_are_told_apart_by_their_uuids() -> None:
    one = Image(whole(ErofsImage(Index(sample()))))
    changed = sample()
    changed.children[b"empty"].mtime_ns += 1
    other = Image(whole(ErofsImage(Index(changed))))
    assert len({one.uuid, other.uuid, bytes(16)}) == 3
    mine = Image(whole(ErofsImage(Index(sample()), uuid=bytes(range(16)))))
    assert mine.uuid == bytes(range(16))


# -- any part of it ------------------------------------------------------------------------


@pytest.mark.parametrize("inline_limit", [0, 512, 4095])
def test_any_part_is_that_part_of_the_whole(inline_limit: int) -> None:
    image = ErofsImage(Index(sample()), inline_limit=inline_limit)
    data = whole(image)
    generator = random.Random(inline_limit)
    edges = sorted({max(0, at + delta) for at in image._starts for delta in (-1, 0, 1, 512)})
    for _ in range(3000):
        if generator.random() < 0.5:
            start = generator.randrange(image.size)
        else:
            start = generator.choice(edges)
        size = generator.choice([0, 1, 2, 100, 4095, 4096, 4097, 20_000, image.size])
        size = min(size, image.size - start)
        assert same(trees.read(image, start, size), data[start : start + size])


def test_only_the_content_in_the_part_is_read() -> None:
    contents = [Stored(text(size)) for size in (100, 5000, 4096, 200, 10_000)]
    names: dict[bytes, Entry] = {}
    for number, content in enumerate(contents):
        names[b"%d" % number] = entry = file(content.data)
        entry.content = content
    image = image_of(names)
    at = image.metadata_size
    trees.read(image, at + 4000, BLOCK)
    assert [content.reads for content in contents] == [[], [(4000, 1000)], [], [], []]
    trees.read(image, at + 4998, 2 * BLOCK - 4998 + 1)
    assert contents[1].reads[1:] == [(4998, 2)]
    assert contents[2].reads == [(0, 1)]
    trees.read(image, at + 2 * BLOCK + 1, 3 * BLOCK)
    assert contents[2].reads[1:] == [(1, 4095)]
    assert contents[4].reads == [(0, 2 * BLOCK + 1)]
    trees.read(image, 0, at)
    assert [content.reads for content in (contents[0], contents[3])] == [[(0, 100)], [(0, 200)]]


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 1 << 20), (1 << 20, 0), (8192, 1)])
def test_what_is_not_in_the_image_is_the_callers_mistake(offset: int, size: int) -> None:
    image = ErofsImage(Index(directory()))
    with pytest.raises(ValueError, match=f"bytes {offset} to {offset + size} of an image of 8192"):
        trees.read(image, offset, size)
    assert trees.read(image, 8192, 0) == b""


def test_the_contents_own_errors_pass_through() -> None:
    class Changed:
        def read(self, offset: int, size: int) -> bytes:
            raise CisfsError(f"changed at {offset}, {size}")

    entry = file(text(5000))
    entry.content = Changed()
    image = image_of({b"f": entry})
    assert len(trees.read(image, 0, image.metadata_size)) == image.metadata_size
    with pytest.raises(CisfsError, match="changed at 0, 5000"):
        whole(image)


def test_content_that_is_shorter_than_it_was_to_be_is_no_part_of_an_image() -> None:
    class Short:
        def read(self, offset: int, size: int) -> bytes:
            return text(offset + size)[offset:-1]

    entry = file(text(5000))
    entry.content = Short()
    with pytest.raises(ValueError, match="different structures"):
        whole(image_of({b"f": entry}))


# -- limits --------------------------------------------------------------------------------


def with_xattr(name: bytes, size: int) -> Entry:
    return file(xattrs={name: bytes(size)})


REFUSED: list[tuple[str, Callable[[], Entry], str]] = [
    ("name", lambda: directory({b"n" * 256: file()}), "name of 256 bytes in it; at most 255 fit"),
    ("namespace", lambda: with_xattr(b"system.x", 1), r"EROFS has no room for .* b'system\.x'"),
    ("value", lambda: with_xattr(b"user.x", 65536), r"b'user\.x' of 65536 bytes is too long"),
    ("owner", lambda: file(owner=(1 << 32, 0)), "owner 4294967296:0 is not between"),
    ("time", lambda: file(mtime_ns=1 << 95), "modification time .* s has more than 64 bits"),
    ("device", lambda: trees.device(stat.S_IFBLK, 1 << 40), "device number 0x10000000000 has"),
]


@pytest.mark.parametrize(
    ("make", "words"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_an_entry_that_does_not_fit_is_named(make: Callable[[], Entry], words: str) -> None:
    with pytest.raises(UsageError, match=f"^'/d/entry': .*{words}"):
        image_of({b"a": directory(), b"d": directory({b"z": file(), b"entry": make()})})


def test_a_root_that_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match=r"^'/': name of 300 bytes"):
        image_of({b"n" * 300: file()})


def sparse(size: int) -> Entry:
    entry = Entry(stat.S_IFREG | 0o644, mtime_ns=TIME, size=size)
    entry.content = Stored(b"")
    return entry


def test_an_image_has_at_most_2_to_the_32_blocks() -> None:
    room = ((1 << 32) - 1 - 2) * BLOCK
    assert image_of({b"f": sparse(room)}).size == ((1 << 32) - 1) * BLOCK
    for names in ({b"f": sparse(room + 1)}, {b"f": sparse(room), b"g": sparse(513)}):
        with pytest.raises(UsageError, match=r"too much for one layer: .* 16 TiB"):
            image_of(names)


def test_a_size_without_content_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="has a size and no content"):
        image_of({b"f": Entry(stat.S_IFREG | 0o644, size=5)})


# -- sparse files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        (MIB, []),
        (MIB, [(0, 1)]),
        (MIB, [(MIB - 1, 1)]),
        (MIB + 1, [(70_000, 10), (200_000, 100_000), (MIB, 1)]),
        (3 * MIB, [(65536, 65536), (131072, 1), (MIB - 1, 2), (2 * MIB, 5000)]),
        (9 * MIB + 777, [(5 * MIB + 3, 70_000)]),
    ],
)
def test_the_holes_of_a_file_are_not_stored(size: int, extents: list[tuple[int, int]]) -> None:
    entry = holey(size, *extents, xattrs={b"user.x": b"abc"})
    content = entry.content
    assert isinstance(content, Stored)
    children = {b"a": file(text(5000)), b"sparse": entry, b"z": file(text(100))}
    made = image_of(children)
    image = Image(whole(made))
    found = dict(image.walk())
    assert image.bytes_of(found[b"/sparse"]) == content.data
    assert found[b"/sparse"].xattrs == {b"user.x": b"abc"}
    assert image.bytes_of(found[b"/a"]) == text(5000)
    assert image.bytes_of(found[b"/z"]) == text(100)
    assert made.size <= 16 * BLOCK + 2 * 65536 * (len(extents) + 1)
    assert made.content_bytes == size + 5100


def test_any_part_of_a_sparse_files_image_is_that_part_of_the_whole() -> None:
    made = image_of({b"s": holey(2 * MIB, (70_000, 90_000), (MIB, 100))})
    data = whole(made)
    generator = random.Random(1)
    for _ in range(200):
        start = generator.randrange(made.size)
        size = generator.randrange(1, made.size - start + 1)
        assert same(trees.read(made, start, size), data[start : start + size])


def test_small_holes_are_stored_as_zeros() -> None:
    """And images without sparse files are what they were before there were any."""
    almost = holey(MIB, (0, MIB - 262_143))
    assert isinstance(almost.content, Stored)
    plain = file(almost.content.data)
    assert whole(image_of({b"file": almost})) == whole(image_of({b"file": plain}))


def test_a_file_of_a_terabyte_of_holes_is_a_small_image() -> None:
    entry = Entry(stat.S_IFREG | 0o644, mtime_ns=TIME, size=1 << 40, content=Stored(b""))
    entry.extents = ()
    assert image_of({b"sparse": entry}).size < MIB
