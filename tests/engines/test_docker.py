"""docker with --runtime=cisfs: a container as any other, but for the layers under it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import docker
import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, DEBIAN, PUBLIC
from tests.engines.machine import Ended
from tests.engines.secret import Secret
from tests.mount.harness.processes import wait_until

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def options(secret: Secret, scratch: str = "") -> list[str]:
    """What makes a container a cisfs container."""
    found = ["--runtime=cisfs", f"--env=CISFS_LAYERS={secret.path}"]
    return found + ([f"--env=CISFS_SCRATCH={scratch}"] if scratch else [])


def run(dock: Client, secret: Secret, *words: str, scratch: str = "", stdin: str = "") -> Ended:
    """`docker run --rm` with more options and the command of a container."""
    return dock("run", "--rm", *options(secret, scratch), *words, stdin=stdin)


def start(
    dock: Client,
    secret: Secret,
    *more: str,
    scratch: str = "",
    script: str = "",
    image: str = BUSYBOX,
) -> None:
    """Start a container with the name "one" that stays."""
    words: Sequence[str] = ["sh", "-c", script] if script else ["sleep", "1000"]
    named = ["--detach", "--name=one", *more]
    dock.must("run", *named, *options(secret, scratch), image, *words)


# ---- what it is for


def test_a_container_reads_the_secret(dock: Client, secret: Secret) -> None:
    ended = run(dock, secret, BUSYBOX, "cat", "/secret", "/etc/public")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{secret.canary}\n{PUBLIC}"


def test_by_the_name_of_a_layer_alone(dock: Client, secret: Secret) -> None:
    words = ["--runtime=cisfs", f"--env=CISFS_LAYERS={secret.name}", BUSYBOX, "cat", "/secret"]
    assert dock.must("run", "--rm", *words) == secret.canary


@pytest.mark.usefixtures("dock")
def test_through_the_sdk(docker_api: docker.DockerClient, secret: Secret) -> None:
    said = docker_api.containers.run(
        BUSYBOX,
        ["cat", "/secret"],
        runtime="cisfs",
        environment={"CISFS_LAYERS": secret.path},
        remove=True,
    )
    assert said == f"{secret.canary}\n".encode()


def test_without_layers_it_is_like_any_other(dock: Client) -> None:
    ended = dock("run", "--rm", "--runtime=cisfs", BUSYBOX, "sh", "-c", "ls /secret; exit 5")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert ended.stderr == "ls: /secret: No such file or directory\n"


def test_a_debian(dock: Client, secret: Secret) -> None:
    script = "cat /secret && useradd() { echo $1 >>/etc/passwd; }; useradd x:x:9:9::/:/bin/bash && "
    script += "sed -i s/x:x:9/y:x:9/ /etc/passwd && grep -c y:x:9 /etc/passwd && stat -f -c %T /"
    ended = run(dock, secret, DEBIAN, "bash", "-c", script)
    assert (ended.stdout, ended.stderr) == (f"{secret.canary}\n1\noverlayfs\n", "")


@pytest.mark.parametrize("code", [0, 1, 255])
def test_exit_codes(dock: Client, secret: Secret, code: int) -> None:
    assert run(dock, secret, BUSYBOX, "sh", "-c", f"exit {code}").returncode == code


def test_a_command_that_is_not_there(dock: Client, secret: Secret) -> None:
    ended = run(dock, secret, BUSYBOX, "/no/such/command")
    assert ended.returncode == 127
    assert "no such file or directory" in ended.stderr


def test_the_container_is_not_told_what_the_runtime_was(dock: Client, secret: Secret) -> None:
    ended = run(dock, secret, "--env=OTHER=kept", BUSYBOX, "env", scratch="memory")
    assert "OTHER=kept" in ended.stdout.splitlines()
    assert "CISFS" not in ended.stdout


def test_exec_and_logs(dock: Client, secret: Secret) -> None:
    start(dock, secret, script="echo begun; echo trouble >&2; exec sleep 1000")
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary
    assert dock("exec", "one", "sh", "-c", "exit 9").returncode == 9
    assert dock.must("exec", "--user=app", "one", "id", "-un") == "app"
    wait_until(lambda: dock.logs("one") == "begun\ntrouble\n", "both lines are in the log")


@pytest.mark.parametrize("more", [[], ["--ulimit=core=-1"]])
def test_what_is_executed_leaves_no_core_either(
    dock: Client, secret: Secret, more: list[str]
) -> None:
    start(dock, secret, *more)
    for words in (["/proc/1/limits"], ["/proc/self/limits"]):
        said = dock.must("exec", "one", "cat", *words)
        (row,) = (row for row in said.splitlines() if row.startswith("Max core file size"))
        assert row.split()[4:6] == ["1", "1"], words


def test_two_containers_on_one_layer(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    dock.must("exec", "one", "sh", "-c", "echo changed >/secret; echo mine >/mine")
    said = run(dock, secret, BUSYBOX, "sh", "-c", "cat /secret; ls /mine")
    assert (said.stdout, said.returncode) == (f"{secret.canary}\n", 1)
    assert dock.must("exec", "one", "cat", "/secret", "/mine") == "changed\nmine"


# ---- scratch


@pytest.mark.parametrize("scratch", ["", "ephemeral", "ephemeral,size=100M", "memory"])
def test_what_is_written_is_gone_at_the_end(dock: Client, secret: Secret, scratch: str) -> None:
    start(dock, secret, scratch=scratch)
    dock.must("exec", "one", "sh", "-c", "echo x >/kept && rm /secret && sync && cat /kept")
    dock.must("stop", "--time=0", "one")
    dock.must("start", "one")
    assert dock("exec", "one", "cat", "/kept").returncode == 1
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary


def test_a_persistent_scratch_survives_stop_and_start(
    kept: str, dock: Client, secret: Secret
) -> None:
    start(dock, secret, scratch=kept)
    dock.must("exec", "one", "sh", "-c", "echo x >/kept && rm /secret && mv /etc /moved && sync")
    for _ in range(2):
        dock.must("restart", "--time=0", "one")
        assert dock.must("exec", "one", "cat", "/kept", "/moved/public") == f"x\n{PUBLIC}".strip()
        assert dock("exec", "one", "cat", "/secret").returncode == 1


def test_a_scratch_has_a_size(dock: Client, secret: Secret) -> None:
    start(dock, secret, scratch="ephemeral,size=64M")
    ended = dock("exec", "one", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=100")
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary
    dock.must("exec", "one", "sh", "-c", "rm /file && echo again >/file")


def test_no_scratch_is_a_read_only_root(dock: Client, secret: Secret) -> None:
    ended = run(dock, secret, BUSYBOX, "sh", "-c", "cat /secret; echo x >/file", scratch="none")
    assert ended.stdout == f"{secret.canary}\n"
    assert "Read-only file system" in ended.stderr


# ---- docker's own options


def test_a_read_only_container(dock: Client, secret: Secret) -> None:
    script = "cat /secret; echo x >/here/file && cat /here/file; echo x >/file"
    ended = run(dock, secret, "--read-only", "--tmpfs=/here", BUSYBOX, "sh", "-c", script)
    assert ended.stdout == f"{secret.canary}\nx\n"
    assert "Read-only file system" in ended.stderr


def test_mounts_users_and_limits(dock: Client, secret: Secret) -> None:
    shared = dock.machine.outside("/var/shared")
    shared.mkdir(exist_ok=True)
    shared.chmod(0o777)
    words = ["--volume=/var/shared:/shared", "--user=app", "--workdir=/shared", "--tmpfs=/run"]
    script = "pwd; id -u; cp /secret secret; stat -f -c %T /run; echo $HOSTNAME"
    ended = run(dock, secret, *words, "--hostname=here", BUSYBOX, "sh", "-c", script)
    assert ended.stdout == "/shared\n1234\ntmpfs\nhere\n", ended.stderr
    assert (shared / "secret").stat().st_uid == 1234
    (shared / "secret").unlink()
    shared.rmdir()


def test_standard_input(dock: Client, secret: Secret) -> None:
    text = secrets.token_hex(100_000)
    assert run(dock, secret, "--interactive", BUSYBOX, "cat", stdin=text).stdout == text


# ---- ends of all kinds


def test_a_restart_policy(dock: Client, secret: Secret) -> None:
    start(dock, secret, "--restart=on-failure:2", script="cat /secret; echo $$ >/was; exit 3")
    wait_until(
        lambda: (
            dock.inspect("one")["State"]["Status"] == "exited"
            and dock.inspect("one")["RestartCount"] == 2
        ),
        "docker has restarted it twice, and given up",
    )
    assert dock.logs("one") == f"{secret.canary}\n" * 3
    assert dock.inspect("one")["State"]["ExitCode"] == 3


def test_stop_is_a_sigterm(dock: Client, secret: Secret) -> None:
    start(dock, secret, script="trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done")
    dock.must("stop", "one")
    assert dock.inspect("one")["State"]["ExitCode"] == 0
    assert dock.logs("one") == "bye\n"


def test_a_first_process_that_is_killed(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    dock.machine.kill(dock.pid("one"))
    wait_until(lambda: dock.inspect("one")["State"]["Status"] == "exited", "docker has seen it")
    assert dock.inspect("one")["State"]["ExitCode"] == 137
    dock.must("start", "one")
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary


def test_pause(dock: Client, secret: Secret) -> None:
    start(dock, secret)
    dock.must("pause", "one")
    dock.must("unpause", "one")
    assert dock.must("exec", "one", "cat", "/secret") == secret.canary
