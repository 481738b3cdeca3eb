"""How a failure reaches the user: as the engine expects it of runc, in the log that it named.

containerd and podman show the last error in the file of `--log`; a person sees standard error.
Does not know what failed.  One thread.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import TYPE_CHECKING

from cisfs.format.said import printable

if TYPE_CHECKING:
    from cisfs.runtime.oci.line import Line


def complain(line: Line, message: str) -> None:
    """Say one line, in the format of `--log-format`."""
    message = printable(" ".join(message.split()))
    text = _formatted(message, line.options.get("log-format", "text"))
    if path := line.options.get("log"):
        try:
            with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except OSError:
            pass  # standard error still has it
    print(f"cisfs-runtime: {message}", file=sys.stderr, flush=True)


def _formatted(message: str, kind: str) -> str:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind == "json":
        return json.dumps({"level": "error", "msg": message, "time": now}) + "\n"
    return f"time={json.dumps(now)} level=error msg={json.dumps(message)}\n"
