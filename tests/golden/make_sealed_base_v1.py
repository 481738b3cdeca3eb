"""Made the golden layer tests/golden/sealed-base-v1/layer.cis, once; kept to show how.

It is one that is bound to the layers below it.  A golden layer is never made again.

    python -m tests.golden.make_sealed_base_v1 DIRECTORY      writes layer.cis and expected.json
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from cisfs.format.sealed import base_of
from cisfs.layer.sealing import StoredImage, seal_image
from tests.golden.make_sealed_v1 import KEY

BELOW = [f"sha256:{hashlib.sha256(name).hexdigest()}" for name in (b"lowest", b"middle")]
UNIT = 4096


def main(target: Path) -> None:
    """Write the layer and what is in it."""
    layer = target / "layer.cis"
    if layer.exists():
        sys.exit(f"{layer} is there already: a golden layer is never made again")
    content = hashlib.shake_256(b"an image").digest(3 * UNIT)
    fd = os.memfd_create("image")
    os.write(fd, content)
    identity = seal_image(
        StoredImage(fd, len(content)), layer, KEY, unit_size=UNIT, base=base_of(BELOW)
    )
    expected = {
        "identity": identity,
        "below": BELOW,
        "base": base_of(BELOW).hex(),
        "image sha256": hashlib.sha256(content).hexdigest(),
    }
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
