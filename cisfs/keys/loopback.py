"""Which addresses stay on this machine, so that what is sent there needs no TLS.

Does not look names up: only `localhost` (RFC 6761, section 6.3) is one that never leaves.  Pure;
safe anywhere.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether `host`, a name or an address without brackets, is this machine itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
