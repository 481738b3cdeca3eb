"""Images for engines, made of what is installed: busybox, and a Debian of a few packages.

An image is a docker-archive: the one form that docker, ctr, podman and skopeo all read.  The same
content gives the same bytes.  Knows no engine.  Stateless; safe anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BUSYBOX = "cisfs.test/busybox:1"
DEBIAN = "cisfs.test/debian:1"
PAUSE = "cisfs.test/pause:1"  # what a pod is kept by
PUBLIC = "what everybody may know\n"  # /etc/public in every image

_PACKAGES = (
    *("bash", "coreutils", "dash", "findutils", "grep", "libacl1", "libattr1", "libc-bin", "libc6"),
    *("libcrypt1", "libgmp10", "libpcre2-8-0", "libselinux1", "libtinfo6", "perl-base", "sed"),
)
_MERGED = ("bin", "lib", "lib64", "sbin")  # symlinks to directories of the same name in /usr
_NEEDLESS = ("/usr/share/", "/usr/lib/x86_64-linux-gnu/gconv/")
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n",
    "etc/group": "root:x:0:\napp:x:2345:\n",
    "etc/public": PUBLIC,
}


def busybox(archive: Path) -> None:
    """Make the image of busybox-static with all its applets."""
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, check=True, text=True)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_skeleton(tar, ["bin"])
        _add_file(tar, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for name in sorted(set(applets.stdout.split()) - {"busybox"}):
            _add_link(tar, f"bin/{name}", "busybox")
    _write_archive(archive, BUSYBOX, content.getvalue())


def pause(archive: Path) -> None:
    """Make the image of a container that does nothing, for as long as it is let."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_skeleton(tar, ["bin"])
        _add_file(tar, "bin/sleep", Path("/bin/busybox").read_bytes(), 0o755)
    _write_archive(archive, PAUSE, content.getvalue(), ["/bin/sleep", "1000000"])


def debian(archive: Path) -> None:
    """Make an image of the files of some essential packages, as they are installed here."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_skeleton(tar, ["usr", *(f"usr/{name}" for name in _MERGED)])
        for name in _MERGED:
            _add_link(tar, name, f"usr/{name}")
        for path in _installed():
            _add_installed(tar, path)
    _write_archive(archive, DEBIAN, content.getvalue())


def _installed() -> Iterable[Path]:
    """The files and symlinks of the packages, below the directories where they really are."""
    listed = subprocess.run(["dpkg", "-L", *_PACKAGES], capture_output=True, check=True, text=True)
    paths = {Path(line) for line in listed.stdout.splitlines() if line.startswith("/")}
    real = {path.parent.resolve() / path.name for path in paths if not path.is_dir()}
    return sorted(path for path in real if not str(path).startswith(_NEEDLESS))


def _add_installed(tar: tarfile.TarFile, path: Path) -> None:
    name = str(path).lstrip("/")
    if name in _ACCOUNTS or not os.path.lexists(path):
        return
    if path.is_symlink():
        _add_link(tar, name, os.readlink(path))
    else:
        _add_file(tar, name, path.read_bytes(), path.stat().st_mode & 0o7777)


def _add_skeleton(tar: tarfile.TarFile, more: Iterable[str]) -> None:
    for name in ("dev", "etc", "home", "home/app", "proc", "root", "sys", "tmp", "var", *more):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(entry)
    for name, text in _ACCOUNTS.items():
        _add_file(tar, name, text.encode(), 0o644)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _write_archive(
    archive: Path, name: str, layer: bytes, command: Sequence[str] = ("/bin/sh",)
) -> None:
    """Write an image of one layer (moby, image/spec/v1.2.md)."""
    config = json.dumps(_config(layer, command), sort_keys=True).encode()
    files = {f"{hashlib.sha256(config).hexdigest()}.json": config, "layer.tar": layer}
    manifest = [{"Config": next(iter(files)), "RepoTags": [name], "Layers": ["layer.tar"]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            _add_file(tar, path, content, 0o644)


def _config(layer: bytes, command: Sequence[str]) -> Mapping[str, object]:
    return {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": list(command)},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
        },
    }
