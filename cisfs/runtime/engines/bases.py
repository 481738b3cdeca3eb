"""Whether layers may go on an engine's image: those that are bound to a base, on that base only.

`cisfs-runtime`, which the engine starts, does not learn of which layers a root is made.  What a
layer says of its base is not authenticated here; whoever opens it does that.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cisfs.errors import CisfsError, EngineError
from cisfs.format.sealed import check_base
from cisfs.layer.sealed_file import stored
from cisfs.runtime.engines import names
from cisfs.runtime.environment import LAYERS_VARIABLE, from_list
from cisfs.runtime.options import Options


@dataclass(frozen=True, slots=True)
class EngineImage:
    """What an engine says of an image: the variables it sets, its layers' diff_ids."""

    environment: Mapping[str, str]
    diff_ids: Sequence[str]

    @classmethod
    def parse(cls, inspected: Mapping[str, Any], name: str) -> EngineImage:
        """Read what docker and podman answer to "image inspect".  Raises EngineError."""
        try:
            variables = (inspected.get("Config") or {}).get("Env") or []
            layers = (inspected.get("RootFS") or {}).get("Layers") or []
            return cls(from_list(variables), [str(each) for each in layers])
        except (AttributeError, TypeError):
            raise EngineError(f"image {name}: the engine describes it in no proper way") from None


def check(options: Options, image: EngineImage) -> None:
    """Raise BaseMismatchError if a layer of the container is bound to something else than `image`.

    Raises what opening a layer's file raises.
    """
    for path in _places(options, image):
        if path.is_file():  # vaults are bound to nothing
            check_base(stored(path)[0], image.diff_ids)


def _places(options: Options, image: EngineImage) -> Iterator[Path]:
    yield from names.places(options)
    if not options.layers and LAYERS_VARIABLE not in options.environment:
        with suppress(CisfsError, OSError):  # the runtime will say it, or knows it from elsewhere
            yield from names.places(options, image.environment)
