"""docker's containers whose layers are unlocked for a while: set up, status, run, stop, destroy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX
from tests.engines.machine import Machine
from tests.engines.secret import Secret, seal
from tests.engines.test_docker import options, run, start
from tests.engines.traces import KEPT
from tests.mount.harness.processes import wait_until

pytestmark = [pytest.mark.root, pytest.mark.fuse]

KEYS = "/etc/cisfs/keys"


@pytest.fixture
def passing(machine: Machine) -> Iterator[Secret]:
    """A layer that is unlocked for as long as a test says."""
    made = seal(machine, "passing")
    yield made
    made.lock()
    machine.outside(made.path).unlink()


def unlock(secret: Secret, *more: str) -> None:
    ended = secret.machine.cisfs("unlock", *more, "--key-file", secret.key_file, secret.path)
    assert ended.returncode == 0, ended


def must(machine: Machine, *words: str) -> str:
    ended = machine.cisfs(*words)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def status(secret: Secret) -> dict[str, Any]:
    (found,) = json.loads(must(secret.machine, "status", "--json", secret.path))
    assert isinstance(found, dict)
    return found


def is_running(dock: Client, name: str = "one") -> bool:
    return bool(dock.inspect(name)["State"]["Running"])


def refuses(dock: Client, secret: Secret) -> bool:
    ended = run(dock, secret, BUSYBOX, "cat", "/secret")
    assert secret.canary not in ended.stdout
    return ended.returncode != 0 and f"cisfs unlock {secret.path}" in ended.stderr


# ---- unlock, start through docker without giving a key, lock --stop; or the timeout


@pytest.mark.parametrize("policy", ["no", "always"])
def test_locking_takes_the_container_and_lets_none_start(
    dock: Client, secret: Secret, passing: Secret, policy: str
) -> None:
    unlock(passing)
    start(dock, passing, f"--restart={policy}")
    dock.must("run", "--detach", "--name=other", *options(secret), BUSYBOX, "sleep", "1000")
    assert dock.must("exec", "one", "cat", "/secret") == passing.canary
    identifier = dock.inspect("one")["Id"]
    assert status(passing)["containers"] == [
        {"name": identifier[:12], "id": identifier, "kind": "runtime"}
    ]
    said = must(dock.machine, "lock", "--stop", passing.path)
    assert said == f"locked {passing.path}\nstopped {identifier[:12]}\n"
    wait_until(lambda: not is_running(dock), "docker has seen it")
    assert refuses(dock, passing)
    assert not is_running(dock)
    assert (status(passing)["state"], status(passing)["containers"]) == ("locked", [])
    assert dock.must("exec", "other", "cat", "/secret") == secret.canary
    unlock(passing)
    dock.must("start", "one")
    assert dock.must("exec", "one", "cat", "/secret") == passing.canary


@pytest.mark.parametrize("policy", ["no", "always"])
def test_when_the_time_is_up_the_container_goes_by_itself(
    dock: Client, passing: Secret, policy: str
) -> None:
    unlock(passing, "--timeout=4s", "--stop")
    start(dock, passing, f"--restart={policy}")
    assert dock.must("exec", "one", "cat", "/secret") == passing.canary
    assert status(passing)["stops"]
    wait_until(lambda: not is_running(dock), "it is gone")
    assert status(passing)["state"] == "locked"
    assert refuses(dock, passing)
    wait_until(lambda: not dock.machine.pids("cisfs: "), "nothing of it is left")
    assert not is_running(dock)


def test_who_handles_the_signal_ends_in_order(dock: Client, passing: Secret) -> None:
    unlock(passing, "--timeout=4s", "--stop")
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    start(dock, passing, script=script)
    wait_until(lambda: not is_running(dock), "it is gone")
    assert dock.logs("one") == "up\nbye\n"
    assert dock.inspect("one")["State"]["ExitCode"] == 3


@pytest.mark.parametrize("shares", [[], ["--pid=host"]])
def test_podman_too(cisfs_podman: Client, passing: Secret, shares: list[str]) -> None:
    """And a container whose processes do not all end with its first one."""
    unlock(passing)
    script = "trap '' TERM; sleep 1000 & wait; wait; sleep 1000"
    words = ["--detach", "--name=one", *shares, f"--env=CISFS_LAYERS={passing.path}", BUSYBOX]
    cisfs_podman.must("run", *words, "sh", "-c", script)
    assert cisfs_podman.must("exec", "one", "cat", "/secret") == passing.canary
    said = must(cisfs_podman.machine, "lock", "--stop", "--time=1", passing.path)
    assert said.startswith(f"locked {passing.path}\nstopped ")
    assert not is_running(cisfs_podman)


def test_without_stop_the_container_goes_on(dock: Client, passing: Secret) -> None:
    unlock(passing, "--timeout=2s")
    start(dock, passing)
    wait_until(lambda: status(passing)["state"] == "locked", "the time is over")
    assert dock.must("exec", "one", "cat", "/secret") == passing.canary
    assert refuses(dock, passing)


# ---- keys that lie ready


def test_a_key_in_the_key_directory_is_enough(dock: Client, passing: Secret) -> None:
    place = dock.machine.outside(KEYS)
    place.mkdir(mode=0o700, parents=True)
    file = place / "passing.key"
    file.touch(0o600)
    file.write_bytes(passing.key)
    try:
        assert run(dock, passing, BUSYBOX, "cat", "/secret").stdout == f"{passing.canary}\n"
        file.chmod(0o640)
        ended = run(dock, passing, BUSYBOX, "cat", "/secret")
        assert ended.returncode != 0
        assert f"others have a right to {KEYS}/passing.key" in ended.stderr
        file.chmod(0o600)
        file.write_bytes(bytes(32))
        assert refuses(dock, passing)
    finally:
        file.unlink()
        place.rmdir()


# ---- the whole life of an encrypted container on a host


def test_from_setting_up_to_destroying(kept: str, dock: Client, passing: Secret) -> None:
    unlock(passing)
    start(dock, passing, scratch=kept)
    dock.must("exec", "one", "sh", "-c", "echo x >/kept; sync")
    identifier = dock.inspect("one")["Id"][:12]
    (scratch,) = json.loads(must(dock.machine, "scratch", "list", "--json"))
    assert (scratch["name"], scratch["containers"]) == (KEPT, [identifier])
    refused = dock.machine.cisfs("scratch", "destroy", KEPT)
    assert refused.returncode == 15
    assert f"container {identifier}" in refused.stderr

    dock.must("stop", "--time=0", "one")  # unmapped
    wait_until(lambda: not dock.machine.pids("cisfs: "), "the scratch is let go of")
    dock.must("start", "one")  # mapped again
    assert dock.must("exec", "one", "cat", "/kept") == "x"
    must(dock.machine, "lock", "--stop", passing.path)  # deactivated, with its data
    assert refuses(dock, passing)
    (scratch,) = json.loads(must(dock.machine, "scratch", "list", "--json"))
    assert not scratch["in_use"]
    assert must(dock.machine, "scratch", "destroy", KEPT) == f"{KEPT}\n"  # and without
    assert not dock.machine.outside(f"/var/lib/cisfs/scratch/{KEPT}").exists()
    unlock(passing)
    dock.must("start", "one")  # a new one
    assert dock("exec", "one", "cat", "/kept").returncode == 1
