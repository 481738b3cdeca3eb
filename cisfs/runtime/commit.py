"""What a running container has written, shown for a while so that it can be sealed.

An engine's container: its scratch is mounted once more, read-only, in a mount namespace that only
this process sees; both mounts are one file system to the kernel, so they cannot differ.  One of our
own: this process goes into the mount namespace that the scratch is mounted in.  Either way paths on
the host go on meaning the same.  Does not know sealing.  For a process with one thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cisfs.errors import EngineError, UsageError
from cisfs.mount import newmount, points, syscalls
from cisfs.mount.scratch import UPPER
from cisfs.runtime import cgroup, listing, pausing
from cisfs.runtime.bundle import cgroup_path
from cisfs.runtime.listing import Container
from cisfs.runtime.oci import record

_ENGINES = ("docker", "podman")


class Writes(Protocol):
    """What a container has written."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Keep the container from writing while the block runs.  Raises EngineError, OSError."""

    def shown(self) -> contextlib.AbstractContextManager[Path]:
        """Show the writes in a directory; this process is in another mount namespace afterwards.

        Raises OSError.
        """


def find(name: str) -> Writes:
    """Return the writes of the running container of a name, an id, or the start of an id.

    Raises UsageError if there is none, or if it has no scratch that could be sealed; EngineError
    without root.
    """
    if os.geteuid() != 0:
        raise EngineError("what containers have written is root's: use sudo")
    found: list[Writes] = [*_own(name), *_by_id(name)]
    found = found or [each for known in _known_to_engines(name) for each in _by_id(known)]
    if not found:
        raise UsageError(f"no container {name!r} with encrypted layers or scratch runs here")
    if len(found) > 1:
        raise UsageError(f"{name!r} stands for {len(found)} containers: give more of an id")
    return found[0]


def _refused(name: str, scratch: str) -> UsageError:
    return UsageError(
        f"container {name} has the scratch {scratch}, which cannot be sealed; run it with an "
        "ephemeral or a persistent one"
    )


# ---- containers of engines


@dataclass(frozen=True, slots=True)
class _OfEngine:
    """A container that `cisfs-runtime` made: the directory of its record, and that."""

    path: Path
    record: dict[str, Any]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        with pausing.resumed_at_last(lambda: self._ask_runtime("resume")):
            self._ask_runtime("pause")
            try:
                yield
            finally:
                self._ask_runtime("resume")

    @contextlib.contextmanager
    def shown(self) -> Iterator[Path]:
        syscalls.leave_mounts()
        place = self.path / record.MOUNTS
        _mount(str(self.record["device"]), place)
        try:
            yield place / UPPER
        finally:
            syscalls.unmount(str(place), syscalls.MNT_DETACH)

    def _ask_runtime(self, command: str) -> None:
        of = self.record
        words = [of["runtime"], "--root", of["runtime_root"], command, of["container"]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise EngineError(f"cannot {command} container {of['container']}: {said}")


def _mount(device: str, place: Path) -> None:
    configured = newmount.Configured("ext4")
    try:
        configured.string("source", device)
        # The file system is writable, as the container needs it; this mount of it is not.
        mounted = configured.mount(
            read_only=False, attributes=newmount.ATTR_RDONLY | newmount.ATTR_NOATIME
        )
    finally:
        configured.close()
    try:
        newmount.place(mounted, place)
    finally:
        os.close(mounted)


def _by_id(name: str) -> Iterator[Writes]:
    for path, each in record.records():
        if name and each["container"].startswith(name):
            if each["device"] is None:
                raise _refused(name, each["scratch"])
            yield _OfEngine(path, each)


def _known_to_engines(name: str) -> Iterator[str]:
    """Yield the id that the first engine that knows a container's name has for it.

    The others are not asked: podman leaves a mount of its own behind when it is first used.
    """
    for engine in _ENGINES:
        if shutil.which(engine) is None:
            continue
        words = [engine, "inspect", "--type=container", "--format={{.Id}}", name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield done.stdout.strip()
            return


# ---- containers of our own


@dataclass(frozen=True, slots=True)
class _OfOurs:
    """A container of the embedded engine."""

    container: Container

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        group = cgroup_path(self.container.state.identifier)
        with pausing.resumed_at_last(lambda: cgroup.thaw(group)), cgroup.frozen(group):
            yield

    @contextlib.contextmanager
    def shown(self) -> Iterator[Path]:
        namespace = os.open(f"/proc/{self.container.state.supervisor}/ns/mnt", os.O_RDONLY)
        try:
            syscalls.enter_namespace(namespace, syscalls.CLONE_NEWNS)
        finally:
            os.close(namespace)
        yield self.container.place / "scratch" / UPPER


def _own(name: str) -> Iterator[Writes]:
    try:
        container = listing.find_running(name)
    except EngineError:
        return
    table = Path(f"/proc/{container.state.supervisor}/mountinfo").read_text()
    scratch = container.place / "scratch"
    if not any(
        entry.mountpoint == scratch and entry.fstype == "ext4"
        for entry in points.parse_mountinfo(table)
    ):
        raise _refused(name, "memory or none")
    yield _OfOurs(container)
