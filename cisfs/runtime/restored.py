"""What `cisfs seal --scrub` takes out of an image's configuration, in the sealed layer, and back.

It is an extended attribute of the layer's root.  In a container the root of the overlay is that of
the scratch, so nobody sees it there.  Does not know images or engines.  Safe anywhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cisfs.errors import FormatError, UsageError
from cisfs.format.config import canonical, load

ATTRIBUTE = b"user.cisfs.config"
_LIMIT = 65535  # bytes of an attribute


def packed(environment: Sequence[str], labels: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the attribute that holds all that, none if it is nothing.

    `environment` is a list of NAME=VALUE.  Raises UsageError if it is too much.
    """
    if not environment and not labels:
        return {}
    value = canonical({"env": list(environment), "labels": dict(labels)})
    if len(value) > _LIMIT:
        raise UsageError(f"--scrub: what is to be moved takes more than {_LIMIT} bytes")
    return {ATTRIBUTE: value}


def environment(layers: Sequence[Path]) -> dict[str, str]:
    """Return the variables that mounted layers hold, the topmost layer first and strongest.

    Raises FormatError, OSError.
    """
    found: dict[str, str] = {}
    for layer in reversed(layers):
        for setting in _settings(layer):
            name, _, value = setting.partition("=")
            found[name] = value
    return found


def _settings(layer: Path) -> list[str]:
    try:
        value = os.getxattr(layer, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return []
        raise
    settings = load(value).get("env")
    if not isinstance(settings, list) or not all(isinstance(each, str) for each in settings):
        raise FormatError("the environment in a sealed layer is no list of text")
    return settings
