"""Where the `cisfs` command begins: imports the rest, which takes longer than a finger on Ctrl-C.

Python would show a traceback of the import that was under way; until the command can answer for
itself, the signal ends it as it ends any program.  Knows nothing else.  Runs once.
"""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command line of the process; return the exit code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where it is ignored, as by nohup(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cisfs.cli.main import main as run

    signal.signal(signal.SIGINT, handler)
    return run()
