"""How a scratch is spelled on command lines, in annotations and variables."""

from __future__ import annotations

import pytest

from cisfs.errors import UsageError
from cisfs.runtime.scratch import Kind, Scratch, parse


@pytest.mark.parametrize(
    ("text", "scratch"),
    [
        ("ephemeral", Scratch()),
        ("ephemeral,size=1G", Scratch(size=1 << 30)),
        ("persistent:db-1.x_y", Scratch(Kind.PERSISTENT, "db-1.x_y")),
        ("persistent:a,size=64m", Scratch(Kind.PERSISTENT, "a", 64 << 20)),
        ("memory,size=16777217", Scratch(Kind.MEMORY, size=16 << 20)),
        ("none", Scratch(Kind.NONE)),
    ],
)
def test_what_can_be_written(text: str, scratch: Scratch) -> None:
    assert parse(text) == scratch
    assert parse(str(scratch)) == scratch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disk",
        "ephemeral:x",
        "persistent",
        "persistent:",
        "persistent:../x",
        "persistent:a/b",
        "persistent:.a",
        "persistent:" + "a" * 129,
        "memory,10G",
        "memory,size=",
        "memory,size=0",
        "memory,size=-1",
        "memory,size=1",
        "memory,size=2T",
        "memory,size=1G,size=2G",
        "none,size=1G",
        " ephemeral",
    ],
)
def test_what_cannot(text: str) -> None:
    with pytest.raises(UsageError, match="persistent:NAME"):
        parse(text)
