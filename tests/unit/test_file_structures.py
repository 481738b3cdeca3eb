"""File header, directory id, trailer and hole marker: round trips, and each refusal's words."""

from __future__ import annotations

import pytest

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format.header import (
    MARKER_SIZE,
    FileHeader,
    pack_directory,
    pack_marker,
    pack_trailer,
    parse_directory,
    parse_marker,
    parse_trailer,
)

ID = bytes(range(1, 17))
FILE = FileHeader(4096, ID).pack()
DIRECTORY = pack_directory(ID)
TAG = bytes(range(200, 216))


def patched(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + bytes([value]) + data[offset + 1 :]


@pytest.mark.parametrize("log2", range(12, 21))
def test_file_headers_round_trip(log2: int) -> None:
    header = FileHeader(1 << log2, ID)
    assert len(header.pack()) == 32
    assert FileHeader.parse(header.pack()) == header
    assert FileHeader.parse(header.pack() + b"content") == header
    assert header.fields() == header.pack()[:16]
    assert ID not in header.fields()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (FILE[:31], FormatError, "file header truncated to 31 bytes"),
        (b"", FormatError, "file header truncated to 0 bytes"),
        (patched(FILE, 0, 0), FormatError, "file header damaged: bad magic"),
        (patched(FILE, 5, ord("D")), FormatError, "file header damaged: bad magic"),
        (patched(FILE, 8, 2), UnsupportedVersionError, "file header has version 2; .* upgrade"),
        (patched(FILE, 9, 1), UnsupportedVersionError, "file header has version 257; .* upgrade"),
        (patched(FILE, 10, 11), FormatError, r"file header damaged: unit size 2\*\*11"),
        (patched(FILE, 10, 21), FormatError, r"file header damaged: unit size 2\*\*21"),
        (patched(FILE, 10, 255), FormatError, r"file header damaged: unit size 2\*\*255"),
        (patched(FILE, 11, 1), FormatError, "file header damaged: reserved bytes are not zero"),
        (patched(FILE, 15, 128), FormatError, "file header damaged: reserved bytes are not zero"),
    ],
)
def test_bad_file_headers_are_refused(data: bytes, error: type[FormatError], words: str) -> None:
    with pytest.raises(FormatError, match=f"^{words}") as caught:
        FileHeader.parse(data)
    assert type(caught.value) is error


def test_directory_ids_round_trip() -> None:
    assert len(DIRECTORY) == 32
    assert parse_directory(DIRECTORY) == ID


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (DIRECTORY[:31], FormatError, "directory id is 31 bytes instead of 32"),
        (DIRECTORY + b"\0", FormatError, "directory id is 33 bytes instead of 32"),
        (patched(DIRECTORY, 7, 1), FormatError, "directory id damaged: bad magic"),
        (
            patched(DIRECTORY, 8, 7),
            UnsupportedVersionError,
            "directory id has version 7; .*upgrade",
        ),
        (patched(DIRECTORY, 10, 1), FormatError, "directory id damaged: reserved bytes are not"),
    ],
)
def test_bad_directory_ids_are_refused(data: bytes, error: type[FormatError], words: str) -> None:
    with pytest.raises(FormatError, match=f"^{words}") as caught:
        parse_directory(data)
    assert type(caught.value) is error


@pytest.mark.parametrize("length", range(17, 33))
def test_trailers_round_trip(length: int) -> None:
    trailer = pack_trailer(TAG, length)
    assert len(trailer) == length
    assert parse_trailer(trailer, length) == TAG
    with pytest.raises(FormatError, match=f"^trailer truncated to {length - 1} bytes"):
        parse_trailer(trailer[:-1], length)
    with pytest.raises(FormatError, match=r"^trailer damaged: padding is not zero"):
        parse_trailer(patched(trailer, length - 1, 1), length)


@pytest.mark.parametrize("level", [0, 1, 61, 62])
def test_markers_round_trip(level: int) -> None:
    assert len(pack_marker(level, TAG)) == MARKER_SIZE
    assert parse_marker(pack_marker(level, TAG)) == (level, TAG)


def test_what_is_no_marker_is_told_apart_from_one() -> None:
    marker = pack_marker(3, TAG)
    assert parse_marker(marker[:-1]) is None
    assert parse_marker(marker + b"\0") is None
    assert parse_marker(bytes(MARKER_SIZE)) is None
    assert parse_marker(patched(marker, 0, 63)) is None
    for reserved in range(1, 16):
        assert parse_marker(patched(marker, reserved, 1)) is None
