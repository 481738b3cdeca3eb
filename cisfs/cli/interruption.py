"""Long commands that signals may end: what is said then, and the exit code.

Does not know what is interrupted.  One call per process.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


def interruptible(work: Callable[[], int], doing: str, advice: str = "") -> int:
    """Return what `work` does, or 128+N when signal N ended it, which is said.

    `doing` is what was interrupted, in words; `advice` follows.
    """
    from cisfs.build import interrupts

    try:
        with interrupts.raised():
            return work()
    except interrupts.Interrupted as ended:
        name = signal.Signals(ended.number).name
        print(f"cisfs: {doing} was interrupted by {name}{advice}", file=sys.stderr)
        return 128 + ended.number
