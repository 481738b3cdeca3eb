"""A link of limited bandwidth, on a machine of the tests, with a registry at its far end.

The far end is a network namespace; the link is a pair of virtual interfaces, and the kernel's token
bucket limits what each of them sends, headers of packets included.  It delays nothing.  Does not
know what is sent over it.  One link on a machine.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.machine import Machine
from tests.registry.harness.certificates import Authority

BANDWIDTH = 50_000_000  # bytes a second, each way
NEAR, FAR = "10.213.77.1", "10.213.77.2"
REGISTRY = f"{FAR}:5000"

_SET_UP = f"""
ip netns add far
ip link add near type veth peer name far netns far
ip address add {NEAR}/30 dev near && ip link set near up
ip -n far address add {FAR}/30 dev far && ip -n far link set far up && ip -n far link set lo up
"""
# A bucket of a few milliseconds: the kernel passes on packets of up to 64 KiB.
_LIMIT = "tc {far} qdisc replace dev {dev} root tbf rate {bits}bit burst 256kb latency 50ms"


class Link:
    """The link of a machine; made without a limit."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.must("sh", "-ec", _SET_UP)

    def limit(self) -> None:
        """Have BANDWIDTH hold from now on."""
        for far, device in (("", "near"), ("-n far", "far")):
            line = _LIMIT.format(far=far, dev=device, bits=8 * BANDWIDTH)
            self._machine.must(*line.split())

    @property
    def received(self) -> int:
        """Bytes that came from the far end so far, headers of packets included."""
        # proc(5): the first figure of an interface's line
        lines = Path(f"/proc/{self._machine.first}/net/dev").read_text().splitlines()
        found = (line.split(":") for line in lines)
        return next(int(words[1].split()[0]) for words in found if words[0].strip() == "near")


@contextmanager
def registry(machine: Machine) -> Iterator[None]:
    """docker-registry at the far end, by TLS, which all on the machine trust; in its memory."""
    directory = machine.memory / "far"
    directory.mkdir()
    authority = Authority(directory)
    issued = authority.issue("registry", FAR)
    _trust(machine, authority.file)
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {
            "addr": REGISTRY,
            "tls": {"certificate": str(issued.certificate), "key": str(issued.key)},
        },
    }
    file = directory / "config.yml"  # JSON is YAML
    file.write_text(json.dumps(config))
    words = ["ip", "netns", "exec", "far", "docker-registry", "serve", str(file)]
    tried = ["curl", "--silent", "--fail", f"https://{REGISTRY}/v2/"]
    with machine.daemon(*words, ready=lambda: machine.run(*tried).returncode == 0):
        yield


def _trust(machine: Machine, authority: Path) -> None:
    """Add it to the machine's own copy of /etc/ssl/certs: to the bundle, and under its hash."""
    store = machine.outside("/etc/ssl/certs")
    with (store / "ca-certificates.crt").open("ab") as bundle:
        bundle.write(authority.read_bytes())
    words = ["openssl", "x509", "-noout", "-hash", "-in", str(authority)]
    name = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    (store / f"{name}.0").write_bytes(authority.read_bytes())
