"""What strangers have written does nothing to a terminal, wherever it is shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.cli.slot_list import print_removed, print_slots
from cisfs.format.config import SlotFields
from cisfs.format.said import MAX_SAID, printable, repeatable
from cisfs.layer import slotarea
from tests.unit import layers

HOSTILE = "a\x1b[2J\x9b1m\n\u202e\ud800"
SLOT: SlotFields = {"type": HOSTILE, "recipient": HOSTILE, "kdf": HOSTILE, "wrapped": ""}


def test_words_of_strangers() -> None:
    assert repeatable("a\x1b[2J\n\tb\u202e") == "a [2J b"
    assert len(repeatable("x" * 100_000)) == MAX_SAID
    assert printable("a\x1b[2Jb\nc \udcff") == "a?[2Jb?c ?"
    assert len(printable("x" * 100_000)) == 100_000


def test_slots_are_listed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_slots([SLOT])
    print_removed([SLOT])
    lines = capsys.readouterr().out.encode().decode().splitlines()
    assert len(lines) == 2
    assert all(map(str.isprintable, lines))


def test_a_layer_is_described_in_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(layers.UNIT))
    fd = os.open(path, os.O_RDWR)
    slotarea.update(fd, lambda text: replace(text, slots=(*text.slots, SLOT)))
    os.close(fd)
    shown = ""
    for words in (["inspect"], ["key", "list"], ["inspect", "--json"]):
        capsys.readouterr()
        assert main([*words, str(path)]) == 0
        shown = capsys.readouterr().out
        assert all(map(str.isprintable, shown.encode().decode().splitlines()))
    assert HOSTILE in json.loads(shown)["slots"][-1]["type"]
