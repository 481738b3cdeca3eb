"""Rotation: everything in a layer is encrypted anew under a fresh master key.

Decides by what is at the path which of the two ways to go.  Knows neither format.  One call at a
time in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cisfs.crypto.keys import SecretKey
from cisfs.format.config import SlotFields
from cisfs.keys.credentials import Opener, Recipients
from cisfs.keys.reopening import asking_once
from cisfs.layer.opening import is_sealed
from cisfs.layer.rotation_request import Progress, Request, Rotated, Switching
from cisfs.layer.sealed_rotation import rotate_layer
from cisfs.layer.vault_rotation import rotate_vault


def _say_nothing(_done: int, _total: int) -> None:
    """No progress is wanted."""


def _do_nothing(_old: SecretKey, _new: SecretKey) -> None:
    """Nothing else uses the old key."""


def rotate(
    path: Path,
    opener: Opener,
    recipients: Recipients | Callable[[Sequence[SlotFields]], Recipients],
    *,
    workers: int | None = None,
    progress: Progress = _say_nothing,
    switching: Switching = _do_nothing,
    switched: Switching = _do_nothing,
) -> Rotated:
    """Rotate the vault or sealed layer at `path`, or go on where an earlier run was interrupted.

    The old one stays as it is, and openable, until the new one takes its place in one step.  It
    needs as much space again.  See `Request` for the arguments; `workers` is about sealed layers
    (default: one for each CPU we may use).  Raises what opening the old one raises, BusyError if
    it is being rotated already (or is a vault in use), IntegrityError for damage in the old one,
    CisfsError when there is no space, OSError; what was done is kept for the next call.
    """
    path = path.resolve()
    request = Request(asking_once(opener), recipients, workers, progress, switching, switched)
    return rotate_layer(path, request) if is_sealed(path) else rotate_vault(path, request)
