"""JSON from a registry: bounded, checked for type before use, without ambiguity.

Two programs that read one document must see the same in it, so a name that occurs twice is refused,
and so are numbers that JSON does not have.  Does not know what the documents are about.  Pure
functions; safe anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeAlias

from cisfs.errors import FormatError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_DEPTH = 32


def parse_object(body: bytes, what: str) -> dict[str, Json]:
    """Return the JSON object in `body`.  Raises FormatError that calls it `what`."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unambiguous,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if b"\\u" in body:  # half a surrogate pair is a string that nothing can write
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise FormatError(f"{what} is not JSON, or not unambiguous") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no JSON object")
    if _deeper_than(value, MAX_DEPTH):
        raise FormatError(f"{what} is nested more than {MAX_DEPTH} levels deep")
    return value


def text(of: Mapping[str, Json], name: str, what: str) -> str:
    """Return a member that has to be a string.  Raises FormatError."""
    value = of.get(name)
    if not isinstance(value, str):
        raise FormatError(f"{what} has no text {name!r}")
    return value


def optional_text(of: Mapping[str, Json], name: str, what: str) -> str | None:
    """Return a member that may be absent but else is a string.  Raises FormatError."""
    return None if of.get(name) is None else text(of, name, what)


def objects(of: Mapping[str, Json], name: str, what: str, limit: int) -> list[dict[str, Json]]:
    """Return a member that is an array of up to `limit` objects.  Raises FormatError."""
    values = of.get(name)
    if not isinstance(values, list):
        raise FormatError(f"{what} has no array {name!r}")
    if len(values) > limit:
        raise FormatError(f"{what} has {len(values)} {name}, more than {limit}")
    found = [value for value in values if isinstance(value, dict)]
    if len(found) != len(values):
        raise FormatError(f"{what} has {name} that are no objects")
    return found


def texts(of: Mapping[str, Json], name: str, what: str) -> dict[str, str]:
    """Return a member that maps names to strings, empty if absent.  Raises FormatError."""
    values = of.get(name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FormatError(f"{what} has {name!r} that is no object")
    found = {key: value for key, value in values.items() if isinstance(value, str)}
    if len(found) != len(values):
        raise FormatError(f"{what} has {name!r} that are no text")
    return found


def _unambiguous(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(digits)
    return value


def _deeper_than(value: Json, limit: int) -> bool:
    level: list[Json] = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _inner(value: Json) -> list[Json]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
