"""What a registry says in WWW-Authenticate: how it wants us to prove who we are.

RFC 9110, section 11.6.1; the Bearer parameters are those of the token authentication specification
(distribution.github.io/distribution/spec/auth/token).  Does not know any login.  Immutable values
and pure functions; safe anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_LONGEST = 8192  # characters of a header that are looked at
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - RFC 9110's word for a word
# A parameter, or else a scheme: no more than one can match at a place, and each match moves on.
_PART = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))|({_TOKEN})|[,\s]+')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme and its parameters, names in small letters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str | None) -> list[Challenge]:
    """Return the challenges in a header, as far as it can be understood."""
    found: list[Challenge] = []
    text = (header or "")[:_LONGEST]
    at = 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            break
        at = match.end()
        name, quoted, plain, scheme = match.groups()
        if scheme:
            found.append(Challenge(scheme.lower(), {}))
        elif name and found:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1] = _with(found[-1], name.lower(), value)
    return found


def find(challenges: list[Challenge], scheme: str) -> Challenge | None:
    """Return the first challenge of a scheme."""
    return next((each for each in challenges if each.scheme == scheme), None)


def _with(challenge: Challenge, name: str, value: str) -> Challenge:
    return Challenge(challenge.scheme, {**challenge.parameters, name: value})
