"""`cisfs seal` of images: what is shown afterwards is what the whole image showed.

The judges are skopeo and umoci, which make one tree of a whole image, and the kernel's overlayfs,
which lays the sealed layer over the public ones.  Needs root, runc and FUSE.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.format.sealed import LayerHeader, check_base
from cisfs.registry.layout import Layout
from cisfs.runtime.listing import find_running
from cisfs.runtime.restored import ATTRIBUTE
from tests.system import oci
from tests.system.test_run import Options, Site, failure
from tests.system.test_run_images import Images

pytestmark = [pytest.mark.root, pytest.mark.fuse]

# Paths, kinds, modes, owners, links, targets and contents of all but what the engine mounts.
SHOW = (
    "cd / && find . -xdev -path ./proc -prune -o -path ./dev -prune -o -path ./sys -prune -o "
    "-path ./etc/resolv.conf -prune -o -path ./etc/hosts -prune -o -path ./etc/hostname -prune "
    "-o ! -type d -exec stat -c '%n %F %a %u %g %h %s' {} + "
    "-o -type d ! -path . -exec stat -c '%n %F %a %u %g' {} + | sort; "
    "find /data /etc -type f | sort | xargs md5sum"
)


@pytest.fixture
def images(site: Site) -> Iterator[Images]:
    made = Images(site.directory, site.rootfs, site.key, site.marker, site.environment)
    before = site.traces()
    yield made
    assert site.traces() == before


def changing(generator: random.Random) -> oci.Tree:
    """A layer that adds, changes and deletes, below /data."""
    files: dict[str, str] = {}
    for _ in range(8):
        path = "/".join(generator.choices("abc", k=generator.randint(1, 3)))
        name = f"data/{path}"
        parent, _, base = name.rpartition("/")
        kind = generator.random()
        if kind < 0.2:
            name = f"{parent}/.wh.{base}"
        elif kind < 0.3:
            name = f"{name}/.wh..wh..opq"
        files.setdefault(name, generator.choice(["", "one", "another"]))
    # What lies below a file of the same layer would make no sense.
    plain = {name for name in files if "/.wh." not in name}
    sound = {
        name: text
        for name, text in files.items()
        if not any(str(each) in plain for each in Path(name).parents)
    }
    above = {f"{each}/": "" for name in sound for each in Path(name).parents if str(each) != "."}
    return oci.Tree(dict(sorted({**sound, **above}.items())))


def key_of(images: Images) -> Path:
    """A file with a key."""
    path = images.directory / "layer.key"
    path.touch(0o600)
    path.write_bytes(bytes(range(32)))
    return path


def seal(images: Images, source: str, *options: str | Path) -> tuple[Path, str]:
    """Seal; returns the layer, and the public image's name."""
    layer = images.directory / "app.cis"
    layer.unlink(missing_ok=True)
    words: Options = ["seal", "--key-file", key_of(images), source, "-o", layer, "--force"]
    done = images.cisfs(*words, "--json", *options)
    assert done.returncode == 0, done
    return layer, str(json.loads(done.stdout)["public"])


def held(images: Images) -> bytes:
    """All that is in the public layout, however it is referred to."""
    found = (images.directory / "app.public").rglob("*")
    return b"".join(path.read_bytes() for path in found if path.is_file())


def shown(images: Images, image: str, *options: str | Path) -> str:
    key: Options = ["--key-file", key_of(images)] if options else []
    done = images.run(image, "sh", "-c", SHOW, options=[*options, *key])
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize("seed", range(6))
def test_divided_images_show_what_they_did_whole(images: Images, seed: int) -> None:
    generator = random.Random(seed)
    start = oci.base(**{"data/a/a": "below", "data/b": "below", "data/c/c/c": "below"})
    trees = [start, *(changing(generator) for _ in range(4))]
    whole = images.image("whole", *trees)
    wanted = shown(images, whole)
    for top in (1, 3):
        layer, public = seal(images, whole, "--top", str(top))
        assert shown(images, public, "--layer", layer) == wanted


# Layers that have something in /tmp, and do not say how /tmp is.
HIDING = {
    "opaque": [{"tmp/.wh..wh..opq": "", "tmp/f": "1"}],
    "deleted, and there again": [{".wh.tmp": "", "tmp/f": "1"}],
    "deleted, and there again in the next": [{".wh.tmp": ""}, {"tmp/f": "1"}],
    "opaque over another": [{"tmp/f": "1"}, {"tmp/.wh..wh..opq": "", "tmp/g": "2"}],
    "opaque below another": [{"tmp/.wh..wh..opq": "", "tmp/f": "1"}, {"tmp/g": "2"}],
    "deleted twice": [{"tmp/f": "1"}, {".wh.tmp": "", "tmp/g": "2"}],
}


@pytest.mark.parametrize("case", HIDING)
def test_directories_that_no_layer_describes_are_what_they_were_whole(
    images: Images, case: str
) -> None:
    trees = [oci.Tree(each) for each in HIDING[case]]
    whole = images.image("whole", oci.base(**{"tmp/below": "0", "data/": ""}), *trees)
    layer, public = seal(images, whole, "--top", str(len(trees)))
    assert shown(images, public, "--layer", layer) == shown(images, whole)


def test_all_kinds_of_sources_give_the_same(images: Images) -> None:
    top = oci.Tree({"data/.wh.gone": "", "data/new": "secret\n"})
    whole = images.image("whole", oci.base(**{"data/gone": "x", "data/kept": "y"}), top)
    archive = images.directory / "app.tar"
    packed = images.directory / "packed"
    skopeo = ["skopeo", "--insecure-policy", "copy", "--quiet"]
    for target in (f"docker-archive:{archive}:app:1", f"oci:{packed}:app"):
        subprocess.run([*skopeo, whole, target], check=True, capture_output=True)
    wanted = shown(images, whole)
    compressed = images.directory / "app.tar.gz"
    with compressed.open("wb") as file:
        subprocess.run(["gzip", "-c", archive], check=True, stdout=file)
    for source in (
        whole,
        f"oci:{packed}",
        f"docker-archive:{archive}",
        f"docker-archive:{archive}:app:1",
        f"docker-archive:{compressed}",
    ):
        layer, public = seal(images, source, "--top", "1")
        assert shown(images, public, "--layer", layer) == wanted
    lz4 = seal(images, whole, "--top", "1", "--compression", "lz4")
    assert shown(images, lz4[1], "--layer", lz4[0]) == wanted


def test_the_public_image_is_what_was_below(images: Images) -> None:
    trees = [
        oci.base(**{"data/zero": "0"}),
        oci.Tree({"data/one": "1"}),
        oci.Tree({"two": "secret-plans"}),
    ]
    below = images.image("below", *trees[:2])
    whole = images.image("whole", *trees)
    before = Layout.open(images.layout)
    for options in (
        ("--top", "1"),
        ("--all-but", below),
        ("--from-layer", before.manifest(before.find("whole")).layers[2].digest),  # type: ignore[union-attr]
    ):
        layer, public = seal(images, whole, *options)
        assert shown(images, public) == shown(images, below)
        layout = Layout.open(images.directory / "app.public")
        found = layout.manifest(layout.find(None))
        config = json.loads(layout.read(found.config))  # type: ignore[union-attr]
        check_base(LayerHeader.parse(layer.read_bytes()), config["rootfs"]["diff_ids"])
        assert b"secret-plans" not in held(images)
        assert b"secret-plans" in b"".join(
            path.read_bytes() for path in images.layout.rglob("*") if path.is_file()
        )


def test_what_is_sealed_the_second_time_is_public_no_more(images: Images) -> None:
    trees = [oci.base(), oci.Tree({"one": "public-plans"}), oci.Tree({"two": "secret-plans"})]
    whole = images.image("whole", *trees, config={"Env": ["DB_PASSWORD=hunter2"]})
    broken = images.image("broken", *trees, config={"Env": ["DB_PASSWORD=hunter3"]})
    seal(images, whole, "--top", "1")
    assert b"public-plans" in held(images)
    failed = images.cisfs(
        *("seal", "--key-file", key_of(images), broken, "--top", "1", "--max-size", "1"),
        *("-o", images.directory / "b.cis", "--public", f"oci:{images.directory}/app.public:b"),
    )
    assert "more than 1 bytes" in failed.stderr
    layer, public = seal(images, whole, "--top", "2", "--scrub")
    for words in (b"public-plans", b"secret-plans", b"hunter2", b"hunter3"):
        assert words not in held(images)
    options: Options = ["--layer", layer, "--key-file", key_of(images)]
    assert images.run(public, "cat", "/one", "/two", options=options).stdout == (
        "public-planssecret-plans"
    )


def test_a_layer_does_not_run_on_another_base(images: Images) -> None:
    whole = images.image("whole", oci.base(), oci.Tree({"two": "secret"}))
    layer, public = seal(images, whole, "--top", "1")
    options: Options = ["--layer", layer, "--key-file", key_of(images)]
    assert images.run(public, "cat", "/two", options=options).stdout == "secret"
    other = images.image("other", oci.base(other="x"))
    refused = images.run(other, "cat", "/two", options=options)
    assert "was sealed to go on another base" in failure(refused)
    assert refused.stdout == ""


def test_what_was_scrubbed_comes_back_when_it_runs(images: Images) -> None:
    config = {
        "Env": ["PATH=/bin", "DB_PASSWORD=hunter2", "API_TOKEN=abc", "PLAIN=1"],
        "Labels": {"token": "hunter2"},
    }
    whole = images.image("whole", oci.base(), oci.Tree({"two": "2"}), config=config)
    layer = images.directory / "app.cis"
    words: Options = ["seal", "--key-file", key_of(images), whole, "--top", "1", "-o", layer]
    told = images.cisfs(*words)
    assert told.stderr.count("cisfs: warning: stays public: ") == 3
    assert "Env DB_PASSWORD: looks like a secret, by its name; --scrub takes it out" in told.stderr
    assert "hunter2" not in told.stderr + told.stdout
    done = images.cisfs(*words, "--force", "--scrub", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert said["suspects"] == []
    assert [each["name"] for each in said["scrubbed"]] == ["DB_PASSWORD", "API_TOKEN", "token"]
    public = said["public"]
    raw = subprocess.run(
        ["skopeo", "inspect", "--config", "--raw", public],
        capture_output=True,
        check=True,
    )
    assert b"hunter2" not in raw.stdout
    assert b"hunter2" not in held(images), "the image of the first time is gone"
    options: Options = ["--layer", layer, "--key-file", key_of(images)]
    script = "echo $DB_PASSWORD $API_TOKEN $PLAIN"
    ran = images.run(public, "sh", "-c", script, options=[*options, "-e", "API_TOKEN=mine"])
    assert ran.stdout == "hunter2 mine 1\n"
    images.run(public, "sleep", "1000", options=[*options, "-d", "--name", "scrubbed"])
    try:
        root = f"/proc/{find_running('scrubbed').state.init}/root"
        os.setxattr(root, "user.others", b"are seen")
        assert "user.others" in os.listxattr(root)
        assert ATTRIBUTE.decode() not in os.listxattr(root)
        entered = images.cisfs("exec", "-e", "API_TOKEN=mine", "scrubbed", "sh", "-c", script)
        assert entered.stdout == "hunter2 mine 1\n"
    finally:
        images.cisfs("rm", "--force", "scrubbed")


BROKEN = {
    "nothing is chosen": ([], "say which layers to seal: --top N"),
    "too many": (["--top", "9"], "--top 9: the image has 2 layers"),
    "no such layer": (["--from-layer", f"sha256:{'0' * 64}"], "has no such layer"),
    "not a number": (["--top", "x"], "invalid int value"),
    "two ways": (["--top", "1", "--from-layer", "x"], "not allowed with"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_divided_leaves_nothing(images: Images, case: str) -> None:
    options, why = BROKEN[case]
    whole = images.image("whole", oci.base(), oci.Tree({"two": "2"}))
    layer = images.directory / "app.cis"
    done = images.cisfs("seal", "--key-file", key_of(images), whole, "-o", layer, *options)
    assert why in done.stderr
    assert done.returncode == 2
    assert not list(images.directory.glob("*app*"))


def test_a_layer_that_was_altered_is_not_sealed(images: Images) -> None:
    whole = images.image("whole", oci.base(), oci.Tree({"two": "a" * 5000}))
    layout = Layout.open(images.layout)
    blob = layout.manifest(layout.find("whole")).layers[1]  # type: ignore[union-attr]
    path = layout.blob_path(blob.digest)
    path.write_bytes(path.read_bytes().replace(b"aaaa", b"aaab", 1))
    done = images.cisfs(
        "seal",
        "--key-file",
        key_of(images),
        whole,
        "--top",
        "1",
        "-o",
        images.directory / "app.cis",
    )
    assert done.returncode == 11
    assert "its content is not what the image's configuration says" in done.stderr
    assert not list(images.directory.glob("*app*"))


def test_one_name_is_not_taken_away_from_another(images: Images) -> None:
    whole = images.image("whole", oci.base(), oci.Tree({"two": "2"}))
    _, public = seal(images, whole, "--top", "1")
    words: Options = ["seal", "--key-file", key_of(images), whole, "--top", "1"]
    again = images.cisfs(*words, "-o", images.directory / "new.cis", "--public", public)
    assert again.returncode == 2
    assert "is there already; use --force" in again.stderr
    beside = images.cisfs(*words, "-o", images.directory / "new.cis", "--public", f"{public}2")
    assert beside.returncode == 0
    assert len(Layout.open(images.directory / "app.public").entries()) == 2
