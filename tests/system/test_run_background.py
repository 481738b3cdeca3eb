"""Containers in the background: `run --detach`, `ps`, `exec`, `logs`, `stop` and `rm`, for real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.test_run import (
    PATIENCE,
    WORKSPACES,
    Options,
    Site,
    Terminal,
    command,
    failure,
    poll,
    processes,
    started,
    wait_for_line,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LOOP = "while :; do sleep 0.05; done"
PATIENT = f"trap 'echo bye; exit 3' TERM; echo up; {LOOP}"


class Yard(Site):
    """A site whose containers in the background are cleared away in the end."""

    def detach(self, script: str, *options: str | Path) -> str:
        """Start one; return its id."""
        done = self.run("sh", "-c", script, options=["-d", *options])
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.removesuffix("\n")

    def listed(self, *options: str) -> list[dict[str, Any]]:
        found = json.loads(self.cisfs("ps", "--json", *options).stdout)
        assert isinstance(found, list)
        return found

    def logs(self, name: str) -> str:
        done = self.cisfs("logs", name)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, name: str, text: str) -> None:
        poll(lambda: text in self.logs(name), f"{name} to print {text!r}")

    def wait_for_end(self, name: str) -> int:
        def ended() -> list[int]:
            states = self.listed("-a")
            return [one["exit_code"] for one in states if one["name"] == name and one["ended"]]

        poll(lambda: bool(ended()), f"{name} to end")
        return ended()[0]


@pytest.fixture
def yard(site: Site) -> Iterator[Yard]:
    made = Yard(site.directory, site.rootfs, site.key, site.marker, site.environment)
    yield made
    for state in made.listed("-a"):
        if state["image"] == str(made.rootfs):
            made.cisfs("rm", "--force", state["identifier"])


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    before = site.traces()
    yield
    poll(lambda: site.traces() == before, "everything to be as before")


def test_a_life_in_the_background(yard: Yard) -> None:
    vault = yard.vault("vault", {"secret": "kept from others\n"})
    identifier = yard.detach(f"cat /secret; {PATIENT}", "--name", "one", "--layer", vault)
    assert len(identifier) == 32
    yard.wait_for("one", "up")
    (state,) = yard.listed()
    assert (state["identifier"], state["status"]) == (identifier, "running")
    assert state["detached"]
    assert yard.cisfs("exec", "one", "cat", "/secret").stdout == "kept from others\n"
    assert yard.cisfs("stop", "one").stdout == "one\n"
    assert yard.listed() == []
    (state,) = yard.listed("-a")
    assert (state["status"], state["exit_code"]) == ("exited", 3)
    assert yard.logs("one") == "kept from others\nup\nbye\n"
    keepers = [title for title in map(command, pids()) if title == b"cisfs: one, exited"]
    assert len(keepers) == 1  # who keeps the log
    assert yard.cisfs("rm", "one").stdout == "one\n"
    assert yard.listed("-a") == []


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def test_the_table(yard: Yard) -> None:
    identifier = yard.detach(PATIENT, "--name", "one")
    head, row = yard.cisfs("ps").stdout.splitlines()
    assert head.split() == ["CONTAINER", "ID", "NAME", "IMAGE", "COMMAND", "STATUS"]
    assert row.startswith(f"{identifier[:12]}   one")
    assert " up " in row
    assert yard.cisfs("ps", "-q").stdout == f"{identifier[:12]}\n"
    yard.cisfs("stop", identifier[:6])
    assert "exited (3)" in yard.cisfs("ps", "-a").stdout
    yard.cisfs("rm", identifier)


def test_removed_when_it_ends(yard: Yard) -> None:
    yard.detach("exit 0", "--rm", "--name", "one")
    poll(lambda: yard.listed("-a") == [], "the container to be gone")
    yard.detach(PATIENT, "--name", "two", "--rm")
    yard.cisfs("stop", "two")
    assert yard.listed("-a") == []


def test_names_are_unique(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    for options in (["-d", "--name", "one"], ["--name", "one"]):
        assert "of that name" in failure(yard.run("true", options=options))
    assert len(yard.listed("-a")) == 1
    yard.cisfs("rm", "-f", "one")
    assert yard.run("true", options=["--name", "one"]).returncode == 0


def test_twelve_of_one_name_at_once(yard: Yard) -> None:
    """One of them has it."""
    codes: list[int] = []

    def start() -> None:
        codes.append(yard.run("sleep", "1000", options=["-d", "--name", "one"]).returncode)

    threads = [threading.Thread(target=start) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0] + [125] * 11
    yard.cisfs("rm", "-f", "one")


def test_a_container_in_the_foreground_is_listed(yard: Yard) -> None:
    with yard.start(PATIENT, ["--name", "front"]) as process:
        wait_for_line(process, b"up")
        (state,) = yard.listed()
        assert (state["name"], state["detached"]) == ("front", False)
        assert yard.cisfs("exec", "front", "echo", "in").stdout == "in\n"
        assert "not in the background" in yard.cisfs("logs", "front").stderr
        assert yard.cisfs("stop", "front").returncode == 0
        assert process.wait(PATIENCE) == 3
    assert yard.listed("-a") == []


def test_a_start_that_fails(yard: Yard) -> None:
    assert "no user" in failure(yard.run("true", options=["-d", "--user", "nobody"]))
    done = yard.run("absent", options=["-d"])
    assert (done.returncode, done.stdout) == (127, "")
    assert "command not found" in done.stderr
    assert yard.listed("-a") == []


def test_a_runc_that_fails_in_the_background(yard: Yard) -> None:
    fake = yard.directory / "bin"
    fake.mkdir()
    (fake / "runc").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (fake / "runc").chmod(0o755)
    yard.environment["PATH"] = f"{fake}:{yard.environment['PATH']}"
    assert "broken" in failure(yard.run("true", options=["-d"]))
    assert yard.listed("-a") == []


# ---- exec


def test_exec(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one", "-e", "A=1", "-w", "/etc")
    execute = ["exec", "-e", "B=2", "one", "sh", "-c"]
    done = yard.cisfs(*execute, "echo $A $B $PWD; id -u; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "1 2 /etc\n0\n", "err\n")
    done = yard.cisfs("exec", "-u", "app", "-w", "/home", "one", "sh", "-c", "id -G; pwd")
    assert done.stdout == "2345 77\n/home\n"
    fields = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status"
    outside = yard.run("sh", "-c", fields).stdout
    assert yard.cisfs("exec", "one", "sh", "-c", fields).stdout == outside
    yard.cisfs("rm", "-f", "one")


def test_exec_shows_nobody_what_it_sets(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    words = [
        *yard.words([], [])[:3],
        "exec",
        "-e",
        "TOKEN=hunter2",
        "one",
        "sh",
        "-c",
        "echo up; cat",
    ]
    with subprocess.Popen(
        [*words[:4], "-i", *words[4:]],
        env=yard.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        lines = [
            line
            for entry in Path("/proc").glob("[0-9]*/cmdline")
            if (line := _read(entry)) and b"hunter2" in line
        ]
        process.communicate()
    # The command itself was typed by the user.
    assert [line.split(b"\0")[1:3] for line in lines] == [[b"-m", b"cisfs"]]
    yard.cisfs("rm", "-f", "one")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("make", ["mknod /etc/passwd b 7 1", "mkfifo /etc/passwd"])
def test_exec_opens_no_device_that_the_container_made(yard: Yard, make: str) -> None:
    yard.detach(PATIENT, "--name", "one")
    assert yard.cisfs("exec", "one", "sh", "-c", f"rm /etc/passwd; {make}").returncode == 0
    done = yard.cisfs("exec", "-u", "app", "one", "true")
    assert done.returncode == 125
    assert "no user 'app'" in done.stderr
    yard.cisfs("rm", "-f", "one")


def test_exec_as_root_beside_another_user(yard: Yard) -> None:
    """As at the start: root has what the container may have, others have nothing."""
    yard.detach(PATIENT, "--name", "one", "--user", "app")
    for user, effective in (([], "0" * 16), (["-u", "root"], "00000000a80425fb")):
        done = yard.cisfs("exec", *user, "one", "grep", "CapEff", "/proc/self/status")
        assert done.stdout.split() == ["CapEff:", effective]
    yard.cisfs("rm", "-f", "one")


def test_exec_under_strict_has_no_privilege_either(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one", "--profile", "strict")
    fields = "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status"
    for user in ([], ["-u", "root"]):
        done = yard.cisfs("exec", *user, "one", "sh", "-c", fields)
        values = [line.split()[1] for line in done.stdout.splitlines()]
        assert values == ["0" * 16, "0" * 16, "1", "2"]
    yard.cisfs("rm", "-f", "one")


def test_exec_and_standard_input(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    for options, count in (([], "0"), (["-i"], "300000")):
        words = [*yard.words([], [])[:3], "exec", *options, "one", "wc", "-c"]
        done = subprocess.run(
            words, env=yard.environment, input=b"x" * 300000, capture_output=True, check=True
        )
        assert done.stdout.strip() == count.encode()
    yard.cisfs("rm", "-f", "one")


def test_exec_with_a_terminal(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    words = [*yard.words([], [])[:3], "exec", "-it", "one", "sh", "-c", "tty; stty size; exec sh"]
    terminal = Terminal(words, yard.environment)
    try:
        terminal.expect(b"/dev/pts/")
        terminal.expect(b"33 77\r\n")
        terminal.type(b"echo here; exit 4\r")
        terminal.expect(b"\nhere\r\n")
        assert terminal.process.wait(PATIENCE) == 4
    finally:
        terminal.close()
    yard.cisfs("rm", "-f", "one")


def test_exec_of_what_is_not_there(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    for name, code in (("absent", 127), ("/etc/public", 126)):
        done = yard.cisfs("exec", "one", name)
        assert done.returncode == code, done
        assert name in done.stderr
    assert "no command" in failure(yard.cisfs("exec", "one"))
    assert "no container 'other'" in failure(yard.cisfs("exec", "other", "true"))
    assert "no user" in failure(yard.cisfs("exec", "-u", "nobody", "one", "true"))
    assert "not a terminal" in failure(yard.cisfs("exec", "-t", "one", "true"))
    assert yard.cisfs("exec", "--no-such-option", "one", "true").returncode == 125
    yard.cisfs("stop", "one")
    assert "not running" in failure(yard.cisfs("exec", "one", "true"))
    yard.cisfs("rm", "one")


def test_exec_ends_with_its_container(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    words = [*yard.words([], [])[:3], "exec", "one", "sh", "-c", "echo up; exec sleep 1000"]
    with started(words, yard.environment) as process:
        wait_for_line(process, b"up")
        yard.cisfs("stop", "one")
        assert process.wait(PATIENCE) == 137
    yard.cisfs("rm", "one")


# ---- logs


def test_logs_follow_until_the_end(yard: Yard) -> None:
    yard.detach(f"echo out; echo err >&2; {PATIENT}", "--name", "one")
    words = [*yard.words([], [])[:3], "logs", "-f", "one"]
    with started(words, yard.environment) as process:
        wait_for_line(process, b"out")
        yard.cisfs("stop", "one")
        assert process.wait(PATIENCE) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"err\nup\nbye\n"
    yard.cisfs("rm", "one")


def test_the_log_is_in_memory_and_has_an_end(yard: Yard) -> None:
    """30 MB are printed; the latest are kept, no file has them."""
    yard.detach("seq 1 4000000; echo the-end; exec sleep 1000", "--name", "one")
    poll(lambda: yard.logs("one").endswith("the-end\n"), "the end")
    text = yard.logs("one")
    assert 8 << 20 <= len(text) <= 16 << 20
    lines = text.splitlines()[1:-1]
    assert lines == [str(number) for number in range(int(lines[0]), 4000001)]
    for path in WORKSPACES.rglob("*"):
        assert path.is_dir() or "4000000" not in path.read_text()
    yard.cisfs("rm", "-f", "one")


def test_a_terminal_in_the_background(yard: Yard) -> None:
    yard.detach("tty; stty size; exec sleep 1000", "-t", "--name", "one")
    yard.wait_for("one", "/dev/pts/0\n24 80\n")
    yard.cisfs("rm", "-f", "one")


# ---- the end


def test_what_ignores_the_signal_is_killed(yard: Yard) -> None:
    yard.detach(f"trap '' TERM; echo up; {LOOP}", "--name", "one")
    yard.wait_for("one", "up")
    assert yard.cisfs("stop", "-t", "0.2", "one").returncode == 0
    assert yard.listed("-a")[0]["exit_code"] == 137
    assert yard.cisfs("stop", "one").returncode == 0  # again
    yard.cisfs("rm", "one")


def test_removing_what_runs(yard: Yard) -> None:
    yard.detach(PATIENT, "--name", "one")
    done = yard.cisfs("rm", "one")
    assert done.returncode == 125
    assert "stop it first" in done.stderr
    assert len(yard.listed()) == 1
    assert yard.cisfs("rm", "--force", "one").returncode == 0
    assert yard.cisfs("rm", "one").returncode == 125
    assert yard.cisfs("stop", "one").returncode == 125
    assert yard.cisfs("logs", "one").returncode == 125
    assert yard.cisfs("stop", "-t", "soon", "one").returncode == 2


def test_kill_9_of_the_keeper_ends_everything(yard: Yard) -> None:
    vault = yard.vault("vault", {"secret": "x"})
    yard.detach(PATIENT, "--name", "one", "--layer", vault)
    yard.wait_for("one", "up")
    (record,) = (WORKSPACES / "embedded").iterdir()
    os.kill(json.loads(record.read_text())["keeper"], signal.SIGKILL)
    poll(lambda: not list(processes(yard.marker)), "the processes to end")
    assert yard.listed("-a") == []
    assert not record.parent.exists()
    assert yard.run("true").returncode == 0  # sweeps what is left


def test_the_callers_terminal_is_not_needed(yard: Yard) -> None:
    """A hang-up of the session that started it does not reach the container."""
    words = yard.words(["-d", "--name", "one"], ["sh", "-c", PATIENT])
    with contextlib.closing(Terminal(words, yard.environment)) as terminal:
        assert terminal.process.wait(PATIENCE) == 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(terminal.process.pid, signal.SIGHUP)
    yard.wait_for("one", "up")
    assert len(yard.listed()) == 1
    yard.cisfs("rm", "-f", "one")


def test_options_are_those_of_a_run_in_the_foreground(yard: Yard) -> None:
    options: Options = ["-d", "--name", "one", "--read-only", "-e", "A=1", "--user", "app"]
    assert yard.run("sh", "-c", "id -un; echo $A; touch /x", options=options).returncode == 0
    assert yard.wait_for_end("one") == 1
    assert yard.logs("one") == "app\n1\ntouch: /x: Read-only file system\n"
    yard.cisfs("rm", "one")
