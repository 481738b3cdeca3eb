"""Any bytes into any parser give a value or one of our errors, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import test_keys, test_ocicrypt_parsers, test_parsers, test_sealed_parsers
from tests.fuzz.test_parsers import MANY, Parser, value_or_our_error

PARSERS: dict[str, Parser] = {
    f"{table.__name__.rpartition('test_')[2]}: {name}": parser
    for table in (test_keys, test_ocicrypt_parsers, test_parsers, test_sealed_parsers)
    for name, parser in table.PARSERS.items()
}
EACH = pytest.mark.parametrize("name", PARSERS)


@EACH
def test_what_is_valid_is_taken(name: str) -> None:
    parse, valid = PARSERS[name]
    parse(valid)


@EACH
@MANY
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    value_or_our_error(lambda: PARSERS[name][0](data))


@EACH
@MANY
@given(data=st.data())
def test_valid_bytes_that_were_altered(name: str, data: st.DataObject) -> None:
    parse, valid = PARSERS[name]
    altered = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        # In a large text most of what matters stands at its beginning.
        at = data.draw(
            st.one_of(st.integers(0, min(100, len(altered))), st.integers(0, len(altered)))
        )
        length = data.draw(st.integers(0, 4))
        altered[at : at + length] = data.draw(st.binary(max_size=4))
    value_or_our_error(lambda: parse(bytes(altered)))
