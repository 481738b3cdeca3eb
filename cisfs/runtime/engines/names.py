"""What an engine of others is told: the image by its name there, the layers by variables.

Pure but for looking where a path leads; knows no engine's interface.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cisfs.errors import EngineError
from cisfs.layer.admission import named_by_environment
from cisfs.registry.attach import resolve, resolve_from_here
from cisfs.runtime import installed
from cisfs.runtime.environment import FETCH_VARIABLE, LAYERS_VARIABLE, SCRATCH_VARIABLE, split
from cisfs.runtime.images.reference import transport_of
from cisfs.runtime.options import Options, settled

_NONE: Mapping[str, str] = MappingProxyType({})


def image_name(options: Options, engine: str) -> str:
    """Return what the engine calls the image.  Raises EngineError for one that it cannot have."""
    if options.image is None:
        raise EngineError(f"--rootfs is for the embedded engine; {engine} takes an image")
    transport = transport_of(options.image)
    if transport in ("oci", "docker-archive"):
        raise EngineError(
            f"image {options.image}: load it into {engine} first, or use --engine embedded"
        )
    name = options.image.removeprefix(f"{transport}:").removeprefix("//")
    if not name or name.startswith("-"):
        raise EngineError(f"{options.image!r} names no image")
    return name


def variables(options: Options) -> dict[str, str]:
    """Return the variables that tell `cisfs-runtime` of layers, scratch and patience."""
    found = {}
    if options.layers:
        paths = [str(path) for path in places(options)]
        if wrong := [path for path in paths if "," in path]:
            raise EngineError(f"--layer {wrong[0]}: a path with a comma is for the embedded engine")
        found[LAYERS_VARIABLE] = ",".join(paths)
    known = settled(options)
    if options.scratch is not None or known.read_only:
        found[SCRATCH_VARIABLE] = str(known.scratch)
    if options.fetch_patience is not None:
        found[FETCH_VARIABLE] = f"{options.fetch_patience:g}"
    return found


def places(options: Options, own: Mapping[str, str] = _NONE) -> list[Path]:
    """Return where the layers are that the options name, by `--layer` or else by a variable.

    `own` are the image's variables.  Raises UsageError, NotAVaultError for those that are nowhere.
    """
    if not options.layers:
        named = split({**own, **options.environment}).layers
        return [resolve(layer, named_by_environment()) for layer in named]
    paths = list(map(resolve_from_here, options.layers))
    for path in paths:
        if not path.exists():
            raise EngineError(f"--layer {path} does not exist")
    return [path.resolve() for path in paths]


def runtime() -> str:
    """Return the path of `cisfs-runtime`.  Raises EngineError if it is not installed."""
    found = installed.runtime()
    if found is None:
        raise EngineError(f"{installed.BINARY} is not installed beside cisfs, nor is it on PATH")
    return found
