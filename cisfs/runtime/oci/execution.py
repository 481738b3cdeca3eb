"""Before runc executes a further command in a container of ours: it leaves no core either.

runc gives such a process the limits that the engine names for it, or else its own, never those
that the container was created with.  Does not know what is executed.  One call per process, which
becomes runc.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource

from cisfs.runtime.oci import record, spec
from cisfs.runtime.oci.line import Line


def prepare(line: Line) -> None:
    """Limit cores, in this process and in the description that `line` names, if it is of ours."""
    if not (record.BASE / record.name_of(line.container, line.root)).exists():
        return
    # ValueError is what Python makes of EPERM: without the right to, the limit is below already.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (spec.CORE_LIMIT, spec.CORE_LIMIT))
    if line.process is None:
        return
    with contextlib.suppress(
        OSError, ValueError, AttributeError, TypeError
    ):  # runc says what is wrong
        with open(line.process, "rb") as file:
            process = json.load(file)
        if process.get("rlimits"):
            line.add_option("process", _in_memory(spec.without_core(process)))


def _in_memory(process: spec.Json) -> str:
    """Return the path of a file that lasts as long as runc."""
    copy = os.memfd_create("cisfs process", 0)
    os.write(copy, json.dumps(process).encode())
    os.lseek(copy, 0, os.SEEK_SET)
    return f"/proc/self/fd/{copy}"
