"""Servers killed and layers damaged while a container runs: nothing ever hangs."""

from __future__ import annotations

import signal

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.machine import Machine
from tests.engines.secret import Secret, seal
from tests.engines.test_docker import options, run, start
from tests.mount.harness.layers import flip
from tests.mount.harness.processes import wait_until

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def serving(machine: Machine, role: str = "") -> list[int]:
    """The processes of cisfs, of all roles or of one."""
    return machine.pids(f"cisfs: {role}")


def kill(machine: Machine, role: str = "") -> None:
    """Kill all of a role at once, which must be there."""
    pids = serving(machine, role)
    assert pids
    machine.kill(*pids)


def test_workers_are_replaced(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    for _ in range(3):
        before = serving(dock.machine, "worker")
        dock.machine.kill(*before)
        drop = "echo 3 >/proc/sys/vm/drop_caches"
        dock.machine.must("sh", "-c", drop)
        assert dock.must("exec", "one", "sh", "-c", "cat /large | wc -c; cat /secret") == (
            f"{20 << 20}\n{secret.canary}"
        )
        assert not set(serving(dock.machine, "worker")) & set(before)


def test_without_a_supervisor_reads_end(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    kill(dock.machine, "supervisor")
    wait_until(lambda: not serving(dock.machine, "worker"), "its workers are gone with it")
    ended = dock("exec", "one", "cat", "/large")  # it may not even find its program
    assert ended.returncode != 0
    assert len(ended.stdout) < 20 << 20


@pytest.mark.parametrize(
    ("scratch", "flag"), [("ephemeral", "oflag=direct"), ("persistent:kept", "conv=fsync")]
)
@pytest.mark.usefixtures("kept")
def test_without_a_scratch_server_writes_end(
    dock: Client, secret: Secret, scratch: str, flag: str
) -> None:
    """An ephemeral one is never synced: what goes to memory only, goes there."""
    start(dock, secret, scratch=scratch)
    kill(dock.machine, "scratch")
    script = f"dd if=/dev/zero of=/file bs=1M count=20 {flag}; cat /secret"
    ended = dock("exec", "one", "sh", "-c", script)
    assert "Input/output error" in ended.stderr
    assert ended.stdout == f"{secret.canary}\n"


def test_without_a_keeper_the_container_goes_on(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    kill(dock.machine, "keeper")
    assert dock.must("exec", "one", "sh", "-c", "echo x >/file; cat /file /secret") == (
        f"x\n{secret.canary}"
    )
    dock.must("rm", "--force", "one")
    wait_until(lambda: not serving(dock.machine), "all servers have ended by themselves")
    start(dock, secret)  # cleans up what the keeper would have
    assert len(list(dock.machine.outside("/run/cisfs/containers").iterdir())) == 1


def test_without_any_of_ours_docker_removes_the_container(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    kill(dock.machine)
    assert dock("exec", "one", "cat", "/large").returncode != 0
    dock.must("rm", "--force", "one")
    assert run(dock, secret, BUSYBOX, "cat", "/secret").stdout == f"{secret.canary}\n"


def test_a_machine_that_dies_keeps_what_was_synced(kept: str, dock: Client, secret: Secret) -> None:
    start(dock, secret, scratch=kept)
    dock.must("exec", "one", "sh", "-c", "echo x >/kept; rm /etc/public; sync; echo y >/late")
    dock.machine.kill(dock.pid("one"), *serving(dock.machine))
    wait_until(lambda: dock.inspect("one")["State"]["Status"] == "exited", "docker has seen it")
    dock.must("start", "one")
    assert dock.must("exec", "one", "cat", "/kept") == "x"
    assert dock("exec", "one", "cat", "/etc/public").returncode == 1


def test_signals_that_ask_them_to_end_are_not_for_servers(dock: Client, secret: Secret) -> None:
    """The machine is shut down: they have to serve until the last of their mounts is gone."""
    start(dock, secret)
    dock.machine.kill(*serving(dock.machine, "keeper"), number=signal.SIGTERM)
    dock.machine.kill(*serving(dock.machine, "keeper"), number=signal.SIGHUP)
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary


def test_a_layer_that_is_damaged_while_it_is_used(dock: Client, machine: Machine) -> None:
    fragile = seal(machine, "fragile", {"large": bytes(range(256)) * (20 << 12)})
    fragile.unlock()
    try:
        start(dock, fragile)
        place = machine.outside(fragile.path)
        flip(place, place.stat().st_size // 2)
        ended = dock("exec", "one", "cat", "/large")
        assert ended.returncode == 1
        assert "Input/output error" in ended.stderr
        assert dock.must("exec", "one", "cat", "/secret", "/etc/public") == (
            f"{fragile.canary}\n{PUBLIC}".strip()
        )
        (log,) = machine.outside("/run/cisfs/containers").glob("*/log")
        assert f"{fragile.path}: unit " in log.read_text()
    finally:
        fragile.lock()
        dock.clear()
        machine.outside(fragile.path).unlink()


def test_memory_limits_are_the_containers_alone(dock: Client, secret: Secret) -> None:
    script = "dd if=/dev/zero of=/file bs=1M count=200 conv=fsync 2>/dev/null && cat /secret"
    ended = run(dock, secret, "--memory=32m", BUSYBOX, "sh", "-c", script)
    assert (ended.returncode, ended.stdout) == (0, f"{secret.canary}\n")


def test_a_layer_that_is_locked_while_it_is_used(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    secret.lock()
    try:
        assert dock.must("exec", "one", "cat", "/secret") == secret.canary
    finally:
        secret.unlock()


def test_options_are_enough(dock: Client, secret: Secret) -> None:
    """A container made and started later, by other commands."""
    dock.must("create", "--name=one", "--init", *options(secret), BUSYBOX, "sleep", "1000")
    dock.must("start", "one")
    assert "sleep 1000" in dock.must("top", "one")
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary
