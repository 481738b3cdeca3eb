"""Machines of the tests with a wire between them, which leads nowhere else.

Does not know what they say to each other.  The wire is gone with its machines.
"""

from __future__ import annotations

import subprocess

from tests.engines.machine import Machine

_NET = "192.0.2"  # for documentation, RFC 5737: nobody has it
HUB = f"{_NET}.1"  # the address of the machine in the middle


def connect(hub: Machine, *others: Machine) -> list[str]:
    """Connect machines, each with `hub`; returns the addresses of the others."""
    hub.must("ip", "link", "add", "wires", "type", "bridge")
    hub.must("ip", "address", "add", f"{HUB}/24", "dev", "wires")
    hub.must("ip", "link", "set", "wires", "up")
    return [_plug(hub, number, other) for number, other in enumerate(others, 2)]


def _plug(hub: Machine, number: int, other: Machine) -> str:
    port, wire, address = f"port{number}", f"wire{number}", f"{_NET}.{number}"
    # In the network of the one, by the process number outside of the other.
    enter = ["nsenter", f"--target={hub.first}", "--net"]
    pair = ["ip", "link", "add", port, "type", "veth", "peer", "name", wire]
    subprocess.run([*enter, *pair, "netns", str(other.first)], check=True)
    hub.must("ip", "link", "set", port, "master", "wires", "up")
    other.must("ip", "address", "add", f"{address}/24", "dev", wire)
    other.must("ip", "link", "set", wire, "up")
    return address
