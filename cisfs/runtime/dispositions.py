"""What a process does with a signal, as proc(5) tells.

Does not know whose process it is.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def status(pid: int) -> dict[str, str]:
    """Return the fields of a process's status, none when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    rows = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in rows}


def within(status: Mapping[str, str], kind: str, number: int) -> bool:
    """Tell whether a signal is in one of the sets of a status: SigBlk, SigIgn, SigCgt."""
    return bool(int(status.get(kind, "0"), 16) & 1 << (number - 1))


def handles(pid: int, number: int) -> bool:
    """Tell whether a process catches, blocks or ignores a signal; also when it is gone."""
    found = status(pid)
    return not found or any(within(found, kind, number) for kind in ("SigBlk", "SigIgn", "SigCgt"))
