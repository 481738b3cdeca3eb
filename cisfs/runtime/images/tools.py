"""skopeo and umoci: finding them, running them, and their errors in one line.

Does not know what is done with what they fetch and unpack.  Any number may run at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.registry.reference import is_loopback

_POLICY = Path("/etc/containers/policy.json")
# What both write before the message proper: a time and a level, or logrus's key=value words.
_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_LINE_LIMIT = 500  # characters


def copy(source: str, layout: Path, name: str) -> None:
    """Copy an image into an OCI layout.  Raises EngineError."""
    # Layers are unpacked at once and then thrown away: compressing them would be for nothing.  But
    # those of docker-archive: and docker-daemon: skopeo 1.9 then leaves as they are, and calls them
    # compressed all the same.
    as_is = ["--dest-oci-accept-uncompressed-layers"] if source.startswith("oci:") else []
    words = ["copy", "--quiet", *as_is, *_reached(source, "src-")]
    _skopeo(words, [source, f"oci:{layout}:{name}"], f"cannot fetch image {source}")


def fetch(source: str, layout: Path, name: str, temporary: Path) -> None:
    """Copy an image into an OCI layout as it is; all that is written on the way is in `temporary`.

    Raises EngineError.
    """
    words = ["copy", "--quiet", "--dest-oci-accept-uncompressed-layers", *_reached(source, "src-")]
    failure = f"cannot fetch image {source}"
    _skopeo(words, [source, f"oci:{layout}:{name}"], failure, {"TMPDIR": str(temporary)})


def config(source: str) -> bytes:
    """Return an image's configuration.  Raises EngineError."""
    words = ["inspect", "--no-tags", "--config", "--raw", *_reached(source)]
    return _skopeo(words, [source], f"no image {source}").encode()


def deliver(source: str, target: str, *, plain: bool, ca_file: Path | None = None) -> None:
    """Copy an image to an engine; `plain`: its registry needs no TLS.

    `ca_file` has authorities to trust besides the system's, PEM.  Raises EngineError, OSError.
    """
    words = ["copy", "--quiet", *_reached(source, "src-", plain=plain), *_reached(target, "dest-")]
    failure = f"cannot give {source} to {target.partition(':')[0]}"
    if ca_file is None:
        _skopeo(words, [source, target], failure)
        return
    with tempfile.TemporaryDirectory(prefix="cisfs-trust-") as directory:
        Path(directory, "ca.crt").symlink_to(ca_file.absolute())
        _skopeo([*words, f"--src-cert-dir={directory}"], [source, target], failure)


def digest(source: str) -> str:
    """Return the digest of an image's manifest, where it is.  Raises EngineError."""
    words = ["inspect", "--no-tags", "--format", "{{.Digest}}", *_reached(source)]
    return _skopeo(words, [source], f"no image {source}").strip()


def unpack(layout: Path, name: str, rootfs: Path) -> None:
    """Unpack an image of a layout, whiteouts applied, owners kept.  Raises EngineError."""
    words = ["raw", "unpack", "--keep-dirlinks", "--image", f"{layout}:{name}", str(rootfs)]
    _run(_program("umoci"), words, "cannot unpack the image")


def _reached(name: str, side: str = "", *, plain: bool = False) -> list[str]:
    """Return skopeo's options to find where an image is: as cisfs itself and docker's tools do.

    A registry on the loopback needs no TLS, and docker is where DOCKER_HOST says.
    """
    transport, _, rest = name.partition(":")
    registry, slash, _ = rest.removeprefix("//").partition("/")
    if transport == "docker" and (plain or (slash and is_loopback(registry))):
        return [f"--{side}tls-verify=false"]
    host = os.environ.get("DOCKER_HOST")
    if transport != "docker-daemon" or not host:
        return []
    if os.environ.get("DOCKER_TLS_VERIFY"):
        certificates = os.environ.get("DOCKER_CERT_PATH") or str(Path("~/.docker").expanduser())
        return [f"--{side}daemon-host={host}", f"--{side}cert-dir={certificates}"]
    # skopeo takes tcp: for TLS, docker does not.
    return [f"--{side}daemon-host={re.sub('^tcp:', 'http:', host)}"]


def _skopeo(
    command: Sequence[str],
    names: Sequence[str],
    failure: str,
    variables: Mapping[str, str] | None = None,
) -> str:
    # Without the package of common files there is no policy, which skopeo takes for an error.
    policy = [] if _POLICY.exists() else ["--insecure-policy"]
    return _run(_program("skopeo"), [*policy, *command, *names], failure, variables)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise EngineError(
            f"{name} is not installed, which images need; "
            f"on Debian and Ubuntu: apt install {name} (or use --rootfs)"
        )
    return found


def _run(
    program: str, words: Sequence[str], failure: str, variables: Mapping[str, str] | None = None
) -> str:
    done = subprocess.run(
        [program, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, **(variables or {})},
    )
    if done.returncode:
        raise EngineError(f"{failure}: {in_words(done.stderr.decode(errors='replace'))}")
    return done.stdout.decode(errors="replace")


def in_words(complaint: str) -> str:
    """Return the last message of what such a program wrote, without time and level."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    if not lines:
        return "it failed and did not say why"
    found = _MESSAGE.search(lines[-1])
    text = found[1].replace('\\"', '"') if found else lines[-1]
    return " ".join(text.split())[:_LINE_LIMIT]
