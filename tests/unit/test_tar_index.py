"""Tars to indexes: what a layer's members say is what the index has, however it is spelled."""

from __future__ import annotations

import base64
import bz2
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.build.index import ROOT, Index
from cisfs.build.tar import Limits, index_tar
from cisfs.errors import CisfsError, FormatError, UsageError
from tests.unit import tars
from tests.unit.tars import content, directory, entries, file, header, link, pax, tar

SECOND = 1_000_000_000
LIMITS = Limits(1 << 24)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Index]:
    """The index of a tar of these members."""
    return lambda *members, **limits: tars.index(tar(*members), tmp_path, **limits)


Made = Callable[..., Index]


# ---- what a member says


def test_attributes(made: Made) -> None:
    index = made(
        file(b"f", b"content", mode=0o6755, uid=1000, gid=1001, mtime=1_700_000_000),
        header(b"d/", b"5", mode=0o1777),
        link(b"l", b"../../etc/passwd", b"2"),
        header(b"p", b"6", mode=0o600),
        header(b"tty", b"3", mode=0o620, device=(5, 1)),
        header(b"disk", b"4", device=(259, 70_000)),
        devices=True,
    )
    found = entries(index)
    f = found[b"f"]
    assert (f.mode, f.uid, f.gid) == (stat.S_IFREG | 0o6755, 1000, 1001)
    assert (f.mtime_ns, f.size, content(f)) == (1_700_000_000 * SECOND, 7, b"content")
    assert found[b"d"].mode == stat.S_IFDIR | 0o1777
    assert (found[b"l"].mode, found[b"l"].target) == (stat.S_IFLNK | 0o777, b"../../etc/passwd")
    assert found[b"p"].mode == stat.S_IFIFO | 0o600
    assert (found[b"tty"].mode, found[b"tty"].rdev) == (stat.S_IFCHR | 0o620, os.makedev(5, 1))
    assert (found[b"disk"].mode, found[b"disk"].rdev) == (
        stat.S_IFBLK | 0o644,
        os.makedev(259, 70_000),
    )


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1700000000.1", 1_700_000_000_100_000_000),
        (b"1700000000.1234567899", 1_700_000_000_123_456_789),
        (b"17.", 17 * SECOND),
        (b"-1.5", -1_500_000_000),
        (b"0", 0),
    ],
)
def test_times_are_kept_to_the_nanosecond(made: Made, text: bytes, ns: int) -> None:
    index = made(pax([(b"mtime", text)]), file(b"f", mtime=5))
    assert entries(index)[b"f"].mtime_ns == ns


def test_numbers_too_large_for_octal_digits(made: Made) -> None:
    index = made(file(b"f", uid=4_000_000_000, mtime=-SECOND), file(b"g", mtime=1 << 33))
    found = entries(index)
    assert (found[b"f"].uid, found[b"f"].mtime_ns) == (4_000_000_000, -SECOND * SECOND)
    assert found[b"g"].mtime_ns == (1 << 33) * SECOND


def test_pax_records_override_the_header(made: Made) -> None:
    said = [(b"path", b"d/real"), (b"uid", b"70000"), (b"gid", b"70001"), (b"size", b"3")]
    index = made(pax(said), header(b"short", size=0) + tars.padded(b"abc"), file(b"after"))
    found = entries(index)
    assert set(found) == {b"", b"d", b"d/real", b"after"}
    real = found[b"d/real"]
    assert (real.uid, real.gid, content(real)) == (70_000, 70_001, b"abc")


def test_an_empty_record_leaves_the_header_in_force(made: Made) -> None:
    index = made(pax([(b"path", b""), (b"mtime", b""), (b"uid", b"")]), file(b"f", mtime=7, uid=8))
    assert (entries(index)[b"f"].mtime_ns, entries(index)[b"f"].uid) == (7 * SECOND, 8)


def test_a_global_header_is_about_all_members_after_it(made: Made) -> None:
    index = made(
        file(b"before"),
        pax([(b"comment", b"a" * 40), (b"uid", b"7"), (b"SCHILY.xattr.user.x", b"1")], b"g"),
        file(b"one"),
        pax([(b"uid", b"8")]),
        file(b"two"),
    )
    found = entries(index)
    assert [found[name].uid for name in (b"before", b"one", b"two")] == [0, 7, 8]
    assert not found[b"one"].xattrs


def test_names_are_bytes(made: Made) -> None:
    names = [b"\xff\xfe", "größe".encode(), b"a\nb", b" ", b"-rf", b"\xed\xa0\x80", b"..."]
    index = made(*[file(name) for name in names], pax([(b"path", b"\xff=\n\xfd")]), file(b"x"))
    assert set(entries(index)) == {b"", *names, b"\xff=\n\xfd"}


@pytest.mark.parametrize("length", [99, 100, 101, 155, 255])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_targets(tmp_path: Path, length: int, depth: int, form: int) -> None:
    name = "/".join([*("d" * length for _ in range(depth - 1)), "n" * length])
    target = "../" * 30 + "t" * length
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        info = tarfile.TarInfo(name)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, target
        try:
            archive.addfile(info)
            archive.addfile(link)
        except ValueError:
            assert form == tarfile.USTAR_FORMAT
            return
    found = entries(tars.index(stream.getvalue(), tmp_path))
    assert name.encode() in found
    assert found[b"link"].target == target.encode()


def test_gnu_tar_keeps_times_where_posix_has_the_prefix(made: Made) -> None:
    gnu = file(b"f", magic=tars.GNU, prefix=b"14373467215\x0014373467215\0")
    assert set(entries(made(gnu, file(b"g", prefix=b"long/path")))) == {
        *(b"", b"f"),
        *(b"long", b"long/path", b"long/path/g"),
    }


def test_files_of_the_first_tars_and_of_backups(made: Made) -> None:
    index = made(
        header(b"old/", b"\0", magic=b""),
        file(b"old/f", b"x", kind=b"\0", magic=b""),
        file(b"contiguous", b"y", kind=b"7"),
        file(b"label", b"", kind=b"V", magic=tars.GNU),
        file(b"dump/", b"Yname\0Nother\0\0", kind=b"D", magic=tars.GNU),
    )
    found = entries(index)
    assert set(found) == {b"", b"old", b"old/f", b"contiguous", b"dump"}
    assert all(stat.S_ISDIR(found[name].mode) for name in (b"old", b"dump"))
    assert content(found[b"old/f"]) + content(found[b"contiguous"]) == b"xy"


def test_a_size_means_nothing_where_there_is_no_content(made: Made) -> None:
    """Neither Go nor Python nor libarchive takes what follows for content."""
    members = [header(b"d/", b"5", size=4096), header(b"l", b"2", size=6, target=b"target")]
    index = made(file(b"f"), *members, header(b"h", b"1", size=700, target=b"f"), file(b"after"))
    assert set(entries(index)) == {b"", b"d", b"l", b"f", b"h", b"after"}


# ---- extended attributes


def test_attributes_in_all_their_spellings(made: Made) -> None:
    value = bytes(range(256))
    index = made(
        pax(
            [
                (b"SCHILY.xattr.user.raw", value),
                (b"SCHILY.xattr.user.empty", b""),
                (b"SCHILY.xattr.user.a%3Db%25c", b"1"),
                (b"LIBARCHIVE.xattr.user.d%20e", base64.b64encode(value).rstrip(b"=")),
                (b"SCHILY.xattr.security.capability", CAPABILITY),
                (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
                (b"SCHILY.xattr.system.posix_acl_access", ACL),
            ]
        ),
        file(b"f"),
    )
    assert entries(index)[b"f"].xattrs == {
        b"user.raw": value,
        b"user.empty": b"",
        b"user.a=b%c": b"1",
        b"user.d e": value,
        b"security.capability": CAPABILITY,
        b"trusted.overlay.opaque": b"y",
        b"system.posix_acl_access": ACL,
    }


def test_what_linux_would_not_take_is_left_out_and_said(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    users = pax([(b"SCHILY.xattr.user.x", b"1")])
    index = made(
        *(pax([(b"SCHILY.xattr.com.apple.provenance", b"1")]), file(b"f")),
        *(pax([(b"SCHILY.acl.access", b"user::rw-")]), file(b"g")),
        *(users, link(b"l", b"t", b"2")),
        *(users, header(b"p", b"6")),
        *(pax([(b"SCHILY.xattr.system.posix_acl_default", ACL)]), file(b"h")),
    )
    assert not any(each.xattrs for each in entries(index).values())
    assert ["5 members lose" in each.message for each in caplog.records] == [True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"security.capability", b""),
        (b"security.capability", CAPABILITY[:12]),
        (b"system.posix_acl_access", ACL[:-1]),
        (b"system.posix_acl_access", b"\x02\0\0\0"),
        (b"system.posix_acl_access", b"\x01" + ACL[1:]),
        (b"system.posix_acl_access", ACL.replace(b"\x04", b"\x03")),
        (b"user.", b"x"),
        (b"user." + b"n" * 251, b"x"),
        (b"user.x", bytes(65536)),
        (b"user.a\0b", b"x"),
    ],
)
def test_attributes_that_the_kernel_could_not_read_back(
    made: Made, name: bytes, value: bytes
) -> None:
    with pytest.raises(FormatError, match=r"it: 'f': .*extended attribute"):
        made(pax([(b"SCHILY.xattr." + name, value)]), file(b"f"))


def test_names_of_attributes_must_fit_into_one_list(made: Made) -> None:
    many = [(b"SCHILY.xattr.user.%0200d" % number, b"") for number in range(320)]
    with pytest.raises(FormatError, match="'f': has too many extended attributes"):
        made(pax(many), file(b"f"))
    made(pax(many[:310]), file(b"f"))


# ---- the tree


def test_implied_directories_and_later_attributes(made: Made) -> None:
    index = made(file(b"a/b/c"), header(b"a", b"5", mode=0o700, uid=5, mtime=9))
    found = entries(index)
    a, b = found[b"a"], found[b"a/b"]
    assert (a.mode, a.uid, a.mtime_ns) == (stat.S_IFDIR | 0o700, 5, 9 * SECOND)
    assert (b.mode, b.uid, b.gid, b.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0, 0)
    assert b"a/b/c" in found


@pytest.mark.parametrize("name", [b"./", b".", b"././"])
def test_the_root_has_attributes_of_its_own(made: Made, name: bytes) -> None:
    root = made(header(name, b"5", mode=0o711, uid=3), file(b"./f")).root
    assert (root.mode, root.uid, set(root.children)) == (stat.S_IFDIR | 0o711, 3, {b"f"})


def test_spellings_of_one_path(made: Made) -> None:
    index = made(directory(b"./a/"), file(b"a//b"), file(b"./a/./c"), directory(b"a/./"))
    assert set(entries(index)) == {b"", b"a", b"a/b", b"a/c"}


def test_a_later_member_replaces_an_earlier_one(made: Made) -> None:
    index = made(
        file(b"f", b"old"),
        file(b"f", b"newer"),
        directory(b"d"),
        file(b"d/inside", b"x"),
        file(b"d", b"no directory any more"),
        link(b"l", b"t", b"2"),
        directory(b"l"),
        file(b"l/inside"),
    )
    found = entries(index)
    assert set(found) == {b"", b"f", b"d", b"l", b"l/inside"}
    assert content(found[b"f"]) == b"newer"
    assert index.totals.entries == 5


def test_a_directory_given_again_loses_its_old_attributes(made: Made) -> None:
    said = pax([(b"SCHILY.xattr.user.x", b"1")])
    index = made(said, directory(b"d"), file(b"d/f"), header(b"d", b"5", mode=0o700))
    d = entries(index)[b"d"]
    assert (d.xattrs, d.mode) == ({}, stat.S_IFDIR | 0o700)
    assert b"d/f" in entries(index)


def test_hard_links_are_one_entry(made: Made) -> None:
    index = made(
        file(b"a", b"first"),
        link(b"d/b", b"./a"),
        link(b"c", b"d/b"),
        link(b"s", b"t", b"2"),
        link(b"s2", b"s"),
        file(b"a", b"second"),
    )
    found = entries(index)
    assert found[b"d/b"] is found[b"c"]
    assert found[b"s"] is found[b"s2"]
    assert (content(found[b"c"]), content(found[b"a"])) == (b"first", b"second")
    assert (found[b"c"].links, found[b"a"].links, found[b"s"].links) == (2, 1, 2)
    assert index.totals.content == len(b"firstsecond")


def test_nodes_are_numbered_and_counted(made: Made) -> None:
    index = made(directory(b"d"), directory(b"d/e"), file(b"d/f", b"xyz"), link(b"g", b"d/f"))
    assert [each.node for each in index.entries] == list(range(ROOT, ROOT + 4))
    assert index.entries[0] is index.root
    found = entries(index)
    assert [found[name].links for name in (b"", b"d", b"d/e", b"d/f")] == [3, 3, 2, 2]
    assert (index.totals.entries, index.totals.content) == (4, 3)


def test_an_empty_layer(made: Made) -> None:
    index = made()
    assert set(entries(index)) == {b""}
    assert index.root.mode == stat.S_IFDIR | 0o755


# ---- sparse files


def sparse_file(path: Path) -> bytes:
    """A file with holes, and data in more places than a header has room for."""
    rng = random.Random(3)
    with path.open("wb") as made:
        made.truncate(3_000_000)
        for at in (0, 100_000, 4096, 2_900_000, *range(200_000, 2_000_000, 50_000)):
            made.seek(at)
            made.write(rng.randbytes(rng.randint(1, 9000)))
    return path.read_bytes()


@pytest.mark.parametrize(
    "form",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=["old", "0.0", "0.1", "1.0"],
)
def test_sparse_files(tmp_path: Path, form: list[str]) -> None:
    plain = sparse_file(tmp_path / "sparse")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 70_000)
    (tmp_path / "after").write_bytes(b"after")
    command = ["tar", *form, "-C", str(tmp_path), "-cSf", "-", "sparse", "hole", "after"]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(made) < len(plain) / 2
    found = entries(tars.index(made, tmp_path))
    assert content(found[b"sparse"]) == plain
    assert content(found[b"hole"]) == bytes(70_000)
    assert content(found[b"after"]) == b"after"
    assert found[b"after"].extents is None
    sparse = found[b"sparse"]
    assert sparse.content is not None
    assert sparse.extents is not None
    stored = bytearray(len(plain))
    for at, length in sparse.extents:
        stored[at : at + length] = plain[at : at + length]
    assert stored == plain
    for at in range(0, len(plain) - 20_000, 17_777):
        assert sparse.content.read(at, 20_000) == plain[at : at + 20_000]


# ---- where the bytes come from

MEMBERS = tar(
    directory(b"d"),
    file(b"d/small", b"x" * 10),
    file(b"d/large", random.Random(5).randbytes(300_000)),
    file(b"empty"),
)


def assert_members(index: Index) -> None:
    found = entries(index)
    assert set(found) == {b"", b"d", b"d/small", b"d/large", b"empty"}
    assert content(found[b"d/small"]) == b"x" * 10
    large = found[b"d/large"]
    assert content(large) == random.Random(5).randbytes(300_000)
    assert large.content is not None
    assert bytes(large.content.read(100_001, 7)) == content(large)[100_001:100_008]


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in parts": lambda data: gzip.compress(data[:9000]) + gzip.compress(data[9000:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}
needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd here")
EACH_FORM = pytest.mark.parametrize(
    "form", [*list(FORMS)[:-1], pytest.param("zstd", marks=needs_zstd)]
)


@EACH_FORM
def test_a_file(tmp_path: Path, form: str) -> None:
    with tars.index(FORMS[form](MEMBERS), tmp_path) as index:
        assert_members(index)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", [form for form in FORMS if form != "zstd"])
def test_a_pipe(tmp_path: Path, form: str) -> None:
    with tars.piped(FORMS[form](MEMBERS)) as fd:
        index = index_tar(fd, "standard input", LIMITS, tmp_path)
    with index:
        assert_members(index)


def test_zstd_in_a_pipe_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with tars.piped(b"\x28\xb5\x2f\xfd" + bytes(100)) as fd, pytest.raises(UsageError) as caught:
        index_tar(fd, "standard input", LIMITS, tmp_path)
    assert "zstd -dc layer.tar.zst | cisfs seal" in str(caught.value)


def test_zstd_without_its_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="zstd -dc"):
        tars.index(b"\x28\xb5\x2f\xfd" + bytes(100), tmp_path)


def test_a_file_is_read_from_where_it_stands_and_is_left_there(tmp_path: Path) -> None:
    path = tmp_path / "tar"
    path.write_bytes(b"something else" + MEMBERS)
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 14, os.SEEK_SET)
    index = index_tar(fd, "tar", LIMITS, tmp_path)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 14
    os.close(fd)
    with index:
        assert_members(index)


def test_nothing_is_copied_of_a_plain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cisfs.build.opening.Scratch", None)
    assert_members(tars.index(MEMBERS, tmp_path))


@pytest.mark.parametrize("change", ["content", "size", "end"])
def test_a_file_that_changes_afterwards_is_an_error(tmp_path: Path, change: str) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(MEMBERS)
    with path.open("r+b", buffering=0) as opened:
        index = index_tar(opened.fileno(), "layer.tar", LIMITS, tmp_path)
        if change == "content":
            os.utime(path, ns=(0, 0))
        else:
            os.truncate(path, len(MEMBERS) + 1 if change == "size" else 5000)
        with pytest.raises(CisfsError, match=r"layer.tar changed while it was being sealed"):
            content(entries(index)[b"d/large"])


def test_an_error_of_the_operating_system_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("cisfs.build.decompress._Peekable.readinto", fail)
    with pytest.raises(OSError, match="Input/output error"):
        tars.index(gzip.compress(MEMBERS), tmp_path)


@EACH_FORM
def test_no_descriptor_is_left_open(tmp_path: Path, form: str) -> None:
    before = os.listdir("/proc/self/fd")
    for data in (FORMS[form](MEMBERS), FORMS[form](MEMBERS)[:-2000]):
        try:
            tars.index(data, tmp_path).close()
        except FormatError:
            assert len(data) < len(FORMS[form](MEMBERS))
    assert os.listdir("/proc/self/fd") == before
