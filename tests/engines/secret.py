"""Layers with something to keep: sealed, unlocked on a machine of the tests, searched for.

What goes into a layer is random, so that it is nowhere by chance, and never on the machine's disk.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cisfs.keys.credentials import RawKey
from cisfs.layer.opening import key_id, master_key
from tests.engines.machine import Machine
from tests.mount.harness import layers

STORE = "/var/lib/cisfs/layers"
SEALED: set[str] = set()  # what the keys of layers made here are known by
_SCRATCHES = "/var/lib/cisfs/scratch"


@dataclass(frozen=True)
class Secret:
    """A sealed layer with a file /secret, which holds its canary."""

    machine: Machine
    name: str
    canary: str
    key: bytes

    @property
    def path(self) -> str:
        """Where it is on the machine."""
        return f"{STORE}/{self.name}.cis"

    @property
    def key_file(self) -> Path:
        """Where its key is, on no disk."""
        return self.machine.memory / f"{self.name}.key"

    @property
    def needles(self) -> list[bytes]:
        """What nobody but a container may see: the canary, and keys as they could be written."""
        return [self.canary.encode(), *self.key_needles]

    @property
    def key_needles(self) -> list[bytes]:
        """The key that opens the layer and the one within, in bytes and in text."""
        opened = master_key(self.machine.outside(self.path), RawKey(self.key)).reveal()
        return [
            form
            for key in (self.key, opened)
            for form in (key, key.hex().encode(), base64.b64encode(key).rstrip(b"="))
        ]

    def unlock(self) -> None:
        """`cisfs unlock`."""
        ended = self.machine.cisfs("unlock", "--key-file", self.key_file, self.path)
        assert ended.returncode == 0, ended

    def lock(self) -> None:
        """`cisfs lock`."""
        ended = self.machine.cisfs("lock", self.path)
        assert ended.returncode == 0, ended


def prepare(machine: Machine) -> None:
    """Make the directories that are there to stay."""
    for directory in (STORE, _SCRATCHES):
        machine.outside(directory).mkdir(parents=True)


def seal(machine: Machine, name: str, more: Mapping[str, bytes] | None = None) -> Secret:
    """Make a layer with a secret, and with `more` files of these contents."""
    made = Secret(machine, name, secrets.token_hex(24), secrets.token_bytes(32))
    made.key_file.touch(0o600)
    made.key_file.write_bytes(made.key)
    tree, image = machine.memory / f"{name}.tree", machine.memory / f"{name}.erofs"
    for path, content in {"secret": f"{made.canary}\n".encode(), **(more or {})}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    layers.make_image(tree, image)
    layers.seal(image, machine.outside(made.path), RawKey(made.key))
    subprocess.run(["rm", "-r", tree, image], check=True)
    SEALED.add(key_id(machine.outside(made.path)))
    return made


@contextlib.contextmanager
def unlocked(machine: Machine, name: str) -> Iterator[Secret]:
    """A layer that engines can use, until it is locked again."""
    made = seal(machine, name, {"large": secrets.token_bytes(20 << 20)})
    made.unlock()
    try:
        yield made
    finally:
        made.lock()
