"""`cisfs run` with docker and podman: streams, terminals, signals, exit codes, keys, isolation."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cisfs.keys.credentials import RawKey
from cisfs.layer.rebase import rebase
from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.machine import Ended, Machine
from tests.engines.secret import Secret, seal
from tests.mount.harness.processes import wait_until
from tests.system.test_run import PATIENCE, Terminal, started, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.fuse]

STATUS = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status"
PODMAN_SETTINGS = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'


class Front:
    """`cisfs run` on a machine, with one engine."""

    def __init__(self, client: Client, engine: str) -> None:
        self.client = client
        self.machine = client.machine
        self.engine = engine

    def words(self, *words: str | Path, engine: str | None = None) -> list[str]:
        run = [sys.executable, "-m", "cisfs", "run", "--engine", engine or self.engine]
        return self.machine.words(*run, *words)

    def __call__(self, *words: str | Path, stdin: str = "") -> Ended:
        run = [sys.executable, "-m", "cisfs", "run", "--engine", self.engine]
        return self.machine.run(*run, *words, stdin=stdin)


@pytest.fixture
def docked(dock: Client) -> Front:
    """docker."""
    return Front(dock, "docker")


@pytest.fixture
def podded(pod_man: Client) -> Iterator[Front]:
    """podman, as it is set up on a machine without systemd."""
    directory = pod_man.machine.outside("/etc/containers/containers.conf.d")
    directory.mkdir(parents=True, exist_ok=True)
    settings = directory / "90-test.conf"
    settings.write_text(PODMAN_SETTINGS)
    yield Front(pod_man, "podman")
    settings.unlink()


@pytest.fixture(params=["docker", "podman"])
def front(request: pytest.FixtureRequest) -> Front:
    found = request.getfixturevalue("docked" if request.param == "docker" else "podded")
    assert isinstance(found, Front)
    return found


def failure(ended: Ended) -> str:
    assert (ended.returncode, ended.stdout) == (125, ""), ended
    assert ended.stderr.startswith("cisfs: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


# ---- what it is for


def test_a_container_reads_an_unlocked_layer(front: Front, secret: Secret) -> None:
    for layer in (secret.path, secret.name):
        ended = front("--rm", "--layer", layer, BUSYBOX, "cat", "/secret", "/etc/public")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"{secret.canary}\n{PUBLIC}"


def test_the_command_sees_nothing_of_how_it_was_told(front: Front, secret: Secret) -> None:
    script = "cat /proc/1/environ; touch /x"
    ended = front("--rm", "--layer", secret.path, "--read-only", BUSYBOX, "sh", "-c", script)
    assert "CISFS" not in ended.stdout
    assert "Read-only file system" in ended.stderr


def test_a_layer_that_is_bound_goes_on_its_base_only(front: Front, machine: Machine) -> None:
    bound = seal(machine, "bound")
    where, key = machine.outside(bound.path), RawKey(bound.key)
    words = ["--rm", "--layer", bound.path, BUSYBOX, "cat", "/secret"]
    listed = front.client.must("image", "inspect", "--format", "{{json .RootFS.Layers}}", BUSYBOX)
    try:
        rebase(where, key, [*json.loads(listed), f"sha256:{'0' * 64}"])
        assert "was sealed to go on another base than the 1 layers" in failure(front(*words))
        by_variable = front("--rm", f"--env=CISFS_LAYERS={bound.path}", BUSYBOX, "true")
        assert "was sealed to go on another base" in failure(by_variable)
        rebase(where, key, json.loads(listed))
        bound.unlock()
        assert front(*words).stdout == f"{bound.canary}\n"
    finally:
        bound.lock()
        where.unlink()
        bound.key_file.unlink()


def test_a_locked_layer(front: Front, secret: Secret) -> None:
    secret.lock()
    try:
        ended = front("--rm", "--layer", secret.path, BUSYBOX, "cat", "/secret")
        assert (ended.returncode != 0, ended.stdout) == (True, "")
        assert f"cisfs unlock {secret.path}" in ended.stderr
        ended = front(
            "--rm", "--key-file", secret.key_file, "--layer", secret.path, BUSYBOX, "cat", "/secret"
        )
        assert ended.stdout == f"{secret.canary}\n"
    finally:
        secret.unlock()


def test_a_key_is_lent_for_the_start_only(docked: Front, secret: Secret) -> None:
    secret.lock()
    try:
        layer = ["--layer", secret.path, BUSYBOX]
        script = "cat /secret; exec sleep 1000"
        docked("-d", "--name=one", f"--key-file={secret.key_file}", *layer, "sh", "-c", script)
        wait_until(lambda: secret.canary in docked.client.logs("one"), "it has the key")
        ended = docked("--rm", "--layer", secret.path, BUSYBOX, "cat", "/secret")
        assert "cisfs unlock" in failure(ended)
        wrong = docked.machine.memory / "wrong.key"
        wrong.touch(0o600)
        wrong.write_bytes(bytes(32))
        failure(docked("--key-file", wrong, *layer, "true"))
    finally:
        secret.unlock()


# ---- streams, signals, exit codes


def test_exit_codes(front: Front) -> None:
    for command, code in (
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 255"], 255),
        (["absent"], 127),
        (["/etc"], 126),
        (["/etc/public"], 126),
    ):
        ended = front("--rm", BUSYBOX, *command)
        assert ended.returncode == code, ended
    assert front.client.must("ps", "-aq") == ""


def test_standard_streams(front: Front) -> None:
    ended = front("--rm", "-i", BUSYBOX, "sh", "-c", "wc -c; echo err >&2", stdin="x" * 300_000)
    assert (ended.stdout.strip(), ended.stderr) == ("300000", "err\n")
    ended = front("--rm", BUSYBOX, "wc", "-c", stdin="x" * 300_000)
    assert ended.stdout.strip() == "0"


def test_a_terminal(front: Front) -> None:
    words = front.words("--rm", "-it", BUSYBOX, "sh", "-c", "tty; stty size; exec sh")
    terminal = Terminal(words, front.machine.environment)
    try:
        terminal.expect(b"/dev/pts/0\r\n")
        terminal.expect(b"# ")
        fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
        (child,) = children(terminal.process.pid)
        os.kill(child, signal.SIGWINCH)
        terminal.type(b"sleep 0.5; stty size\r")
        terminal.expect(b"11 22\r\n")
        terminal.type(b"sh -c 'echo ready; exec sleep 1000'\r")
        terminal.expect(b"\nready\r\n")
        terminal.type(b"\x03")
        terminal.expect(b"# ")
        terminal.type(b"exit 9\r")
        assert terminal.process.wait(PATIENCE) == 9
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_command(docked: Front, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 5' {name}; echo up; while :; do sleep 0.1; done"
    words = docked.words("--rm", BUSYBOX, "sh", "-c", script)
    with started(words, docked.machine.environment) as process:
        wait_for_line(process, b"up")
        (child,) = children(process.pid)
        os.kill(child, number)
        wait_for_line(process, b"got")
        assert process.wait(PATIENCE) == 5


def test_in_the_background(front: Front, secret: Secret) -> None:
    script = "cat /secret; exec sleep 1000"
    ended = front("-d", "--name", "one", "--layer", secret.path, BUSYBOX, "sh", "-c", script)
    assert len(ended.stdout.strip()) == 64
    wait_until(lambda: secret.canary in front.client.logs("one"), "it has read the layer")


# ---- isolation


def test_by_default(front: Front) -> None:
    script = f"{STATUS}; cat /sys/fs/cgroup/pids/pids.max"
    lines = front("--rm", BUSYBOX, "sh", "-c", script).stdout.splitlines()
    assert "NoNewPrivs:\t1" in lines
    assert "Seccomp:\t2" in lines
    assert lines[-1] == "4096"


def test_strict(front: Front, secret: Secret) -> None:
    probes = "for d in /tmp /run /var/tmp /dev/shm /dev; do cp /bin/busybox $d/p && $d/p true; done"
    script = f"cat /secret; {STATUS}; ls /sys/class/net; touch /x; {probes}"
    words = ["--rm", "--profile", "strict", "--layer", secret.path, BUSYBOX, "sh", "-c", script]
    ended = front(*words)
    expected = [secret.canary, f"CapEff:\t{'0' * 16}", "NoNewPrivs:\t1", "Seccomp:\t2", "lo"]
    assert ended.stdout.splitlines() == expected
    assert ended.stderr.count("Permission denied") == 5, ended.stderr
    assert "/x: Read-only file system" in ended.stderr


@pytest.mark.parametrize("network", ["bridge", None])
def test_containers_do_not_reach_each_other(docked: Front, network: str | None) -> None:
    """They do on a network of docker's own, with the same words."""
    given = ["--network", network] if network else []
    docked("-d", "--name", "one", *given, BUSYBOX, "httpd", "-f", "-h", "/etc")
    networks = docked.client.inspect("one")["NetworkSettings"]["Networks"]
    (address,) = (one["IPAddress"] for one in networks.values())
    ask = f"for i in 1 2 3; do timeout 2 wget -q -O - http://{address}/public && break; done"
    ended = docked("--rm", *given, BUSYBOX, "sh", "-c", ask)
    assert (ended.stdout == PUBLIC) == (network is not None), ended
    strict = docked("--rm", "--profile", "strict", BUSYBOX, "sh", "-c", ask)
    assert strict.stdout == ""


def test_options_arrive(front: Front) -> None:
    shared = front.machine.outside("/var/shared")
    shared.mkdir(exist_ok=True)
    (shared / "file").write_text("of the host\n")
    (front.machine.outside("/tmp/env")).write_text("B=2\n")
    options: Sequence[str] = [
        *("--hostname", "web-1", "-u", "1234:5", "-w", "/etc", "-e", "A=1", "--env-file"),
        *("/tmp/env", "-v", "/var/shared:/v:ro", "--tmpfs", "/t:size=1m", "-m", "64m"),
        *("--cpus", "0.5", "--pids-limit", "50", "--label", "a=b", "--entrypoint", "sh"),
    ]
    script = """
        hostname; id -u; id -g; pwd; echo $A $B; cat /v/file; grep -c ' /t tmpfs' /proc/mounts
        cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max
    """
    ended = front("--rm", *options, BUSYBOX, "-c", script)
    assert ended.stdout.splitlines() == [
        *("web-1", "1234", "5", "/etc", "1 2", "of the host", "1"),
        *(str(64 << 20), "50000", "50"),
    ], ended


# ---- which engine, and what cannot be


def test_auto(docked: Front) -> None:
    """docker has a bare name; what has to be unpacked is for the embedded engine."""
    words = docked.words("-d", "--name", "one", BUSYBOX, "sleep", "1000", engine="auto")
    subprocess.run(words, env=docked.machine.environment, check=True, capture_output=True)
    assert docked.client.inspect("one")["HostConfig"]["Runtime"] == "cisfs"
    archive = f"docker-archive:{docked.machine.memory / 'busybox.tar'}"
    words = docked.words("--scratch", "memory", archive, "cat", "/etc/public", engine="auto")
    done = subprocess.run(words, env=docked.machine.environment, check=True, capture_output=True)
    assert done.stdout.decode() == PUBLIC
    docked.machine.must("rm", "-r", "/var/lib/cisfs/images")


def test_images_of_the_daemon_for_the_embedded_engine(docked: Front) -> None:
    image = f"docker-daemon:{BUSYBOX}"
    words = docked.words("--scratch", "memory", image, "cat", "/etc/public", engine="embedded")
    done = subprocess.run(words, env=docked.machine.environment, check=True, capture_output=True)
    assert done.stdout.decode() == PUBLIC
    docked.machine.must("rm", "-r", "/var/lib/cisfs/images")


def test_what_cannot_be(docked: Front, machine: Machine) -> None:
    assert "--pull never" in failure(docked("--pull", "never", "no/such:1", "true"))
    assert "cannot fetch" in failure(docked("no.invalid/such:1", "true"))
    assert "load it into docker" in failure(docked("oci:/x", "true"))
    assert "takes an image" in failure(docked("--rootfs", "/", "true"))
    assert "does not exist" in failure(docked("--layer", "/no/such", BUSYBOX, "true"))
    docked("-d", "--name", "one", BUSYBOX, "sleep", "1000")
    assert "already in use" in failure(docked("-d", "--name", "one", BUSYBOX, "true"))
    run = ["env", "DOCKER_HOST=unix:///no.sock", sys.executable, "-m", "cisfs", "run"]
    said = failure(machine.run(*run, "--engine", "docker", BUSYBOX, "true"))
    assert "unix:///no.sock" in said


def test_docker_that_was_not_configured(docked: Front, machine: Machine) -> None:
    config = machine.outside("/etc/docker/daemon.json")
    before = config.read_bytes()

    def tell(content: bytes, knows: bool) -> None:
        config.write_bytes(content)
        machine.kill(*machine.pids("dockerd")[:1], number=signal.SIGHUP)
        listed = ["info", "-f", "{{json .Runtimes}}"]
        wait_until(lambda: ("cisfs" in docked.client.must(*listed)) == knows, "docker has read it")

    other = {"runtimes": {"other": {"path": "/usr/sbin/runc"}}}
    tell(json.dumps({**json.loads(before), **other}).encode(), knows=False)
    try:
        assert "cisfs runtime configure --engine docker" in failure(docked(BUSYBOX, "true"))
    finally:
        tell(before, knows=True)
