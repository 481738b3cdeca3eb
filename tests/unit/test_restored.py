"""What was scrubbed comes back from a layer's root, and nothing else is taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cisfs.errors import FormatError, UsageError
from cisfs.runtime import restored


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two layers' roots, the topmost first."""
    made = [tmp_path / "upper", tmp_path / "lower"]
    for each in made:
        each.mkdir()
    return made


def hold(layer: Path, *settings: str) -> None:
    for name, value in restored.packed(settings, {"label": "x"}).items():
        os.setxattr(layer, name, value)


def test_the_topmost_layer_is_the_strongest(layers: list[Path]) -> None:
    assert restored.environment(layers) == {}
    hold(layers[1], "A=lower", "B=low=er", "E=")
    hold(layers[0], "A=upper", "\N{SNOWMAN}=\N{SNOWMAN}")
    found = restored.environment(layers)
    assert found == {"A": "upper", "B": "low=er", "E": "", "\N{SNOWMAN}": "\N{SNOWMAN}"}


def test_nothing_takes_no_attribute_and_too_much_is_refused() -> None:
    assert restored.packed([], {}) == {}
    assert len(restored.packed([], {"a": "b"})) == 1
    with pytest.raises(UsageError, match="takes more than 65535 bytes"):
        restored.packed(["A=" + "x" * 65536], {})


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{", b"{}", b'{"env":1}', b'{"env":[1]}', b'{"env":{"a":"b"}}']
)
def test_what_is_none_of_it_is_refused(layers: list[Path], value: bytes) -> None:
    os.setxattr(layers[0], restored.ATTRIBUTE, value)
    with pytest.raises(FormatError):
        restored.environment(layers)
