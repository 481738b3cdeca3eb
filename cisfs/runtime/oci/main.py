"""`cisfs-runtime`: runc's command line, with encrypted layers under the root of what it creates.

Container engines start it several times for each container, so all but `create` and `run` of a
bundle that names layers, and `exec` where there is a container of ours, becomes runc at once, and
nothing is imported for it.  Does not know how layers are mounted.  One call per process.
"""

from __future__ import annotations

import os
import sys

from cisfs.runtime.oci import line

_CONTAINERS = "/run/cisfs/containers"  # cisfs.runtime.oci.record
_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """Do what the process's arguments ask for; returns only when that failed."""
    given = line.parse(sys.argv[1:])
    wanted = given.own.get("runtime-binary", "runc")
    binary = _found(wanted)
    if binary is None:
        hint = "; on Debian and Ubuntu: apt install runc" if wanted == "runc" else ""
        return _fail(given, f"the runtime {wanted!r} is not installed{hint}")
    if given.command == "exec" and os.path.isdir(_CONTAINERS):
        from cisfs.runtime.oci import execution

        execution.prepare(given)
    if given.command not in ("create", "run", "checkpoint", "restore"):
        return _become(given, binary)
    from cisfs.errors import in_words
    from cisfs.runtime.oci import create

    try:
        if given.command in ("create", "run"):
            create.prepare(given, binary)
        else:
            create.refuse_checkpoint(given)
    except create.FAILURES as error:
        return _fail(given, in_words(error))
    except Exception as error:  # noqa: BLE001 - the engine's user sees nothing but the log
        return _fail(given, f"a fault of cisfs-runtime: {type(error).__name__}: {error}")
    return _become(given, binary)


def _become(given: line.Line, binary: str) -> int:
    try:
        os.execv(binary, [binary, *given.words])  # noqa: S606 - a shell is the last thing wanted
    except OSError as error:
        return _fail(given, f"cannot run {binary}: {error.strerror}")


def _found(name: str) -> str | None:
    """Return the path of a program: the engine may have started us with a short PATH, or none."""
    if "/" in name:
        return name
    if not name:
        return None
    for directory in f"{os.environ.get('PATH', '')}:{_DIRECTORIES}".split(":"):
        path = f"{directory}/{name}"
        if directory and os.access(path, os.X_OK):
            return path
    return None


def _fail(given: line.Line, message: str) -> int:
    from cisfs.runtime.oci import complaint

    complaint.complain(given, message)
    return 1


if __name__ == "__main__":
    sys.exit(main())
