"""Names of what a registry has, in one spelling, so that a policy's prefixes can be compared.

HOST[:PORT]/NAME[:TAG][@DIGEST] (OCI distribution-spec, "Pulling manifests").  Hosts are told apart
by name alone: one registry under two names is two.  Pure functions; safe anywhere.
"""

from __future__ import annotations

import re

_DOCKER = "docker.io"
_ALSO_DOCKER = ("index.docker.io", "registry-1.docker.io")
_IMPLIED_PORT = ":443"
_LEADING_ZEROS = re.compile(r":0+(?=[0-9]+$)")


def canonical_reference(reference: str) -> str:
    """Return HOST/NAME of a full reference, without what makes no difference: case, port 443."""
    name = reference.partition("@")[0].lower()
    host, slash, path = name.partition("/")
    last = path.rpartition("/")[2]
    if ":" in last:
        path = path.removesuffix(":" + last.partition(":")[2])
    return f"{_host(host)}{slash}{path}"


def prefix(text: str) -> str:
    """Return a policy's prefix in the same spelling; ValueError if it can match nothing."""
    host, _, path = text.removesuffix("/").lower().partition("/")
    parts = path.split("/") if path else []
    if not host or "" in parts or any(each in text for each in ("@", "://", " ")):
        raise ValueError(f"{text!r} is not HOST or HOST/NAME")
    if ":" in path:
        raise ValueError(f"{text!r} names a tag; a rule is about all tags")
    return "/".join([_host(host), *parts])


def is_below(reference: str, prefix: str) -> bool:
    """Tell whether a canonical reference is the prefix, or lies below it."""
    return reference == prefix or reference.startswith(prefix + "/")


def _host(host: str) -> str:
    host = _LEADING_ZEROS.sub(":", host)  # of the port
    name, colon, port = host.removesuffix(_IMPLIED_PORT).partition(":")
    name = name.removesuffix(".")  # the root of DNS
    return (_DOCKER if name in _ALSO_DOCKER else name) + colon + port
