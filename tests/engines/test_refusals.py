"""What cannot be: docker says why, in words of cisfs, no container starts, and nothing is left."""

from __future__ import annotations

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX
from tests.engines.machine import Machine
from tests.engines.secret import STORE, Secret, seal
from tests.engines.test_docker import options
from tests.mount.harness.layers import flip

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def refused(dock: Client, *more: str) -> str:
    """What docker says to a container that it cannot start."""
    ended = dock("run", "--name=one", "--runtime=cisfs", *more, BUSYBOX, "echo", "ran")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert "OCI runtime create failed" in ended.stderr
    assert dock.inspect("one")["State"]["Status"] == "created"
    return ended.stderr


@pytest.mark.parametrize("reference", ["/nowhere/x.cis", "unknown", f"{STORE}/unknown"])
def test_a_layer_that_is_not_there(dock: Client, reference: str) -> None:
    assert reference in refused(dock, f"--env=CISFS_LAYERS={reference}")


@pytest.mark.parametrize("reference", ["relative/path", "../x", "/a,,/b", "a b\nc"])
def test_a_reference_that_is_none(dock: Client, reference: str) -> None:
    refused(dock, f"--env=CISFS_LAYERS={reference}")


def test_a_layer_that_is_locked(dock: Client, secret: Secret) -> None:
    secret.lock()
    try:
        assert f"cisfs unlock {secret.path}" in refused(dock, *options(secret))
    finally:
        secret.unlock()
    assert dock.must("run", "--rm", *options(secret), BUSYBOX, "cat", "/secret") == secret.canary


def test_one_of_two_layers_that_is_locked(dock: Client, machine: Machine, secret: Secret) -> None:
    other = seal(machine, "other")
    said = refused(dock, f"--env=CISFS_LAYERS={secret.path},{other.path}")
    assert f"cisfs unlock {other.path}" in said
    assert f"cisfs unlock {secret.path}" not in said
    machine.outside(other.path).unlink()


def test_a_layer_that_is_damaged(dock: Client, machine: Machine) -> None:
    damaged = seal(machine, "damaged")
    damaged.unlock()
    place = machine.outside(damaged.path)
    try:
        flip(place, 100)
        assert damaged.path in refused(dock, *options(damaged))
    finally:
        flip(place, 100)
        damaged.lock()  # which takes what it was known by
        place.unlink()


def test_what_is_no_layer(dock: Client, machine: Machine) -> None:
    machine.outside("/var/some.cis").write_text("no layer\n" * 1000)
    assert "/var/some.cis" in refused(dock, "--env=CISFS_LAYERS=/var/some.cis")
    machine.outside("/var/some.cis").unlink()


@pytest.mark.parametrize(
    "scratch",
    [
        "bogus",
        "persistent",
        "persistent:",
        "persistent:../x",
        "persistent:/x",
        "ephemeral,size=0",
        "ephemeral,size=10X",
        "ephemeral,size=",
        "memory,colour=red",
        ",",
        "none,size=-1",
    ],
)
def test_a_scratch_that_makes_no_sense(dock: Client, secret: Secret, scratch: str) -> None:
    refused(dock, *options(secret, scratch))


def test_a_persistent_scratch_that_is_in_use(kept: str, dock: Client, secret: Secret) -> None:
    words = ["--detach", "--name=first", *options(secret, kept)]
    dock.must("run", *words, BUSYBOX, "sleep", "1000")
    assert "scratch/kept" in refused(dock, *options(secret, kept))
    assert dock.must("exec", "first", "cat", "/secret") == secret.canary
