"""`cisfs run IMAGE` with the embedded engine: real skopeo, umoci and runc, as root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.system import oci
from tests.system.test_run import (
    PATIENCE,
    Options,
    Site,
    failure,
    poll,
    processes,
    started,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CONFIG = {
    "Env": ["PATH=/bin", "FROM_IMAGE=1", "BOTH=image"],
    "Entrypoint": ["/bin/echo", "entry"],
    "Cmd": ["cmd"],
    "WorkingDir": "/home/app",
    "User": "app",
    "ExposedPorts": {"80/tcp": {}},
}


class Images(Site):
    """A site with a store of its own, and a layout to take images from."""

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def layout(self) -> Path:
        return self.directory / "layout"

    def image(self, tag: str, *trees: oci.Tree, config: dict[str, Any] | None = None) -> str:
        oci.write_layout(self.layout, tag, trees or [oci.base()], config)
        return f"oci:{self.layout}:{tag}"

    def words(self, options: Options, command: Sequence[str]) -> list[str]:
        words = super().words(options, command)
        at = words.index("--rootfs")
        return [
            *words[:at],
            "--store",
            str(self.store),
            *words[at + 2 : words.index("--")],
            *command,
        ]

    def unpacked(self) -> list[str]:
        """The digests of what is in the store."""
        images = self.store / "images"
        return sorted(path.name for path in images.iterdir() if path.name != "refs")


@pytest.fixture
def images(site: Site) -> Images:
    return Images(site.directory, site.rootfs, site.key, site.marker, site.environment)


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    before = site.traces()
    yield
    assert site.traces() == before


# ---- what an image says, and what the command line says instead


def test_layers_of_an_image_lie_one_over_the_other(images: Images) -> None:
    image = images.image(
        "two",
        oci.base(public="below\n", gone="x", over="below\n"),
        oci.Tree({".wh.gone": "", "over": "above\n"}),
    )
    done = images.run(
        image, "sh", "-c", "cat /public /over; ls /gone; id -u; stat -c %u:%a /home/app"
    )
    assert done.stdout == "below\nabove\n0\n1234:755\n"
    assert "gone: No such file" in done.stderr


def test_the_configuration_is_applied(images: Images) -> None:
    image = images.image("configured", config=CONFIG)
    assert images.run(image).stdout == "entry cmd\n"
    assert images.run(image, "mine").stdout == "entry mine\n"
    script = "id -un; pwd; echo $FROM_IMAGE $BOTH $HOME"
    options: Options = ["--entrypoint", "sh", "-e", "BOTH=mine"]
    assert (
        images.run(image, "-c", script, options=options).stdout
        == "app\n/home/app\n1 mine /home/app\n"
    )
    options = ["--entrypoint", "", "-u", "root", "-w", "/etc"]
    assert images.run(image, "sh", "-c", "id -un; pwd", options=options).stdout == "root\n/etc\n"
    assert "names none" in failure(images.run(image, options=["--entrypoint", ""]))


def test_an_image_names_its_layers_itself(images: Images) -> None:
    vault = images.vault("vault", {"secret": "for the few\n"})
    image = images.image(
        "naming", config={"Env": ["PATH=/bin", f"CISFS_LAYERS={vault}", "CISFS_SCRATCH=memory"]}
    )
    assert (
        images.run(image, "sh", "-c", "cat /secret; env | grep -c CISFS").stdout
        == "for the few\n0\n"
    )
    other = images.vault("other", {"secret": "another\n"})
    assert images.run(image, "cat", "/secret", options=["--layer", other]).stdout == "another\n"
    empty = images.run(image, "cat", "/secret", options=["-e", "CISFS_LAYERS="])
    assert "No such file" in empty.stderr
    relative = images.image("relative", config={"Env": ["CISFS_LAYERS=x/y"]})
    assert "absolute path" in failure(images.run(relative, "true"))
    missing = images.image("missing", config={"Env": ["CISFS_LAYERS=/no/such/layer"]})
    assert "/no/such/layer" in failure(images.run(missing, "true"))


def test_no_decrypted_byte_is_in_the_store(images: Images) -> None:
    vault = images.vault("vault", {"secret": "canary-of-the-layer\n"})
    image = images.image("plain")
    done = images.run(
        image, "sh", "-c", "cat /secret; cp /secret /kept", options=["--layer", vault]
    )
    assert done.stdout == "canary-of-the-layer\n"
    found = subprocess.run(
        ["grep", "-rl", "canary", images.store], capture_output=True, check=False, timeout=PATIENCE
    )
    assert found.stdout == b""


# ---- where images come from


def test_archives_of_docker(images: Images) -> None:
    image = images.image("one", oci.base(public="archived\n"))
    archive = images.directory / "a.tar"
    words = ["skopeo", "copy", "--quiet", image, f"docker-archive:{archive}:name:tag"]
    subprocess.run(words, check=True, timeout=PATIENCE, capture_output=True)
    for name in (f"docker-archive:{archive}", f"docker-archive:{archive}:name:tag"):
        assert images.run(name, "cat", "/public").stdout == "archived\n"
    assert len(images.unpacked()) == 1
    missing = failure(images.run(f"docker-archive:{archive}:other:tag", "true"))
    assert "other:tag" in missing


def test_an_unpacked_image_is_used_again(images: Images) -> None:
    image = images.image("kept", oci.base(public="first\n"))
    assert images.run(image, "cat", "/public").stdout == "first\n"
    (digest,) = images.unpacked()
    before = (images.store / "images" / digest).stat()
    assert images.run(image, "cat", "/public").stdout == "first\n"
    other = images.image("same", oci.base(public="first\n"))
    assert images.run(other, "cat", "/public").stdout == "first\n"
    assert images.unpacked() == [digest]
    assert (images.store / "images" / digest).stat() == before


def test_an_image_built_anew_is_seen(images: Images) -> None:
    image = images.image("moving", oci.base(public="old\n"))
    assert images.run(image, "cat", "/public").stdout == "old\n"
    images.image("moving", oci.base(public="new\n"))
    assert images.run(image, "cat", "/public", options=["--pull", "never"]).stdout == "old\n"
    assert images.run(image, "cat", "/public").stdout == "new\n"
    assert images.run(image, "cat", "/public", options=["--pull", "always"]).stdout == "new\n"
    assert len(images.unpacked()) == 2


def test_containers_do_not_change_an_image(images: Images) -> None:
    image = images.image("fixed", oci.base(public="as it was\n"))
    images.run(image, "sh", "-c", "echo x > /public; rm -r /home; touch /new")
    assert (
        images.run(image, "sh", "-c", "cat /public; ls -d /home /new").stdout
        == "as it was\n/home\n"
    )


def test_eight_fetches_at_once(images: Images) -> None:
    names = [images.image(f"t{number % 2}", oci.base(public="x\n")) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda name: images.run(name, "cat", "/public"), names))
    assert "".join(one.stderr for one in ended) == ""
    assert [(one.returncode, one.stdout) for one in ended] == [(0, "x\n")] * 8
    assert len(images.unpacked()) == 1


def is_copying(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[0].endswith(b"skopeo") and b"copy" in words
    return False


def test_a_fetch_that_is_killed_leaves_no_image(images: Images) -> None:
    """skopeo is stood in the way of by a pipe that nobody writes to."""
    image = images.image("whole", oci.base(public="whole\n"))
    blob = max((images.layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = blob.read_bytes()
    blob.unlink()
    os.mkfifo(blob)
    with started(images.words([], [image, "true"]), images.environment) as process:
        poll(lambda: any(map(is_copying, processes(images.marker))), "skopeo to begin")
        process.kill()
        process.wait(PATIENCE)
        for pid in processes(images.marker):  # skopeo, which waits for the pipe
            os.kill(pid, signal.SIGKILL)
        poll(lambda: not list(processes(images.marker)), "skopeo to end")
    assert [name for name in images.unpacked() if name.startswith("sha256:")] == []
    blob.unlink()
    blob.write_bytes(content)
    assert images.run(image, "cat", "/public").stdout == "whole\n"
    assert len(images.unpacked()) == 1  # and what the killed one left is gone


# ---- what cannot be


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("oci:", "oci:PATH"),
        ("oci:/no/such/layout:x", "no image oci:/no/such/layout:x"),
        ("docker-archive:/no/such", "no image docker-archive:/no/such"),
        ("docker://127.0.0.1:1/x", "no image docker://127.0.0.1:1/x"),
        ("docker://UPPER", "must be lowercase"),
        ("docker-daemon:", "is not a name"),
        ("docker://x/y:z:w", "is not a name"),
    ],
)
def test_images_there_are_not(images: Images, image: str, words: str) -> None:
    assert words in failure(images.run(image, "true"))
    assert not (images.store / "images").exists() or images.unpacked() == []


def test_an_image_that_was_never_fetched(images: Images) -> None:
    image = images.image("a")
    assert "--pull never" in failure(images.run(image, "true", options=["--pull", "never"]))


def test_an_image_for_another_machine(images: Images) -> None:
    oci.write_layout(images.layout, "other", [oci.base()], architecture="s390x")
    said = failure(images.run(f"oci:{images.layout}:other", "true"))
    assert "linux/s390x" in said
    assert f"linux/{oci.ARCHITECTURE}" in said


@pytest.mark.parametrize("damage", ["config", "layer"])
def test_a_damaged_image(images: Images, damage: str) -> None:
    image = images.image("bad")
    manifest = json.loads((images.layout / "index.json").read_text())["manifests"][0]
    blobs = images.layout / "blobs/sha256"
    entry = json.loads((blobs / manifest["digest"].removeprefix("sha256:")).read_text())
    wanted = entry["config"] if damage == "config" else entry["layers"][0]
    blob = blobs / wanted["digest"].removeprefix("sha256:")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    failure(images.run(image, "true"))
    assert images.unpacked() == []


@pytest.mark.parametrize("program", ["skopeo", "umoci"])
def test_a_machine_without_the_tools(images: Images, program: str) -> None:
    path = images.directory / "bin"
    path.mkdir()
    for name in {"skopeo", "umoci", "runc"} - {program}:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        (path / name).symlink_to(found)
    images.environment["PATH"] = str(path)
    said = failure(images.run(images.image("x"), "true"))
    assert f"apt install {program}" in said
    assert images.unpacked() == [] if (images.store / "images").exists() else True
