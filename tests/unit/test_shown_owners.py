"""Owners as a vault's server shows them to a container with a user namespace."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.mount import owners
from cisfs.mount.idmap import SIZE

FIRST = 1 << 20
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


def test_owners() -> None:
    assert [owners.moved(each, FIRST) for each in (0, 1000, SIZE - 1)] == [
        FIRST,
        FIRST + 1000,
        FIRST + SIZE - 1,
    ]
    # Beyond is the next container's, and must not become its user.
    assert [owners.moved(each, FIRST) for each in (SIZE, 0xFFFFFFFF)] == [65_534, 65_534]


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
def test_owners_in_acls(name: bytes) -> None:
    none = 0xFFFFFFFF
    stored = acl((1, 6, none), (2, 6, 1000), (2, 4, 70_000), (4, 4, none), (8, 4, 5), (16, 6, none))
    shown = acl(
        *((1, 6, none), (2, 6, FIRST + 1000), (2, 4, 65_534), (4, 4, none)),
        *((8, 4, FIRST + 5), (16, 6, none)),
    )
    assert owners.moved_attribute(name, stored, FIRST) == shown
    assert owners.moved_attribute(b"user.x", stored, FIRST) == stored


@given(st.binary(max_size=40))
def test_any_attribute_keeps_its_size(value: bytes) -> None:
    assert len(owners.moved_attribute(ACCESS, value, FIRST)) == len(value)
