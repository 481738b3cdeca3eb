"""Made the golden layer tests/golden/sealed-v1/layer.cis, once; kept to show how.

A golden layer is never made again: it stands for the layers that users have.  A change of the
format gets a new script, a new directory and a new version.  Takes mkfs.erofs.

    python -m tests.golden.make_sealed_v1 DIRECTORY      writes layer.cis and expected.json there
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, SLOTS_OFFSET, SLOTS_SIZE
from cisfs.format.slotarea import SlotText
from cisfs.keys import slots
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.layer.sealing import StoredImage, seal_image

KEY = RawKey(bytes(range(50, 82)))
PASSPHRASE = Passphrase(b"golden passphrase, not a secret")
UUID = "c15f5000-0000-4000-8000-000000000001"
UNIT = 16384


def main(target: Path) -> None:
    """Write the layer and what is in it."""
    layer = target / "layer.cis"
    if layer.exists():
        sys.exit(f"{layer} is there already: a golden layer is never made again")
    with tempfile.TemporaryDirectory() as work:
        tree, image = Path(work, "tree"), Path(work, "image")
        tree.mkdir()
        fill(tree)
        subprocess.run(
            ["mkfs.erofs", "-zlz4", "--all-root", "-T1700000000", f"-U{UUID}", image, tree],
            check=True,
        )
        content = image.read_bytes()
        with image.open("rb") as file:
            identity = seal_image(
                StoredImage(file.fileno(), len(content)), layer, KEY, unit_size=UNIT
            )
        files = {
            str(each.relative_to(tree)): hashlib.sha256(each.read_bytes()).hexdigest()
            for each in sorted(tree.rglob("*"))
            if each.is_file() and not each.is_symlink()
        }
    add_passphrase(layer)
    expected = {
        "identity": identity,
        "image size": len(content),
        "image sha256": hashlib.sha256(content).hexdigest(),
        "files": files,
    }
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "ascii")


def fill(tree: Path) -> None:
    """Put one of each kind into a directory."""
    for size in (0, 1, 4095, 4096, 4097, 16384, 300_001):
        (tree / f"size-{size}").write_bytes(bytes(at * 31 % 251 for at in range(size)))
    noise = hashlib.shake_256(b"noise").digest(150_000)
    (tree / "noise").write_bytes(noise)
    nested = tree / "nested" / "deep"
    nested.mkdir(parents=True)
    (nested / "executable").write_bytes(b"#!/bin/sh\n")
    (nested / "executable").chmod(0o755)
    (nested / "linked").write_bytes(b"two names")
    os.link(nested / "linked", tree / "second name")
    (tree / "link").symlink_to("nested/deep")
    os.mkfifo(nested / "fifo")
    os.setxattr(nested / "linked", "user.colour", b"green")


def add_passphrase(layer: Path) -> None:
    """Add a slot for the passphrase, as cheap as Argon2id gets: the test opens it in every run."""
    slots.ITERATIONS, slots.LANES, slots.MEMORY_KIB = 1, 1, 64
    with layer.open("r+b") as file:
        layer_id = LayerHeader.parse(file.read(HEADER_SIZE)).layer_id
        held = SlotText.parse(file.read(SLOTS_SIZE)).slots
        layer_key = slots.open_slots(held, KEY, layer_id)
        file.seek(SLOTS_OFFSET)
        file.write(
            SlotText(
                (
                    *held,
                    slots.new_slot(layer_key, PASSPHRASE, layer_id),
                )
            ).pack()
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
