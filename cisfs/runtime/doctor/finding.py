"""What was found out about the host: one value for each question.

Does not know the questions.  Immutable; safe anywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is: a failure keeps containers from running, a warning makes something worse."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer; `remedy` is empty when all is well, or when nothing can be done."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(name, Level.OK, found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Return a finding that something will be missing."""
    return Finding(name, Level.WARNING, found, remedy)


def failure(name: str, found: str, remedy: str) -> Finding:
    """Return a finding that no container will run."""
    return Finding(name, Level.FAILURE, found, remedy)
