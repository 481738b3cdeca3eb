"""Layers of an image as one: what each of them may say, and what is refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.build.index import Index
from cisfs.build.layers import Layer, index_layers
from cisfs.build.opening import open_stream
from cisfs.build.tar import Limits
from cisfs.build.whiteouts import OPAQUE_XATTR
from cisfs.errors import CisfsError, FormatError, UsageError
from tests.unit.image_layers import layer_of
from tests.unit.tars import content, directory, entries, file, header, link, pax, tar

LIMITS = Limits(1 << 24)
Union = Callable[..., Index]


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    """The index of layers, given as tars, the lowest first; over others."""
    with contextlib.ExitStack() as undo:

        def made(*tars: bytes, below: tuple[bytes, ...] = (), limits: Limits = LIMITS) -> Index:
            chosen, others = map(layer_of, tars), map(layer_of, below)
            return undo.enter_context(index_layers([*chosen], [*others], limits, tmp_path))

        yield made


def test_a_hard_link_may_lead_to_a_layer_before(union: Union) -> None:
    index = union(tar(file(b"f", b"content")), tar(link(b"g", b"f")), tar(file(b"f", b"new")))
    found = entries(index)
    assert content(found[b"g"]) == b"content"
    assert content(found[b"f"]) == b"new"
    both = entries(union(tar(file(b"f", b"content")), tar(link(b"g", b"f"))))
    assert both[b"f"] is both[b"g"]
    assert both[b"f"].links == 2


def test_a_hard_link_to_what_is_not_sealed_is_refused(union: Union) -> None:
    with pytest.raises(UsageError, match=r"^it: 'g': a hard link to 'f', which is no earlier file"):
        union(tar(link(b"g", b"f")), below=(tar(file(b"f", b"content")),))


def test_only_what_the_configuration_names_is_taken(tmp_path: Path) -> None:
    good, bad = layer_of(tar(file(b"f"))), layer_of(tar(file(b"g")))
    for pack in (lambda data: data, gzip.compress):
        wrong = replace(layer_of(tar(file(b"g")), pack), diff_id=good.diff_id)
        with pytest.raises(FormatError, match=r"^it: its content is not what the image's conf"):
            index_layers([good, wrong], [], LIMITS, tmp_path)
    index_layers([good, bad], [], LIMITS, tmp_path).close()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_layers_are_read_however_they_are_compressed(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    data = b"not all alike" * 300_000
    packed = layer_of(tar(file(b"f", data), file(b"g", b"end")), pack)
    with index_layers([packed], [], LIMITS, tmp_path) as index:
        assert content(entries(index)[b"f"]) == data
        assert content(entries(index)[b"g"]) == b"end"


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("how", ["cut short", "damaged"])
def test_what_is_broken_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], how: str
) -> None:
    data = pack(tar(file(b"f", bytes(range(256)) * 4000)))
    middle = len(data) // 2
    bad = data[:-5] if how == "cut short" else data[:middle] + b"\xff" * 8 + data[middle + 8 :]
    with pytest.raises(FormatError, match=r"^it: "):
        index_layers([layer_of(bad, lambda data: data)], [], LIMITS, tmp_path)


class Failing:
    """A stream that ends in an error of ours."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, most: int) -> bytes:
        if not self._data:
            raise UsageError("no more")
        piece, self._data = self._data[: min(most, 1000)], self._data[min(most, 1000) :]
        return piece


@pytest.mark.parametrize("pack", [gzip.compress, zstd, lambda data: data])
def test_what_a_stream_raises_is_what_is_said(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    data = pack(tar(file(b"f", bytes(range(256)) * 4000)))[:-600]

    def opened(max_size: int, scratch_directory: Path) -> object:
        return open_stream(Failing(data), max_size, scratch_directory, hashed=True)

    with pytest.raises(CisfsError, match=r"^it: no more$"):
        index_layers([Layer("it", "", opened)], [], LIMITS, tmp_path)  # type: ignore[arg-type]


def test_a_directory_that_is_only_named_keeps_what_it_has_below(union: Union) -> None:
    root = pax([(b"SCHILY.xattr.user.x", b"1")]) + header(b"root/", b"5", mode=0o700, uid=7)
    below = (tar(root, directory(b"root/d/", 0o711)), tar(directory(b"tmp/", 0o1777)))
    index = union(tar(file(b"root/d/f"), file(b"tmp/new/f")), below=below)
    found = entries(index)
    assert (found[b"root"].mode & 0o7777, found[b"root"].uid) == (0o700, 7)
    assert found[b"root"].xattrs == {b"user.x": b"1"}
    assert found[b"root/d"].mode & 0o7777 == 0o711
    assert found[b"tmp"].mode & 0o7777 == 0o1777
    assert found[b"tmp/new"].mode & 0o7777 == 0o755
    described = entries(union(tar(directory(b"root/", 0o750), file(b"root/f")), below=below))
    assert described[b"root"].mode & 0o7777 == 0o750


def test_what_hides_all_in_a_directory_is_still_that_directory(union: Union) -> None:
    """Unless the directory itself was deleted, and made anew."""
    hiding = tar(file(b"tmp/.wh..wh..opq"), file(b"tmp/f"))
    anew = tar(file(b".wh.tmp"), file(b"tmp/f"))
    below = (tar(directory(b"tmp/", 0o1777), file(b"tmp/below")),)
    for layers, mode in (
        ([hiding], 0o1777),
        ([tar(file(b"tmp/g")), hiding], 0o1777),
        ([hiding, tar(file(b"tmp/g"))], 0o1777),
        ([tar(directory(b"tmp/", 0o700)), hiding], 0o700),
        ([anew], 0o755),
        ([tar(file(b"tmp/g")), anew], 0o755),
        ([tar(file(b".wh.tmp")), tar(file(b"tmp/f"))], 0o755),
    ):
        found = entries(union(*layers, below=below))[b"tmp"]
        assert found.mode & 0o7777 == mode
        assert found.xattrs == {OPAQUE_XATTR: b"y"}


def test_what_is_below_is_read_only_if_it_has_to_be(union: Union) -> None:
    union(tar(directory(b"d/"), file(b"d/f")), below=(b"no tar",))
    for needy in (tar(file(b"d/f")), tar(file(b".wh.f"))):
        with pytest.raises(FormatError, match=r"^it: "):
            union(needy, below=(b"no tar",))


def test_whiteouts_of_what_is_not_there_go(union: Union) -> None:
    gone = tar(*(file(name) for name in (b".wh.f", b".wh.g", b"d/.wh.f", b"d/.wh.g", b"x/.wh.f")))
    index = union(gone, below=(tar(file(b"f"), file(b"d/g")), tar(file(b".wh.f"))))
    assert set(entries(index)) == {b"", b"d", b"d/g", b"x"}
    hiding = tar(directory(b"d/"), file(b"d/.wh..wh..opq"), file(b"d/.wh.g"))
    assert set(entries(union(hiding, below=(tar(file(b"d/g")),)))) == {b"", b"d"}


def test_devices_below_are_no_business_of_the_layer(union: Union) -> None:
    device = header(b"d/sda", b"4", device=(8, 0))
    union(tar(file(b"d/f")), below=(tar(device),))
    with pytest.raises(UsageError, match="a device node"):
        union(tar(device))


def test_limits_are_for_all_layers_together(union: Union) -> None:
    part = tar(file(b"f", bytes(6000)))
    union(part, limits=Limits(10_000))
    with pytest.raises(UsageError, match=r"^it: 'f': more than 10000 bytes"):
        union(part, part, limits=Limits(10_000))
    with pytest.raises(UsageError, match="names and attributes take more"):
        union(part, part, limits=Limits(1 << 24, max_index=600))


def test_redirects_of_overlays_are_refused(union: Union) -> None:
    said = pax([(b"SCHILY.xattr.trusted.overlay.redirect", b"/x")])
    with pytest.raises(UsageError, match="an overlay's redirect"):
        union(tar(said + directory(b"d/")))


def test_a_directory_in_place_of_a_file_hides_what_is_below_both(union: Union) -> None:
    index = union(tar(file(b"x")), tar(directory(b"x/", 0o711)))
    assert entries(index)[b"x"].xattrs == {OPAQUE_XATTR: b"y"}
    deep = b"/".join([b"d"] * 1500)
    union(tar(file(deep)), tar(file(deep + b"2")))


def test_what_hides_others_goes_on_hiding_them(union: Union) -> None:
    hiding = tar(directory(b"x/"), file(b"x/.wh..wh..opq"))
    index = union(hiding, tar(directory(b"x/", 0o711), file(b"x/f")))
    found = entries(index)
    assert found[b"x"].xattrs == {OPAQUE_XATTR: b"y"}
    assert found[b"x"].mode & 0o7777 == 0o711
    assert b"x/f" in found
