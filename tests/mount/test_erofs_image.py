"""EROFS images through the real kernel, attribute by attribute, and judged by fsck.erofs."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Directory, Entry, Index
from tests.mount.harness import linux
from tests.mount.harness.processes import as_user, at_once
from tests.unit import erofs_trees as trees
from tests.unit.erofs_trees import TIME, Stored, directory, file, text
from tests.unit.vaults import same

pytestmark = [pytest.mark.root]

SECOND = 10**9
PIECE = 1 << 20

ACL = struct.Struct("<HHI")
ACL_HEADER = struct.pack("<I", 2)  # posix_acl_xattr.h: version, then entries of tag, bits, id


def acl(*entries: tuple[int, int, int]) -> bytes:
    return ACL_HEADER + b"".join(ACL.pack(*entry) for entry in entries)


NO_ID = 0xFFFFFFFF
USER_ACL = acl((1, 6, NO_ID), (2, 4, 65534), (4, 4, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID))
# linux/capability.h: revision 2, effective, cap_net_bind_service
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


# -- from an index to a mount --------------------------------------------------------------


def write(image: ErofsImage, path: Path) -> None:
    """Write an image as several processes do, each its own pieces; zeros become holes."""
    path.touch()
    os.truncate(path, image.size)

    def write_every_other(first: int) -> None:
        with path.open("r+b", buffering=0) as target:
            for offset in range(first * PIECE, image.size, 2 * PIECE):
                piece = trees.read(image, offset, min(PIECE, image.size - offset))
                if piece != bytes(len(piece)):
                    os.pwrite(target.fileno(), piece, offset)

    at_once(lambda: write_every_other(1), lambda: write_every_other(0))


def fsck(path: Path) -> None:
    ended = subprocess.run(
        ["fsck.erofs", "-d3", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "No errors found" in said
    assert "<E>" not in said


@contextmanager
def mounted(image: ErofsImage, base: Path) -> Iterator[Path]:
    """The image's root, mounted by the kernel."""
    if shutil.which("fsck.erofs") is None:
        pytest.skip("fsck.erofs, of erofs-utils, is not installed")
    stored, mountpoint = base / "image", base / "mounted"
    write(image, stored)
    fsck(stored)
    mountpoint.mkdir()
    words = ["mount", "-t", "erofs", "-o", "loop,ro", str(stored), str(mountpoint)]
    subprocess.run(words, check=True, timeout=60)
    try:
        yield mountpoint
    finally:
        linux.umount(mountpoint)
    mountpoint.rmdir()
    stored.unlink()


# -- judgement -----------------------------------------------------------------------------


def assert_same(root: Path, index: Index) -> None:
    """Fail unless all that is mounted at `root` is what the index says, and nothing else."""
    numbers: dict[int, int] = {}
    assert_same_entry(os.fsencode(root), index.root, numbers)
    assert len(numbers) == len(set(numbers.values())) == len(index.entries)
    counted = os.statvfs(root)
    assert counted.f_files - counted.f_ffree == len(index.entries)


def assert_same_entry(path: bytes, entry: Entry, numbers: dict[int, int]) -> None:
    status = os.lstat(path)
    assert numbers.setdefault(entry.node, status.st_ino) == status.st_ino
    assert seen(status) == wanted(entry), path
    names = os.listxattr(path, follow_symlinks=False)
    found = {os.fsencode(n): os.getxattr(path, n, follow_symlinks=False) for n in names}
    assert found == entry.xattrs, path
    if isinstance(entry, Directory):
        assert_same_names(path, entry, numbers)
    elif entry.target:
        assert os.readlink(path) == entry.target
    elif entry.size:
        assert_same_content(path, entry)


def seen(status: os.stat_result) -> dict[str, int]:
    return {
        "mode": status.st_mode,
        "owner": status.st_uid,
        "group": status.st_gid,
        "links": status.st_nlink,
        "mtime_ns": status.st_mtime_ns,
        "rdev": status.st_rdev,
        "size": 0 if stat.S_ISDIR(status.st_mode) else status.st_size,
    }


def wanted(entry: Entry) -> dict[str, int]:
    return {
        "mode": entry.mode,
        "owner": entry.uid,
        "group": entry.gid,
        "links": entry.links,
        "mtime_ns": entry.mtime_ns,
        "rdev": entry.rdev,
        "size": len(entry.target) or entry.size,
    }


def assert_same_names(path: bytes, directory: Directory, numbers: dict[int, int]) -> None:
    with os.scandir(path) as entries:
        listed = {each.name: (each.inode(), kind(each)) for each in entries}
    assert listed.keys() == directory.children.keys(), path
    for name, child in directory.children.items():
        assert_same_entry(path + b"/" + name, child, numbers)
        assert listed[name] == (numbers[child.node], kind_of(child.mode)), path
    with linux.fails(2):
        os.lstat(path + b"/no such name")


def kind(listed: os.DirEntry[bytes]) -> str:
    """What a listing tells of an entry without looking at it."""
    if listed.is_symlink():
        return "link"
    return "dir" if listed.is_dir(follow_symlinks=False) else "other"


def kind_of(mode: int) -> str:
    return "link" if stat.S_ISLNK(mode) else "dir" if stat.S_ISDIR(mode) else "other"


def assert_same_content(path: bytes, entry: Entry) -> None:
    assert isinstance(entry.content, Stored)
    with open(path, "rb") as opened:
        assert same(opened.read(), entry.content.data), path


def check(root: Directory, base: Path, *, inline_limit: int = 512) -> None:
    """Make an image of a tree, mount it, and compare everything."""
    index = Index(root)
    with mounted(ErofsImage(index, inline_limit=inline_limit), base) as mountpoint:
        assert_same(mountpoint, index)


def named(*entries: Entry) -> Directory:
    """A root with these entries, under names that say nothing."""
    return directory({b"%d" % number: entry for number, entry in enumerate(entries)})


# -- one thing at a time -------------------------------------------------------------------


def test_an_empty_image(tmp_path: Path) -> None:
    check(directory(), tmp_path)


def test_every_mode(tmp_path: Path) -> None:
    modes = [0, 0o400, 0o755, 0o1777, 0o2755, 0o4755, 0o7777]
    check(named(*[file(b"x", mode=mode) for mode in modes]), tmp_path)
    check(named(*[directory(mode=mode) for mode in modes]), tmp_path)


def test_owners(tmp_path: Path) -> None:
    ids = [0, 1, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 2]
    check(named(*[file(owner=(uid, gid)) for uid in ids for gid in ids]), tmp_path)


def test_times(tmp_path: Path) -> None:
    seconds = [0, 1, -1, 2**31 - 1, 2**31, 2**32, -(2**31) - 1, 2**34, 2**40, -(2**40), 2**62]
    times = [each * SECOND + ns for each in seconds for ns in (0, 1, SECOND - 1)]
    root = named(*[file(mtime_ns=time) for time in times])
    root.mtime_ns = -1
    check(root, tmp_path)
    for common in (times[0], times[1], times[8]):  # the time of compact inodes
        check(named(*[file(mtime_ns=common) for _ in range(5)]), tmp_path)


def test_hard_links(tmp_path: Path) -> None:
    small, large = file(b"small"), file(text(10_000))
    fifo, link = trees.device(stat.S_IFIFO | 0o600, 0), trees.link(b"target")
    root = named(small, large, fifo, link)
    root.children[b"dir"] = named(small, large, fifo, link, small)
    root.children[b"many"] = directory({b"%05d" % number: small for number in range(66_000)})
    check(root, tmp_path)


def test_devices_and_their_like(tmp_path: Path) -> None:
    numbers = [(0, 0), (1, 3), (8, 255), (8, 256), (259, 1), (4095, (1 << 20) - 1), (0, 1 << 19)]
    devices = [
        trees.device(mode | 0o640, os.makedev(major, minor))
        for mode in (stat.S_IFCHR, stat.S_IFBLK)
        for major, minor in numbers
    ]
    others = [trees.device(mode | 0o604, 0) for mode in (stat.S_IFIFO, stat.S_IFSOCK)]
    check(named(*devices, *others), tmp_path)


@pytest.mark.parametrize("inline_limit", [0, 512, 4095])
def test_sizes_around_the_ends_of_blocks(tmp_path: Path, inline_limit: int) -> None:
    sizes = [at + by for at in (0, 512, 4032, 4096, 8192, 65536) for by in (-33, -32, -1, 0, 1, 33)]
    files = [file(text(size, size), mtime_ns=size % 2) for size in sizes if size >= 0]
    check(named(*files), tmp_path, inline_limit=inline_limit)


def test_symlinks_of_any_length(tmp_path: Path) -> None:
    sizes = [1, 31, 32, 33, 255, 1000, 4031, 4032, 4033, 4063, 4064, 4065, 4094, 4095]
    check(named(*[trees.link(text(size).replace(b"\n", b"/")) for size in sizes]), tmp_path)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [bytes([value]) for value in range(1, 256) if value not in b"./"]
    names += [bytes([value]) * 255 for value in range(1, 256) if value != ord("/")]
    names += [b"...", b".a", b"..a", b"\xff\xfe\xfd", b"new\nline", b"n" * 254, b"-", b"\xc3\xa9"]
    check(directory({name: file(name) for name in names}), tmp_path)


def test_a_directory_of_20000_entries(tmp_path: Path) -> None:
    names = {b"entry %d" % number + b"x" * (number % 50): file() for number in range(20_000)}
    root = directory({b"large": directory(names), b"after": file(b"x")})
    check(root, tmp_path)


def test_a_directory_with_many_directories(tmp_path: Path) -> None:
    check(directory({b"%05d" % number: directory() for number in range(66_000)}), tmp_path)


def test_a_depth_of_200(tmp_path: Path) -> None:
    root = at = directory()
    for number in range(200):
        at.children[b"file"] = file(b"%d" % number)
        at.children[b"d"] = below = directory()
        at = below
    check(root, tmp_path)


# -- extended attributes -------------------------------------------------------------------


def test_xattrs_of_all_namespaces_and_kinds(tmp_path: Path) -> None:
    everywhere = {b"trusted.x": b"1", b"trusted.empty": b"", b"security.cisfs": bytes(range(256))}
    entries = [
        file(b"content", xattrs={**everywhere, b"user.x": b"y" * 100}),
        file(xattrs={b"security.capability": CAPABILITY}),
        file(xattrs={b"user." + b"n" * 250: b"long name"}),
        file(text(5000), xattrs={b"user.value": text(65535)}),
        file(b"x", xattrs={b"user.%d" % number: text(number * 7) for number in range(200)}),
        directory(),
        trees.link(b"target"),
        trees.link(text(4000)),
        *[trees.device(mode, 0) for mode in (stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)],
    ]
    for entry in entries:
        entry.xattrs = entry.xattrs or everywhere
    check(named(*entries), tmp_path)


def test_xattrs_of_any_size(tmp_path: Path) -> None:
    """So that headers, names and values lie across the ends of blocks in every way."""
    check(
        named(
            *[
                file(b"content", xattrs={b"user.a": text(size), b"user.b": b"b"})
                for size in (*range(3900, 4100, 3), *range(8000, 8200, 7))
            ]
        ),
        tmp_path,
    )


def test_acls_are_kept_and_obeyed(tmp_path: Path) -> None:
    default = acl((1, 7, NO_ID), (2, 7, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID))
    opened = file(b"for you", mode=0o660, xattrs={b"system.posix_acl_access": USER_ACL})
    listed = directory(mode=0o755)
    listed.xattrs = {b"system.posix_acl_default": default}
    index = Index(named(opened, listed, file(b"closed", mode=0o660)))
    tmp_path.chmod(0o755)
    with mounted(ErofsImage(index), tmp_path) as root:
        assert_same(root, index)
        said = subprocess.run(
            ["getfacl", "-ncE", str(root / "0")], capture_output=True, text=True, check=True
        ).stdout.split()
        assert said == ["user::rw-", "user:65534:r--", "group::r--", "mask::rw-", "other::---"]
        assert as_user(65534, root, lambda: Path("0").read_bytes()) == b"for you"
        with pytest.raises(PermissionError):
            as_user(65534, root, lambda: Path("2").read_bytes())


# -- all of it -----------------------------------------------------------------------------


def test_whiteouts_and_opaque_directories_hide_what_is_below(tmp_path: Path) -> None:
    for name in ("kept", "gone", "dir/old", "open/old"):
        (tmp_path / "lower" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lower" / name).write_text("below")
    opaque = directory({b"new": file(b"above")})
    opaque.xattrs = {b"trusted.overlay.opaque": b"y"}
    whiteout = Entry(stat.S_IFCHR, mtime_ns=TIME)
    names = {b"gone": whiteout, b"dir": opaque, b"open": directory({b"new": file(b"above")})}
    index = Index(directory(names))
    merged = tmp_path / "merged"
    merged.mkdir()
    with mounted(ErofsImage(index), tmp_path) as upper:
        assert_same(upper, index)
        linux.mount("o", merged, "overlay", options=f"lowerdir={upper}:{tmp_path / 'lower'}")
        try:
            found = sorted(str(path.relative_to(merged)) for path in merged.rglob("*"))
        finally:
            linux.umount(merged)
    assert found == ["dir", "dir/new", "kept", "open", "open/new", "open/old"]


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(tmp_path: Path, seed: int) -> None:
    check(random_tree(random.Random(seed)), tmp_path, inline_limit=[0, 512, 4095][seed % 3])


def random_tree(generator: random.Random) -> Directory:
    """Some thousand entries of every kind, deep and wide."""
    directories, files = [directory()], [file(b"shared")]
    for number in range(generator.randrange(1000, 3000)):
        choice = generator.random()
        if choice < 0.1:
            entry: Entry = directory()
        elif choice < 0.15:
            entry = generator.choice(files)  # one more name
        else:
            entry = random_file(generator, number)
            files.append(entry)
        if choice >= 0.15 or isinstance(entry, Directory):
            describe(generator, entry)
        parent = generator.choice(directories[-20:])
        parent.children.setdefault(random_name(generator), entry)
        if isinstance(entry, Directory):
            directories.append(entry)
    return directories[0]


def random_file(generator: random.Random, number: int) -> Entry:
    kind = generator.randrange(10)
    size = int(2 ** generator.uniform(0, 15))
    if kind == 0:
        return trees.link(text(min(size, 4095), number))
    if kind == 1:
        kinds = [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
        return trees.device(generator.choice(kinds), 0)
    return file(text(size, number))


def describe(generator: random.Random, entry: Entry) -> None:
    entry.mode = stat.S_IFMT(entry.mode) | generator.randrange(0o10000)
    entry.uid, entry.gid = (generator.choice([0, 1000, 1 << 20]) for _ in range(2))
    entry.mtime_ns = generator.choice([TIME, TIME, generator.randrange(2 * TIME)])
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        entry.rdev = generator.randrange(1 << 32)
    namespaces = [b"trusted.", b"security."]
    if stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode):
        namespaces.append(b"user.")
    if generator.random() < 0.3:
        entry.xattrs = {
            generator.choice(namespaces) + b"%d" % number: text(generator.randrange(300), number)
            for number in range(generator.randrange(1, 12))
        }


def random_name(generator: random.Random) -> bytes:
    length = int(2 ** generator.uniform(0, 8))
    name = bytes(generator.choice(range(1, 256)) for _ in range(min(length, 255)))
    return b"n" if name in (b".", b"..") else name.replace(b"/", b"|")


class Marked:
    """Zeros with a few marks: (offset, bytes)."""

    def __init__(self, marks: dict[int, bytes]) -> None:
        self.marks = marks

    def read(self, offset: int, size: int) -> bytearray:
        found = bytearray(size)
        for at, mark in self.marks.items():
            first, last = max(at, offset), min(at + len(mark), offset + size)
            if first < last:
                found[first - offset : last - offset] = mark[first - at : last - at]
        return found


def test_a_file_of_5_gib(tmp_path: Path) -> None:
    size = 5 * (1 << 30) + 12345
    ends = [0, PIECE - 3, (1 << 31) - 3, (1 << 32) - 3, (1 << 32) + 4093, size - 7]
    marks = {at: b"at %d" % number for number, at in enumerate(ends)}
    entry = Entry(stat.S_IFREG | 0o644, mtime_ns=TIME, size=size, content=Marked(marks))
    index = Index(directory({b"large": entry, b"z": file(text(5000))}))
    with mounted(ErofsImage(index), tmp_path) as root:
        assert (root / "z").read_bytes() == text(5000)
        with (root / "large").open("rb") as opened:
            assert os.fstat(opened.fileno()).st_size == size
            for at, mark in marks.items():
                before = min(at, 100)
                opened.seek(at - before)
                assert opened.read(before + 200).strip(b"\0") == mark
                assert os.pread(opened.fileno(), len(mark), at) == mark


@pytest.mark.parametrize("xattrs", [{}, {b"user.x": b"x" * 3900}])
def test_sparse_files(tmp_path: Path, xattrs: dict[bytes, bytes]) -> None:
    mib = 1 << 20
    entries = []
    for size, extents in (
        (mib, []),
        (mib + 5, [(mib, 5)]),
        (3 * mib - 1, [(65535, 2), (mib, 300_000), (3 * mib - 2, 1)]),
        (40 * mib, [(at * mib, 10) for at in range(40)]),
    ):
        data = bytearray(size)
        for at, length in extents:
            data[at : at + length] = text(length, at)
        entry = file(bytes(data), xattrs=xattrs)
        entry.extents = extents
        entries.append(entry)
    check(named(*entries, file(text(9000))), tmp_path)


def test_a_file_of_5_gib_of_holes(tmp_path: Path) -> None:
    size = 5 * (1 << 30) + 12345
    marks = {at: b"at %d" % at for at in (3 << 20, (1 << 32) + 4093, size - 20)}
    entry = Entry(stat.S_IFREG | 0o644, mtime_ns=TIME, size=size, content=Marked(marks))
    entry.extents = [(at, len(mark)) for at, mark in marks.items()]
    image = ErofsImage(Index(directory({b"large": entry})))
    assert image.size < 2 << 20
    with mounted(image, tmp_path) as root, (root / "large").open("rb") as opened:
        assert os.fstat(opened.fileno()).st_size == size
        for at, mark in marks.items():
            assert os.pread(opened.fileno(), 500, at - 200).strip(b"\0") == mark
