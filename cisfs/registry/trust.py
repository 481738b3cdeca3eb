"""Whose certificates are believed: the system's authorities, those of a file, those of a host.

Does not know what connections are for.  Reads files; safe anywhere.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cisfs.errors import UsageError
from cisfs.registry.reference import is_registry

# HOST[:PORT]/NAME.crt, as docker and podman have them: containers-certs.d(5).
DIRECTORIES = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))


def authorities(ca_file: Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, and those in a file of PEM.

    Raises UsageError for one that will not do.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = "no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            raise UsageError(f"cannot use CA file {ca_file}: {reason}") from None
    return context


def authorities_of_hosts(
    ca_file: Path | None, directories: Sequence[Path] = DIRECTORIES
) -> dict[str, ssl.SSLContext]:
    """Return whom to trust at hosts that have authorities of their own besides.

    A file there that will not do is as if it were not there: it may be for a host that nobody asks.
    """
    found: dict[str, ssl.SSLContext] = {}
    for path in (each for directory in directories for each in _certificates(directory)):
        host = path.parent.name
        if is_registry(host):
            found.setdefault(host, authorities(ca_file))
            with suppress(OSError, ssl.SSLError):
                found[host].load_verify_locations(cafile=path)
    return found


def _certificates(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob("*/*.crt"))
    except OSError:
        return []
