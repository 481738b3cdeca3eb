"""What `cisfs mount` refuses to do with a sealed layer: one line, an exit code, and no trace."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.harness import layers, linux
from tests.mount.harness.layers import Material, flip
from tests.mount.harness.sealed import SealedLab, lab_in

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """One layer for all tests of the module."""
    base = tmp_path_factory.mktemp("material")
    layers.plain_tree(base / "tree")
    return Material.make(base, base / "tree")


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    with lab_in(tmp_path, material) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    """A lab whose layer may be damaged."""
    with lab_in(tmp_path, material, copy=True) as made:
        made.damaged = True
        yield made


def test_mount_points_that_will_not_do(lab: SealedLab) -> None:
    full, file = lab.base / "full", lab.base / "file"
    full.mkdir()
    (full / "x").touch()
    file.touch()
    lab.mount()
    for place, word in [
        (full, "not empty"),
        (file, "not a directory"),
        (lab.base / "missing", "does not exist"),
        (lab.mountpoint, "already has"),
        (lab.base, "inside"),
    ]:
        code, said = lab.refused(*lab.mount_words(at=place))
        assert code == 17
        assert word in said
    assert linux.mounts_below(lab.base) == [(lab.mountpoint, "erofs")]


def test_keys_that_do_not_open_it(lab: SealedLab) -> None:
    wrong = lab.base / "wrong"
    wrong.touch(0o600)
    wrong.write_bytes(bytes(32))
    assert lab.refused("mount", lab.layer, lab.mountpoint, "--key-file", wrong)[0] == 12
    wrong.write_bytes(b"a passphrase\n")
    assert lab.refused("mount", lab.layer, lab.mountpoint, "--passphrase-file", wrong)[0] == 12
    assert lab.refused("mount", lab.layer, lab.mountpoint)[0] == 14
    assert not lab.is_mounted


def cut(size: int) -> Callable[[Path], None]:
    return lambda layer: os.truncate(layer, size)


def turn(offset: int) -> Callable[[Path], None]:
    return lambda layer: flip(layer, offset)


def append(layer: Path) -> None:
    with layer.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("damage", "code", "word"),
    [
        (turn(0), 10, "not a sealed layer"),
        (turn(8), 13, "upgrade"),
        (turn(10), 11, "appended"),
        (turn(12), 11, "reserved"),
        (turn(16), 12, "wrong key"),  # the layer id, which the slots belong to
        (turn(48), 16, "altered"),  # the root
        (turn(2000), 11, "reserved"),
        (turn(4064), 16, "altered"),
        (turn(4096), 11, "key slots"),
        (turn(4200), 11, "key slots"),
        (turn(70_000), 11, "reserved area"),
        (cut(0), 10, "not a sealed layer"),
        (cut(100), 11, "truncated"),
        (cut(5000), 11, "truncated"),
        (cut(140_000), 11, "cut off"),
        (append, 11, "appended"),
        (lambda layer: layer.write_bytes(os.urandom(200_000)), 10, "not a sealed layer"),
        (Path.unlink, 10, "No such file"),
    ],
)
def test_layers_that_are_not_as_they_should_be(
    own: SealedLab, damage: Callable[[Path], None], code: int, word: str
) -> None:
    damage(own.layer)
    got, said = own.refused(*own.mount_words())
    assert got == code
    assert word in said
    assert code == 12 or str(own.layer) in said
    assert not own.is_mounted
    own.layer.touch()


def test_what_is_no_layer_at_all(lab: SealedLab) -> None:
    directory = lab.base / "directory.cis"
    directory.mkdir()
    fifo = lab.base / "fifo.cis"
    os.mkfifo(fifo)
    for path in (directory, fifo, Path("/dev/null"), lab.key):
        assert lab.refused("mount", path, lab.mountpoint, *lab.with_key)[0] == 10


@pytest.mark.parametrize("options", [[], ["--loop-device"]])
def test_an_image_that_is_no_file_system(lab: SealedLab, options: list[str]) -> None:
    image = lab.base / "noise"
    image.write_bytes(os.urandom(40 * 4096))
    lab.layer.unlink()
    layers.seal(image, lab.layer, lab.material.credential)
    lab.damaged = True
    code, said = lab.refused(*lab.mount_words(*options))
    assert code == 17
    assert str(lab.layer) in said
    assert not lab.is_mounted


def test_a_layer_that_is_being_changed(lab: SealedLab) -> None:
    with lab.layer.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lab.refused(*lab.mount_words())[0] == 15


@pytest.mark.parametrize(
    "options",
    [["--workers", "0"], ["--workers", "257"], ["--workers", "x"], ["--worker-timeout", "0"]],
)
def test_options_that_make_no_sense(lab: SealedLab, options: list[str]) -> None:
    ended = lab.cisfs(*lab.mount_words(*options))
    assert ended.returncode == 2
    assert options[0] in ended.stderr


def test_without_the_right_to_mount(lab: SealedLab) -> None:
    """Root in a container, as a rule: what the kernel refused is said, not that somebody died."""
    words = [*lab.program, *map(str, lab.mount_words())]
    ended = lab.run(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *words])
    assert ended.returncode in (1, 17)
    assert "not permitted" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_other_mounts_are_none_of_our_business(lab: SealedLab) -> None:
    lab.mount()
    plain = lab.base / "plain"
    plain.mkdir()
    lab.run(["mount", "-t", "erofs", "-o", "loop,ro", str(lab.material.image), str(plain)])
    try:
        code, said = lab.refused("umount", plain)
        assert code == 17
        assert "not one of cisfs" in said
        assert linux.Mounted(plain, "erofs") in linux.mounts_below(lab.base)
    finally:
        linux.umount(plain)


# Puts another image in the layer's place just before the kernel is told to mount.
_REPLACED = """
import os, sys
from cisfs.mount import erofs
evil, honest = sys.argv.pop(1), erofs._show_image
def show_and_be_robbed(plan):
    shown = honest(plan)
    os.rename(evil, plan.layer)
    return shown
erofs._show_image = show_and_be_robbed
from cisfs.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("options", [[], ["--loop-device"]])
def test_an_image_that_takes_the_layers_place_is_never_mounted(
    own: SealedLab, options: list[str]
) -> None:
    """Whoever can write to the layer's directory can rename, at any moment, what has no key."""
    tree, evil = own.base / "evil", own.base / "evil.erofs"
    tree.mkdir()
    (tree / "evil").write_text("set-uid")
    layers.make_image(tree, evil)
    words = [sys.executable, "-c", _REPLACED, str(evil), *map(str, own.mount_words(*options))]
    ended = own.run(words)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not evil.exists()
    assert {path.name for path in own.mountpoint.iterdir()} == {
        path.name for path in own.tree.iterdir()
    }
