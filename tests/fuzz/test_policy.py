"""Any text for a policy gives rules or one of our errors, and any name can be judged by it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cisfs.layer.policy import parse
from cisfs.layer.reference import canonical_reference
from tests.fuzz.test_parsers import MANY, value_or_our_error

KEY = bytes(32)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXT = NAMES.map(lambda text: "".join(f"\\u{ord(c) & 0xFFFF:04x}" for c in text if ord(c) < 0xD800))
VALUES = st.one_of(
    st.sampled_from(["true", "false", "0", "1", "-1", "1.5", "[]", "{}", '""', "1979-05-27"]),
    TEXT.map(lambda text: f'"{text}"'),
    st.lists(TEXT.map(lambda text: f'"{text}"'), max_size=3).map(
        lambda each: f"[{', '.join(each)}]"
    ),
)
FIELDS = st.sampled_from(["layers", "registries", "signers", "threshold", "allow", "more"])
TABLES = st.sampled_from(["[default]", "[[rule]]", "[rule]", "[[default]]", "[more]"])


def judge(data: bytes, path: str, reference: str) -> None:
    found = parse(data, lambda text: KEY[:1] * len(text))
    for demand in (*found.demands(path, path), *found.demands_of_reference(reference)):
        assert demand.forbids or demand.threshold <= len(demand.signers)


@MANY
@given(data=st.binary(max_size=200), name=NAMES)
def test_any_bytes(data: bytes, name: str) -> None:
    value_or_our_error(lambda: judge(data, name, name))


@MANY
@given(
    tables=st.lists(st.tuples(TABLES, st.dictionaries(FIELDS, VALUES, max_size=4)), max_size=3),
    name=NAMES,
)
def test_any_tables(tables: list[tuple[str, dict[str, str]]], name: str) -> None:
    lines = [
        line
        for table, fields in tables
        for line in (table, *(f"{key} = {value}" for key, value in fields.items()))
    ]
    value_or_our_error(lambda: judge("\n".join(lines).encode(), name, name))


@MANY
@given(pattern=NAMES, path=NAMES)
def test_any_pattern_matches_or_not(pattern: str, path: str) -> None:
    quoted = "".join(f"\\U{ord(c):08x}" for c in pattern)
    text = f'[[rule]]\nlayers = ["/{quoted}", "{quoted}"]\nallow = true\n'
    value_or_our_error(lambda: judge(text.encode(), path, path))


@MANY
@given(reference=NAMES)
def test_a_canonical_reference_stays_as_it_is(reference: str) -> None:
    once = canonical_reference(f"registry.example/{reference.replace(':', '')}")
    assert canonical_reference(once) == once
