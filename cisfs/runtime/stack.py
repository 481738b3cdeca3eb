"""A container's root, mounted: encrypted layers over a public root filesystem, a scratch on top.

Everything is mounted below one directory of the calling process's mount namespace, which is to be
a private one.  Does not know which runtime or engine the root is for.  Forks servers, so it is for
processes with one thread.

    l/0, l/1, ...   the layers, the first on top
    base            the root filesystem below them
    scratch         with upper and work
    m/0, ...        while the overlay is being mounted, of the above with their owners moved
    root            the overlay
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import MountError
from cisfs.mount import server, syscalls
from cisfs.runtime import overlay
from cisfs.runtime.scratch import Kind, Scratch
from cisfs.runtime.store import scratch_image

if TYPE_CHECKING:
    from cisfs.layer.opening import Layer
    from cisfs.mount.idmap import Owners
    from cisfs.mount.scratch import Scratch as MountedScratch

_QUIET = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_SERVER_PATIENCE = 5.0  # seconds a server gets to end by itself
# metacopy: chmod and chown of a large file copy its inode, not its content; but what cannot be told
# from an empty file by itself cannot be sealed by `cisfs commit` either.  volatile: what is lost
# with its key anyway is never synced.
_IN_MEMORY = ("metacopy=on",)
_FEATURES = {
    Kind.EPHEMERAL: ("metacopy=off", "volatile"),
    Kind.PERSISTENT: ("metacopy=off",),
    Kind.MEMORY: _IN_MEMORY,
    Kind.NONE: _IN_MEMORY,
}
_LAYER = "l/{}"
_MOVED = "m/{}"
_MOUNT_POINTS_ONLY = 16 << 20  # bytes for what a runtime makes to mount on in a read-only root


@dataclass(frozen=True, slots=True)
class Plan:
    """What to mount: `place` is an empty directory, `base` the public root filesystem.

    `store` is where scratches are kept; `options` are for the servers.  `owners`: all of it
    is shown with its owners moved.
    """

    place: Path
    base: Path
    scratch: Scratch
    store: Path
    options: server.MountOptions
    owners: Owners | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """A mounted root, and the processes that serve it; `scratch` if one serves that."""

    root: Path
    servers: tuple[int, ...]
    scratch: MountedScratch | None


def layer_places(place: Path, count: int) -> list[Path]:
    """Return where the layers are mounted, the topmost first."""
    return [place / _LAYER.format(number) for number in range(count)]


def mount_memory(place: Path, size: int | None = None) -> None:
    """Mount a tmpfs, never swapped out where the kernel can promise that (Linux 6.4)."""
    options = "mode=0700" + (f",size={size}" if size else "")
    try:
        syscalls.mount("cisfs", str(place), "tmpfs", _QUIET, f"{options},noswap")
    except OSError:
        syscalls.mount("cisfs", str(place), "tmpfs", _QUIET, options)


def mount(plan: Plan, layers: Sequence[Layer], undo: ExitStack) -> Stack:
    """Mount all of it; `undo` takes it away again.

    `layers` are open; they are closed, whatever comes of it.  Raises CisfsError, OSError.
    """
    names = [_LAYER.format(number) for number in range(len(layers))]
    for name in ("base", "scratch", "root", *names):
        (plan.place / name).mkdir(parents=True)
    try:
        launched = []
        for layer, name in zip(layers, names, strict=True):
            launched.append(server.launch(layer, plan.place / name, plan.options))
            undo.callback(_dismiss, partial(launched[-1].server.stop, _SERVER_PATIENCE))
        _bind(plan.base, plan.place / "base", undo)
        scratch = _scratch(plan, layers, undo)
        servers = [each.mounted().pid for each in launched]
    finally:
        for layer in layers:
            layer.abandon()
    # The servers of vaults show owners moved by themselves.
    as_they_are = {name for layer, name in zip(layers, names, strict=True) if _is_vault(layer)}
    root = _overlay(plan, [*names, "base"], as_they_are, undo)
    return Stack(root, (*servers, *([scratch.pid] if scratch else [])), scratch)


def _scratch(plan: Plan, layers: Sequence[Layer], undo: ExitStack) -> MountedScratch | None:
    """Mount the writable layer; None if it is in memory."""
    place, wanted = plan.place / "scratch", plan.scratch
    if wanted.kind in (Kind.MEMORY, Kind.NONE):
        mount_memory(place, wanted.size if wanted.kind is Kind.MEMORY else _MOUNT_POINTS_ONLY)
        undo.callback(syscalls.unmount, str(place), syscalls.MNT_DETACH)
        started = None
    else:
        from cisfs.mount import scratch

        image = scratch_image(wanted, plan.store, layers)
        started = scratch.start(image, place, plan.options)
        undo.callback(_dismiss, started.stop)
        if wanted.kind is Kind.EPHEMERAL:
            undo.callback(started.destroy)  # first: what was not written yet never will be
    for name in ("upper", "work"):
        (place / name).mkdir(exist_ok=True)
    if not any((place / "upper").iterdir()):
        _copy_attributes(plan.place / "base", place / "upper")
    return started


def _bind(source: Path, target: Path, undo: ExitStack) -> None:
    syscalls.mount(str(source), str(target), flags=syscalls.MS_BIND)
    undo.callback(syscalls.unmount, str(target), syscalls.MNT_DETACH)


def _is_vault(layer: Layer) -> bool:
    from cisfs.layer.vault import Vault

    return isinstance(layer, Vault)


def _overlay(
    plan: Plan, lowers: Sequence[str], as_they_are: Container[str], undo: ExitStack
) -> Path:
    """Mount the overlay.  The options have one page of room, so the names in it are relative.

    Those of `lowers` that are `as_they_are` show the owners that they are to show.
    """
    before = Path.cwd()
    os.chdir(plan.place)
    try:
        with ExitStack() as temporary:
            names = ["scratch", *lowers]
            if plan.owners is not None:
                names = [
                    name if name in as_they_are else _moved(name, number, plan.owners, temporary)
                    for number, name in enumerate(names)
                ]
                temporary.enter_context(plan.owners.acting())
            scratch, *lowers = names
            features = _FEATURES[plan.scratch.kind]
            options = overlay.options(lowers, f"{scratch}/upper", f"{scratch}/work", features)
            syscalls.mount("cisfs", "root", "overlay", 0, options)
    except OSError as error:
        raise MountError(
            f"the kernel refused the overlay ({error.strerror}); `dmesg` may say why"
        ) from None
    finally:
        os.chdir(before)
    root = plan.place / "root"
    undo.callback(syscalls.unmount, str(root), syscalls.MNT_DETACH)
    return root


def _moved(name: str, number: int, owners: Owners, undo: ExitStack) -> str:
    """Mount it once more, with the owners moved, and return where."""
    place = Path(_MOVED.format(number))
    place.mkdir(parents=True)
    owners.mount(name, place)
    undo.callback(syscalls.unmount, str(place), syscalls.MNT_DETACH)
    return str(place)


def _copy_attributes(source: Path, target: Path) -> None:
    """Give a directory the owner, mode and times of another; the overlay shows the upper one's."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _dismiss(stop: Callable[[], None]) -> None:
    try:
        stop()
    except MountError as error:
        # What the container did stands, but its user must know what it may have missed.
        print(f"cisfs: warning: {error}", file=sys.stderr, flush=True)
