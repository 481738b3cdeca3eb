"""Overlay option strings: escapes, limits, and plans that the kernel would refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.runtime.overlay import MAX_LOWERS, OPTIONS_LIMIT, escape, options


def split_unescaped(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash precedes, as the kernel does; escapes stay."""
    parts, current, literal = [], "", False
    for character in text:
        if character == separator and not literal:
            parts.append(current)
            current = ""
            continue
        current += character
        literal = character == "\\" and not literal
    return [*parts, current]


def unescape(text: str) -> str:
    result, literal = "", False
    for character in text:
        if character == "\\" and not literal:
            literal = True
            continue
        result += character
        literal = False
    return result


@pytest.mark.parametrize(
    ("path", "escaped"),
    [
        ("/plain", "/plain"),
        ("a:b", r"a\:b"),
        ("a,b", r"a\,b"),
        ("a\\b", r"a\\b"),
        ("a\\:b", r"a\\\:b"),
        ("ends\\", r"ends\\"),
        ("spaced out", "spaced out"),
        ("ü\udcff", "ü\udcff"),
    ],
)
def test_escapes(path: str, escaped: str) -> None:
    assert escape(path) == escaped


@given(st.lists(st.text(r"a:,\ =", min_size=1, max_size=6), min_size=2, max_size=5))
def test_the_kernel_reads_back_the_same_paths(paths: list[str]) -> None:
    option, *features = split_unescaped(options(paths), ",")
    name, _, value = option.partition("=")
    assert name == "lowerdir"
    assert [unescape(part) for part in split_unescaped(value, ":")] == paths
    assert all("=" in feature and "\\" not in feature for feature in features)


def test_first_lower_is_on_top_and_upper_is_given_whole() -> None:
    text = options(["l/0", "l/1", "base"], "up:per", "wo,rk")
    assert text.startswith(r"lowerdir=l/0:l/1:base,upperdir=up:per,workdir=wo\,rk,")


def test_nothing_needs_more_than_the_upper_directory() -> None:
    """Nothing of an overlay outlives its run: no index, no NFS handles."""
    assert "index=off" in options(["a", "b"])
    assert "nfs_export" not in options(["a", "b"])


@pytest.mark.parametrize("lowers", [[], ["only"]])
def test_read_only_needs_two(lowers: list[str]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        options(lowers)


@pytest.mark.parametrize(("upper", "work"), [("u", None), (None, "w")])
def test_upper_and_work_come_together(upper: str | None, work: str | None) -> None:
    with pytest.raises(ValueError, match="both"):
        options(["a", "b"], upper, work)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_names_that_no_escape_can_express(path: str) -> None:
    with pytest.raises(ValueError, match="not a directory name"):
        options([path, "b"])
    with pytest.raises(ValueError, match="not a directory name"):
        options(["a"], path, "w")


def test_limits() -> None:
    assert len(options([f"l/{number}" for number in range(MAX_LOWERS)])) <= OPTIONS_LIMIT
    with pytest.raises(ValueError, match="at most 500"):
        options(["x"] * (MAX_LOWERS + 1))
    with pytest.raises(ValueError, match="shorter paths"):
        options(["y" * 3000, "z" * 3000])
