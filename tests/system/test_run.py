"""`cisfs run` for real: runc, overlayfs and FUSE, through the command line, as root.

Needs root, runc, busybox-static and /dev/fuse, and fails without them.  After every test nothing
may be left: no mount, no process, no directory, no control group.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.fuse]

PASSPHRASE = "correct horse"
PATIENCE = 30.0  # seconds; a loaded machine may take its time, a hang may not
CISFS = [sys.executable, "-m", "cisfs"]
WORKSPACES = Path("/run/cisfs")


Options = Sequence[str | Path]


def poll(done: Callable[[], bool], what: str) -> None:
    """Wait until `done`; fail when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE:g} s in vain for {what}")
        time.sleep(0.01)


# ---- the material: a root filesystem, vaults, the command


@dataclass(frozen=True)
class Site:
    """Where a test works, and what it runs there."""

    directory: Path
    rootfs: Path
    key: Path
    marker: str  # in every argument vector of ours, to find our processes by
    environment: dict[str, str] = field(repr=False)

    def cisfs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*CISFS, *map(str, words)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            input="",
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def words(self, options: Options, command: Sequence[str]) -> list[str]:
        return [*CISFS, "run", "--rootfs", str(self.rootfs), *map(str, options), "--", *command]

    def run(
        self, *command: str, options: Options = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.words(options, command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            input=stdin,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def traces(self) -> Traces:
        return traces(self.marker, self.directory)

    def start(
        self, script: str, options: Options = ()
    ) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return started(self.words(options, ["sh", "-c", script]), self.environment)

    def vault(self, name: str, files: dict[str, str]) -> Path:
        """Make a vault and fill it through a mount."""
        path, mountpoint = self.directory / name, self.directory / f"{name}.mount"
        assert self.cisfs("init", path).returncode == 0
        mountpoint.mkdir()
        mounted = self.cisfs("mount", path, mountpoint)
        assert mounted.returncode == 0, mounted.stderr
        try:
            for file, text in files.items():
                (mountpoint / file).parent.mkdir(parents=True, exist_ok=True)
                (mountpoint / file).write_text(text)
        finally:
            assert self.cisfs("umount", mountpoint).returncode == 0
        mountpoint.rmdir()
        return path


@contextlib.contextmanager
def started(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own; kill it if the test has not ended it."""
    process = subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        _, complaints = process.communicate(timeout=PATIENCE)
        assert b"Traceback" not in complaints, complaints.decode()


def wait_for_line(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    assert ready, "the container printed nothing"
    assert process.stdout.readline().strip() == text


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0:
        pytest.fail("these tests start containers: run them as root (scripts/test does)")
    directory = tmp_path_factory.mktemp("rootfs")
    directory.chmod(0o755)
    for name in ("bin", "etc", "tmp", "home/app"):
        (directory / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", directory / "bin/busybox")
    subprocess.run(["chroot", directory, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (directory / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\napp:x:2345:\nextra:x:77:app\n")
    (directory / "etc/public").write_text("public\n")
    (directory / "text").write_text("no program\n")
    (directory / "text").chmod(0o755)
    return directory


@pytest.fixture
def site(tmp_path: Path, rootfs: Path) -> Site:
    key = tmp_path / "passphrase"
    key.write_text(PASSPHRASE + "\n")
    key.chmod(0o600)
    source = str(Path(__file__).resolve().parents[2])
    marker = f"cisfs-test-{os.getpid()}-{time.monotonic_ns()}"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": source,
        "PYTHONDONTWRITEBYTECODE": "1",
        "CISFS_PASSPHRASE_FILE": str(key),
        "CISFS_TEST_MARKER": marker,  # inherited by the servers and runc, not by the container
    }
    return Site(tmp_path, rootfs, key, marker, environment)


@dataclass(frozen=True)
class Traces:
    """What a run can leave behind, as the host sees it."""

    mounts: frozenset[str]
    workspaces: frozenset[str]
    groups: frozenset[str]
    processes: frozenset[int]


def traces(marker: str, directory: Path) -> Traces:
    workspaces = set(WORKSPACES.iterdir()) if WORKSPACES.exists() else set()
    return Traces(
        mounts=frozenset(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            # The machine may be busy with other mounts; any of these would be ours.
            if any(
                word in line for word in (str(directory), f"{WORKSPACES}/", " cisfs ", " /proc ")
            )
        ),
        workspaces=frozenset(str(path) for path in workspaces if path.name.startswith("run-")),
        groups=frozenset(
            str(path)
            for pattern in ("cisfs/*/", "*/cisfs/*/")
            for path in Path("/sys/fs/cgroup").glob(pattern)
        ),
        processes=frozenset(processes(marker)),
    )


def processes(marker: str) -> Iterator[int]:
    """Yield every process that inherited the marker in its environment, and their descendants."""
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            parents[int(directory.name)] = int(fields[1])
            if marker.encode() in (directory / "environ").read_bytes():
                marked.add(int(directory.name))
    for process in parents:
        ancestor = process
        while ancestor and ancestor not in marked:
            ancestor = parents.get(ancestor, 0)
        if ancestor:
            yield process


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    before = site.traces()
    yield
    assert site.traces() == before


# ---- what it is for


def test_a_container_reads_what_the_disk_does_not_show(site: Site) -> None:
    vault = site.vault("vault", {"secret": "the launch code\n", "deep/er/file": "x"})
    done = site.run("cat", "/secret", "/etc/public", options=["--layer", vault])
    assert (done.returncode, done.stdout, done.stderr) == (0, "the launch code\npublic\n", "")
    for path in (path for path in vault.rglob("*") if path.is_file()):
        assert b"launch" not in path.read_bytes()
        assert "secret" not in path.name


def test_without_a_layer_it_runs_the_root_filesystem(site: Site) -> None:
    assert site.run("cat", "/etc/public").stdout == "public\n"


def test_the_first_layer_is_on_top(site: Site) -> None:
    top = site.vault("top", {"both": "top\n", "etc/public": "covered\n"})
    bottom = site.vault("bottom", {"both": "bottom\n", "only": "below\n"})
    options: Options = ["--layer", top, "--layer", bottom]
    done = site.run("cat", "/both", "/only", "/etc/public", options=options)
    assert done.stdout == "top\nbelow\ncovered\n"
    turned = site.run("cat", "/both", options=["--layer", bottom, "--layer", top])
    assert turned.stdout == "bottom\n"


def test_many_layers_and_paths_with_every_separator(site: Site) -> None:
    """Options of a mount have a page at most, and separators of their own."""
    odd = Site(
        site.directory / 'a:b,c\\d"e f',
        site.directory / "root:fs,x\\",
        site.key,
        site.marker,
        site.environment,
    )
    odd.directory.mkdir()
    shutil.copytree(site.rootfs, odd.rootfs, symlinks=True)
    layers = [odd.vault(f"layer:{number},", {f"f{number}": f"{number}\n"}) for number in range(4)]
    options: Options = [word for layer in layers for word in ("--layer", layer)]
    done = odd.run("cat", "/f0", "/f1", "/f2", "/f3", "/etc/public", options=options)
    assert (done.stdout, done.stderr) == ("0\n1\n2\n3\npublic\n", "")


def test_what_the_container_writes_is_gone(site: Site) -> None:
    vault = site.vault("vault", {"secret": "kept\n", "dir/file": "kept too\n"})
    script = (
        "rm /secret /etc/public && echo new > /new && echo more >> /dir/file && "
        "mv /dir /moved && cat /moved/file && chown 5:6 /moved/file && ls /secret"
    )
    done = site.run("sh", "-c", script, options=["--layer", vault])
    assert done.stdout == "kept too\nmore\n"
    assert "/secret: No such file" in done.stderr
    again = site.run("sh", "-c", "cat /secret /dir/file; ls /new", options=["--layer", vault])
    assert again.stdout == "kept\nkept too\n"
    assert (site.rootfs / "etc/public").read_text() == "public\n"
    assert not (site.rootfs / "new").exists()
    assert site.cisfs("verify", vault).returncode == 0


def test_two_containers_share_a_layer(site: Site) -> None:
    vault = site.vault("vault", {"secret": "shared\n"})
    options: Options = ["--layer", vault]
    with site.start("echo up; exec sleep 1000", options) as first:
        wait_for_line(first, b"up")
        assert site.run("cat", "/secret", options=options).stdout == "shared\n"
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE) == 128 + signal.SIGTERM


def test_the_host_sees_no_mount(site: Site) -> None:
    vault = site.vault("vault", {"secret": "hidden\n"})
    before = site.traces().mounts
    with site.start("echo up; exec sleep 1000", ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        assert site.traces().mounts == before
        (workspace,) = site.traces().workspaces
        assert list(Path(workspace).iterdir()) == []
        assert stat.S_IMODE(WORKSPACES.stat().st_mode) == 0o700
        process.terminate()
        process.wait(PATIENCE)


# ---- options


def test_exit_codes(site: Site) -> None:
    assert site.run("true").returncode == 0
    assert site.run("sh", "-c", "exit 3").returncode == 3
    assert site.run("sh", "-c", "exit 255").returncode == 255
    assert site.run("sh", "-c", "cat & kill -9 $!; wait $!").returncode == 137


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("absent", 127, "command not found"),
        ("/absent", 127, "command not found"),
        ("/etc", 126, "directory"),
        ("/etc/public", 126, "permission denied"),
        ("/text", 126, "neither a program nor a script"),
    ],
)
def test_commands_that_cannot_run(site: Site, command: str, code: int, words: str) -> None:
    done = site.run(command)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.startswith("cisfs: ")
    assert done.stderr.count("\n") == 1


def test_environment(site: Site) -> None:
    options = ["--env", "A=b=c", "--env", "EMPTY=", "--env", "A=d"]
    lines = site.run("env", options=options).stdout.splitlines()
    assert {"A=d", "EMPTY=", "HOME=/root"} <= set(lines)
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in lines)
    assert not any("CISFS" in line for line in lines)


def test_users_are_the_containers_own(site: Site) -> None:
    script = "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status"
    done = site.run("sh", "-c", script, options=["--user", "app"])
    assert done.stdout.split() == [
        *["1234", "2345", "2345", "77", "/home/app"],
        *["CapEff:", "0" * 16],
    ]
    assert site.run("id", "-G", options=["--user", "7:8"]).stdout == "8\n"
    missing = site.run("true", options=["--user", "daemon"])  # the host has one
    assert missing.returncode == 125
    assert "no user 'daemon' in the container's /etc/passwd" in missing.stderr


def test_a_user_reads_the_layer_as_its_modes_say(site: Site) -> None:
    """Without allow_other: overlayfs reads with the rights of whoever mounted it."""
    vault = site.vault("vault", {"open": "open\n"})
    options: Options = ["--layer", vault, "--user", "app"]
    assert site.run("cat", "/open", options=options).stdout == "open\n"


def test_working_directory(site: Site) -> None:
    assert site.run("pwd").stdout == "/\n"
    assert site.run("pwd", options=["--workdir", "/etc"]).stdout == "/etc\n"
    assert site.run("pwd", options=["--workdir", "/made/for/it"]).stdout == "/made/for/it\n"
    assert not (site.rootfs / "made").exists()


def test_read_only(site: Site) -> None:
    vault = site.vault("vault", {"secret": "fixed\n"})
    layered: Options = ["--read-only", "--layer", vault]
    plans: list[Options] = [["--read-only"], layered]
    for options in plans:
        done = site.run(
            "sh", "-c", "touch /x; rm /etc/public; echo y > /dev/shm/z", options=options
        )
        assert done.stderr.count("Read-only file system") == 2, done.stderr
    assert site.run("cat", "/secret", options=layered).stdout == "fixed\n"
    missing = site.run("pwd", options=["--read-only", "--workdir", "/missing"])
    assert missing.returncode == 125
    assert "--read-only" in missing.stderr


def test_standard_input_is_passed_through(site: Site) -> None:
    done = site.run("wc", "-c", stdin="x" * 300_000)
    assert done.stdout.strip() == "300000"


def test_output_is_the_callers_own_pipe(site: Site) -> None:
    """A reader that has enough ends the writer: by EPIPE, as PID 1 is not sent SIGPIPE."""
    with site.start("exec cat /dev/zero") as process:
        assert process.stdout is not None
        assert process.stdout.read(1 << 20) == bytes(1 << 20)
        process.stdout.close()
        assert process.wait(PATIENCE) == 1
        process.stdout = None  # or communicate() would read it


def test_isolation(site: Site) -> None:
    script = (
        "echo $$; hostname | wc -c; ls /sys/class/net; "
        "cat /proc/keys | wc -c; ip link show lo | grep -c ,UP; ulimit -Hc;"
        "grep NoNewPrivs /proc/self/status; mknod /dev/disk b 254 0; cat /dev/disk; "
        "echo 1 > /proc/sys/vm/swappiness"
    )
    done = site.run("sh", "-c", script)
    lines = done.stdout.split("\n")
    assert lines[0] == "1"
    assert lines[1].strip() == "13"
    assert lines[2:7] == ["lo", "0", "1", "0", "NoNewPrivs:\t1"]
    assert "/dev/disk" in done.stderr
    assert "swappiness: Read-only file system" in done.stderr


# ---- failures of our own: 125 and one line


def failure(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 125, done
    assert done.stdout == ""
    assert done.stderr.startswith("cisfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_cannot_be_run(site: Site) -> None:
    vault = site.vault("vault", {})
    inside = site.rootfs / "inside"
    inside.mkdir()
    cases: list[tuple[Options, str]] = [
        (["--layer", site.directory / "missing"], "does not exist"),
        (["--layer", site.directory], "not a vault"),
        (["--layer", vault, "--layer", vault], "given twice"),
        (["--layer", inside], "one inside the other"),
        (["--rootfs", site.directory / "missing"], "does not exist"),
        (["--rootfs", site.key], "is not a directory"),
        (["--rootfs", vault], "is a vault"),
        (["--env", "NAME"], "NAME=VALUE"),
        (["--workdir", "etc"], "absolute path"),
        (["--workdir", "/etc/passwd"], "not a directory in the container"),
        (["--user", "1:"], "NAME or UID"),
        (["--tty"], "not a terminal"),
    ]
    try:
        for options, words in cases:
            assert words in failure(site.run("true", options=options))
        assert "no command" in failure(site.run())
    finally:
        inside.rmdir()


def test_keys_that_do_not_open_the_layer(site: Site) -> None:
    vault = site.vault("vault", {})
    site.key.write_text("wrong\n")
    failure(site.run("true", options=["--layer", vault]))
    site.key.unlink()
    failure(site.run("true", options=["--layer", vault]))


def test_a_layer_that_is_mounted_for_writing(site: Site) -> None:
    vault, mountpoint = site.vault("vault", {"f": "x"}), site.directory / "m"
    mountpoint.mkdir()
    assert site.cisfs("mount", vault, mountpoint).returncode == 0
    try:
        assert "in use" in failure(site.run("true", options=["--layer", vault]))
    finally:
        assert site.cisfs("umount", mountpoint).returncode == 0


def test_a_machine_without_runc(site: Site) -> None:
    """The directories that are searched beside PATH are hidden in a namespace of its own."""
    hide = 'for d in /usr/sbin /usr/local/sbin; do mount -t tmpfs none $d; done; exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", hide, "sh", *site.words([], ["true"])]
    done = subprocess.run(
        words,
        env={**site.environment, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "apt install runc" in failure(done)


def test_without_root(site: Site) -> None:
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*words, *site.words([], ["true"])],
        env={**site.environment, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    if "No module named" in done.stderr or "Permission" in done.stderr.split("cisfs: ")[0]:
        pytest.fail(f"nobody cannot read the source tree: {done.stderr}")
    assert "sudo" in failure(done)


def test_runc_that_fails(site: Site) -> None:
    """What it says is the one line; everything is undone all the same."""
    fake = site.directory / "bin"
    fake.mkdir()
    (fake / "runc").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (fake / "runc").chmod(0o755)
    vault = site.vault("vault", {})
    environment = {**site.environment, "PATH": f"{fake}:{site.environment['PATH']}"}
    done = subprocess.run(
        site.words(["--layer", vault], ["true"]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "broken\n")


# ---- signals


def wait_for_sleep(site: Site) -> None:
    """Wait until the shell has become `sleep`: busybox's has handlers of its own with -c."""
    poll(lambda: any(command(pid) == b"sleep" for pid in processes(site.marker)), "sleep to run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_what_does_not_handle_it(site: Site, number: signal.Signals) -> None:
    vault = site.vault("vault", {})
    with site.start("echo up; exec sleep 1000", ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        wait_for_sleep(site)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number


def test_ctrl_c_reaches_the_command_once(site: Site) -> None:
    """A terminal signals the whole process group; the container must not hear it twice."""
    script = (
        "trap 'n=$((n+1))' INT; trap 'echo $n; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    )
    with site.start(script) as process:
        wait_for_line(process, b"up")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        wait_for_line(process, b"1")
        assert process.wait(PATIENCE) == 7


def test_other_signals_are_passed_on(site: Site) -> None:
    script = "trap 'exit 5' USR1; trap 'exit 6' USR2; echo up; while :; do sleep 0.1; done"
    for number, code in ((signal.SIGUSR1, 5), (signal.SIGUSR2, 6)):
        with site.start(script) as process:
            wait_for_line(process, b"up")
            process.send_signal(number)
            assert process.wait(PATIENCE) == code


def test_the_third_request_kills_what_ignores_them(site: Site) -> None:
    with site.start("trap '' INT TERM; echo up; while :; do sleep 0.1; done") as process:
        wait_for_line(process, b"up")
        for _ in range(3):
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL


def test_a_command_that_a_signal_ends(site: Site) -> None:
    """PID 1 cannot be killed from inside, so the host does it here, as an OOM killer would."""
    with site.start("echo up; exec sleep 1000") as process:
        wait_for_line(process, b"up")
        victims: list[int] = []
        while not victims:  # the shell has said so, and is about to become sleep
            victims = [pid for pid in processes(site.marker) if command(pid) == b"sleep"]
        (victim,) = victims
        os.kill(victim, signal.SIGKILL)
        assert process.wait(PATIENCE) == 137


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_ctrl_c_at_any_moment_of_the_start(site: Site, delay: float) -> None:
    vault = site.vault("vault", {})
    with site.start("exec sleep 1000", ["--layer", vault]) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        # Before Python has come to our code, it is Python that dies of the signal.
        assert process.wait(PATIENCE) in (130, -signal.SIGINT)


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return b""


def test_kill_9_ends_everything(site: Site) -> None:
    vault = site.vault("vault", {"secret": "x"})
    with site.start("echo up; exec sleep 1000", ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        process.kill()
        process.wait(PATIENCE)
        poll(lambda: not list(processes(site.marker)), "the processes to end")


def test_kill_9_of_the_supervisor_ends_everything(site: Site) -> None:
    vault = site.vault("vault", {"secret": "x"})
    with site.start("echo up; exec sleep 1000", ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        os.kill(supervisor(process.pid), signal.SIGKILL)
        assert process.wait(PATIENCE) == 125
        assert list(processes(site.marker)) == []
        assert process.stderr is not None
        assert b"supervisor was killed" in process.stderr.read()


def test_kill_9_of_everything_is_swept_by_the_next_run(site: Site) -> None:
    vault = site.vault("vault", {"secret": "x"})
    before = site.traces()
    with site.start("echo up; exec sleep 1000", ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        inner = supervisor(process.pid)
        process.send_signal(signal.SIGSTOP)  # so that neither can clean up after the other
        os.kill(inner, signal.SIGKILL)
        process.kill()
        process.wait(PATIENCE)
        poll(lambda: not list(processes(site.marker)), "the processes to end")
        left = site.traces()
        assert left.mounts == before.mounts
        assert left.workspaces > before.workspaces
        assert site.run("true").returncode == 0
        assert site.traces() == before


def supervisor(run: int) -> int:
    (child,) = Path(f"/proc/{run}/task/{run}/children").read_text().split()
    return int(child)


def test_a_server_that_dies_is_reported(site: Site) -> None:
    """The command's exit code stands; a warning says that a layer was not there to the end."""
    vault = site.vault("vault", {"secret": "x"})
    script = "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"
    with site.start(script, ["--layer", vault]) as process:
        wait_for_line(process, b"up")
        inner = supervisor(process.pid)
        children = Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
        (server,) = (int(pid) for pid in children if b"python" in command(int(pid)))
        os.kill(server, signal.SIGKILL)
        process.terminate()
        assert process.wait(PATIENCE) == 4
        assert process.stderr is not None
        assert b"cisfs: warning: the server of" in process.stderr.read()


# ---- terminals


class Terminal:
    """A pseudo-terminal with a `cisfs run --tty` on it."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.output = b""
        self.process = subprocess.Popen(
            words, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, self.output
            self.output += os.read(self.master, 4096)
        self.output = self.output.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(site: Site) -> Iterator[Terminal]:
    script = "tty; stty size; echo $TERM; exec sh"
    one = Terminal(site.words(["--tty"], ["sh", "-c", script]), site.environment)
    yield one
    one.close()


def test_a_terminal_of_its_own(terminal: Terminal) -> None:
    terminal.expect(b"/dev/pts/0\r\n33 77\r\nxterm\r\n")
    terminal.expect(b"# ")
    terminal.type(b"sh -c 'echo ready; exec sleep 1000'\r")
    terminal.expect(b"\nready\r\n")
    terminal.type(b"\x03")  # ends sleep, not the shell: the container's terminal does that
    terminal.expect(b"# ")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.type(b"sleep 0.2; stty size\r")
    terminal.expect(b"11 22\r\n")
    terminal.type(b"echo last words; exit 9\r")
    terminal.expect(b"\nlast words\r\n")
    assert terminal.process.wait(PATIENCE) == 9
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_terminal_is_restored_when_the_run_is_ended(terminal: Terminal) -> None:
    terminal.expect(b"# ")
    assert termios.tcgetattr(terminal.slave) != terminal.before
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.process.wait(PATIENCE) == 129
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_all_output_is_shown_before_the_end(site: Site) -> None:
    one = Terminal(site.words(["--tty"], ["seq", "20000"]), site.environment)
    try:
        one.expect(b"\r\n19999\r\n20000\r\n")
        assert one.process.wait(PATIENCE) == 0
    finally:
        one.close()


def test_ctrl_c_without_tty_on_a_terminal(site: Site) -> None:
    one = Terminal(site.words([], ["sh", "-c", "echo up; exec sleep 1000"]), site.environment)
    try:
        one.expect(b"up")
        wait_for_sleep(site)
        one.type(b"\x03")  # no controlling terminal in this harness, so the group is told by hand
        os.killpg(one.process.pid, signal.SIGINT)
        assert one.process.wait(PATIENCE) == 130
    finally:
        one.close()


def test_errors_with_a_terminal_are_one_line(site: Site) -> None:
    one = Terminal(site.words(["--tty"], ["absent"]), site.environment)
    try:
        one.expect(b"cisfs: command not found: 'absent'")
        assert one.process.wait(PATIENCE) == 127
    finally:
        one.close()


# ---- the store


def test_a_store_is_found_from_where_it_was_named(site: Site) -> None:
    """Not from the root of the namespace in which a scratch is mounted, and then lost."""
    vault, store = site.vault("vault", {"file": "x"}), site.directory / "store"
    options: list[str | Path] = ["--layer", vault, "--store", os.path.relpath(store)]
    options += ["--scratch", "persistent:kept,size=32M"]
    done = site.run("sh", "-c", "echo kept > /kept", options=options)
    assert done.returncode == 0, done.stderr
    assert (store / "scratch/kept").is_dir()
    assert site.run("cat", "/kept", options=options).stdout == "kept\n"
