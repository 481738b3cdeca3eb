"""An application's files and the images that carry them: plain, encrypted as ocicrypt does, sealed.

All are on busybox.  /app of each has a tree and a large file, and `/app/start`, which reads 5 MB of
them, here and there, and prints one line: the sum of what it read.  Knows nothing of what is
measured.  One thread.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tree
from benchmarks.link import REGISTRY
from benchmarks.programs import cisfs
from tests.engines import images
from tests.engines.machine import Machine

PLAIN, ENCRYPTED, SEALED = (f"{REGISTRY}/bench/{kind}:1" for kind in ("plain", "jwe", "sealed"))
START = ("sh", "/app/start")
SKOPEO = ("skopeo", "--insecure-policy", "copy", "--quiet")
PATIENCE = 900.0  # seconds; whatever is made may be large

_SEED = 5
_MOST = 256 << 10  # bytes of a file that is read whole
_SMALL = 4_000_000  # bytes of such files, the rest of
_READ = 5_000_000  # bytes is from the middle of the large file
_BLOCK = 1000  # bytes

# busybox's dd would count in blocks that were read short otherwise.
_SCRIPT = """#!/bin/sh
cd /app
{{ xargs cat <list; dd if=big bs={block} skip={skip} count={count} 2>/dev/null; }} | md5sum
"""


@dataclass(frozen=True)
class Published:
    """What was made of the files; paths are those on the machine, and outside as well."""

    layout: Path  # with the images "base" and "plain"
    layer: Path  # the sealed one
    private: Path  # the key that opens what is encrypted, and its public half
    public: Path
    line: str  # that /app/start prints
    files: str  # in words
    plain_blob: str  # a digest
    plain_size: int  # bytes of that blob

    @property
    def sealed_size(self) -> int:
        """Bytes of the sealed layer."""
        return self.layer.stat().st_size


def publish(machine: Machine, size: int, files: int, content: tree.Content) -> Published:
    """Make so many bytes in all, so many of the files in a tree, and push the three images."""
    made = machine.memory / "made"
    line, words = _application(made / "root/app", size, files, content)
    print(f"application: {words}", flush=True)
    private, public = made / "private.pem", made / "public.pem"
    rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]
    machine.must("openssl", "genpkey", *rsa, "-out", private)
    machine.must("openssl", "pkey", "-in", private, "-pubout", "-out", public)
    private.chmod(0o600)
    layout, layer = made / "layout", machine.room / "private.cis"
    images.busybox(made / "busybox.tar")
    _do(machine, *SKOPEO, f"docker-archive:{made}/busybox.tar", f"oci:{layout}:base")
    onto = ["--image", f"{layout}:base", "--tag", "plain"]
    _do(machine, "umoci", "insert", *onto, made / "root/app", "/app")
    _do(machine, *SKOPEO, f"oci:{layout}:plain", f"docker://{PLAIN}")
    encrypted = ["--encryption-key", f"jwe:{public}", "--encrypt-layer", "-1"]
    _do(machine, *SKOPEO, *encrypted, f"oci:{layout}:plain", f"docker://{ENCRYPTED}")
    _do(machine, *cisfs("seal", "--quiet", "-r", str(public), str(made / "root"), "-o", str(layer)))
    machine.must("rm", "-r", made / "root")
    _do(machine, *push_command(SEALED, layout, layer))
    plain = json.loads(machine.must("skopeo", "inspect", "--raw", f"oci:{layout}:plain"))
    blob = plain["layers"][-1]
    return Published(layout, layer, private, public, line, words, blob["digest"], blob["size"])


def push_command(name: str, layout: Path, layer: Path) -> list[str]:
    """`cisfs push` of the sealed layer on the base."""
    return cisfs("push", "--quiet", name, "--base", f"oci:{layout}:base", "--layer", str(layer))


def _application(root: Path, size: int, files: int, content: tree.Content) -> tuple[str, str]:
    """Make /app; returns what its start will print, and what it is in words."""
    root.mkdir(parents=True)
    made = tree.generate(root / "tree", files, content)
    big = size - made.content >> 20 << 20
    tree.generate_file(root / "big", big, content)
    chosen, summed, small = [], hashlib.md5(usedforsecurity=False), 0
    for path in _shuffled(root / "tree"):
        if small >= _SMALL:
            break
        chosen.append(path.relative_to(root))
        summed.update(path.read_bytes())
        small += path.stat().st_size
    count, skip = (_READ - small) // _BLOCK, big // 2 // _BLOCK
    with (root / "big").open("rb") as file:
        file.seek(skip * _BLOCK)
        summed.update(file.read(count * _BLOCK))
    (root / "list").write_text("".join(f"{path}\n" for path in chosen))
    (root / "start").write_text(_SCRIPT.format(block=_BLOCK, skip=skip, count=count))
    words = f"{made}, and one of {big >> 20} MiB; its start reads {len(chosen)} of the files whole"
    return f"{summed.hexdigest()}  -", words


def _shuffled(root: Path) -> Iterator[Path]:
    """Yield small files of directories that are chosen at random, each one's in their order."""
    directories = sorted(path for path in (root, *root.rglob("*")) if path.is_dir())
    random.Random(_SEED).shuffle(directories)
    for directory in directories:
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MOST:
                yield path


def _do(machine: Machine, *words: str | Path) -> None:
    machine.must(*words, patience=PATIENCE)
