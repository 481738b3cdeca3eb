"""What a process does with a signal, as proc(5) tells.

Does not know whose process it is.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from cisfs.mount import proc


def within(status: Mapping[str, str], kind: str, number: int) -> bool:
    """Tell whether a signal is in one of the sets of a status: SigBlk, SigIgn, SigCgt."""
    return bool(int(status.get(kind, "0"), 16) & 1 << (number - 1))


def handles(pid: int, number: int) -> bool:
    """Tell whether a process catches, blocks or ignores a signal; also when it is gone."""
    found = proc.status(pid)
    return not found or any(within(found, kind, number) for kind in ("SigBlk", "SigIgn", "SigCgt"))
