"""A layer and a vault with a slot of every kind, by the command line: who opens it, who no more."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cisfs
from cisfs.format.sealed_geometry import UNITS_OFFSET
from tests.mount.harness import linux
from tests.system.six_kinds import Keys

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.skipif(shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed"),
]

SECRET = "the launch code\n"
KINDS = ("passphrase", "rsa", "ec", "age", "pkcs11", "provider")
OTHERS = dict(zip(KINDS, KINDS[1:] + KINDS[:1], strict=True))


class Site:
    """The keys, and a layer that all of them open."""

    def __init__(self, base: Path, form: str) -> None:
        self.base = base
        self.keys = Keys(base / "keys")
        self.mountpoint = base / "open"
        self.mountpoint.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(cisfs.__file__).parents[1]),
            "HOME": str(base),
            **self.keys.environment,
        }
        self.layer = self._seal() if form == "layer" else self._fill()

    def _seal(self) -> Path:
        source, path = self.base / "source", self.base / "it.cis"
        source.mkdir()
        (source / "secret").write_text(SECRET)
        self.must("seal", source, "-o", path, *self.keys.recipients)
        return path

    def _fill(self) -> Path:
        path = self.base / "it.vault"
        self.must("init", path, *self.keys.recipients)
        self.must("mount", path, self.mountpoint, *self.keys.kinds["ec"].options)
        (self.mountpoint / "secret").write_text(SECRET)
        self.must("umount", self.mountpoint)
        return path

    def cisfs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cisfs", *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def must(self, *words: str | Path) -> str:
        ended = self.cisfs(*words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended.stdout

    def slots(self) -> dict[str, str]:
        """The kinds of the slots there are, in their order, and their ids."""
        found = {}
        for line in self.must("key", "list", self.layer).splitlines():
            identifier, *words = line.split()
            said = " ".join(words)
            (kind,) = (
                name for name, kind in self.keys.kinds.items() if said.startswith(kind.listed)
            )
            found[kind] = identifier
        return found

    def shown_by(self, kind: str) -> str:
        """Mount with one key; return what is in the secret file."""
        self.must("mount", self.layer, self.mountpoint, *self.keys.kinds[kind].options)
        try:
            return (self.mountpoint / "secret").read_text()
        finally:
            self.must("umount", self.mountpoint)

    def data(self) -> dict[str, str]:
        """Hashes of all that is stored, but for where the slots are."""
        if self.layer.is_file():
            stored = self.layer.read_bytes()
            return {"header": digest(stored[:4096]), "data": digest(stored[UNITS_OFFSET:])}
        files = [each for each in self.layer.rglob("*") if each.is_file()]
        return {str(each): digest(each.read_bytes()) for each in files if each.name != "vault.json"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module", params=["layer", "vault"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.fail("these tests mount: run them as root (scripts/test does)")
    made = Site(tmp_path_factory.mktemp("slots"), request.param)
    yield made
    left = list(linux.mounts_below(made.base))
    linux.detach_all(made.base)
    assert not left


def test_it_has_a_slot_of_every_kind(site: Site) -> None:
    assert tuple(site.slots()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_opens_it_alone(site: Site, kind: str) -> None:
    options = site.keys.kinds[kind].options
    assert site.must("verify", site.layer, *options) == f"{site.layer}: everything is whole\n"
    assert site.shown_by(kind) == SECRET


@pytest.mark.parametrize("kind", KINDS)
def test_after_it_was_removed_that_one_alone_no_longer_opens_it(site: Site, kind: str) -> None:
    removed, other = site.keys.kinds[kind], OTHERS[kind]
    slots, data = site.slots(), site.data()
    identity = site.must("inspect", "--json", site.layer) if site.layer.is_file() else ""
    opener = site.keys.kinds[other].options
    said = site.must("key", "remove", site.layer, slots[kind], *opener)
    assert said.startswith(f"removed {slots[kind]} ")
    assert list(site.slots()) == [each for each in slots if each != kind]
    tries: list[list[str | Path]] = [
        ["verify", site.layer],
        ["mount", site.layer, site.mountpoint],
    ]
    for words in tries:
        refusal = site.cisfs(*words, *removed.options)
        assert (refusal.returncode, refusal.stdout) == (12, "")
        assert refusal.stderr.count("\n") == 1
        assert removed.tried in refusal.stderr
        takes = [site.keys.kinds[each].listed.split()[0] for each in site.slots()]
        assert refusal.stderr.endswith(f"the slots here take: {', '.join(takes)}\n")
        assert not [each for each in site.keys.hidden.values() if each in refusal.stderr.encode()]
    for each in KINDS:
        if each != kind:
            site.must("verify", site.layer, *site.keys.kinds[each].options)
    assert site.data() == data
    site.must("key", "add", site.layer, "-r", removed.recipient, *opener)
    site.must("verify", site.layer, *removed.options)
    assert site.data() == data
    if identity:
        assert inspected(identity) == inspected(site.must("inspect", "--json", site.layer))


def inspected(text: str) -> object:
    """What `inspect` says of anything but the slots."""
    document = json.loads(text)
    return {name: value for name, value in document.items() if "slots" not in name}


def test_a_refusal_says_of_each_key_why(site: Site) -> None:
    """Keys of strangers, in the order in which they are tried; the token's has a wrong PIN."""
    strangers = Keys(site.base / f"strangers of {site.layer.name}")
    order = ("age", "rsa", "pkcs11", "ec")
    options = [word for kind in order for word in strangers.kinds[kind].options]
    refusal = site.cisfs("verify", site.layer, *options)
    assert (refusal.returncode, refusal.stdout) == (12, "")
    said = refusal.stderr
    assert said.startswith("cisfs: no key slot opens; tried: ")
    names = [
        strangers.base / "age.key",
        strangers.base / "rsa.key",
        "pkcs11:",
        strangers.base / "ec.key",
    ]
    places = [said.index(str(each)) for each in names]
    assert places == sorted(places)
    assert "pin incorrect" in said
    assert said.count("(no slot for it)") == 3
    for each in {**strangers.hidden, **site.keys.hidden}.values():
        assert each not in said.encode()
