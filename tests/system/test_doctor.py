"""`cisfs doctor` on a real host: what it finds and misses, and that it leaves nothing behind.

Needs root, runc, e2fsprogs and /dev/fuse, and fails without them.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cisfs.errors import MountError
from cisfs.mount import syscalls
from cisfs.runtime.doctor import isolated, probes
from tests.mount.harness import processes

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CISFS = [sys.executable, "-m", "cisfs"]
PATIENCE = 120

# What is not there for the command that follows, in a mount namespace of its own.
HIDING = 'for path in $HIDDEN; do mount --bind /dev/null "$path"; done; exec "$@"'


def doctor(*hidden: str, code: int = 0) -> dict[str, dict[str, str]]:
    """The findings by name, on a host where some files are hidden."""
    words = ["unshare", "--mount", "sh", "-ec", HIDING, "sh", *CISFS, "doctor", "--json"]
    environment = {**os.environ, "HIDDEN": " ".join(hidden)}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    return {each["name"]: each for each in json.loads(done.stdout)}


def resolved(path: str) -> str:
    return os.path.realpath(path)


def state() -> dict[str, list[str]]:
    """What the doctor could leave behind."""
    loops = Path("/sys/block").glob("loop*/loop/backing_file")
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "loops": sorted(str(each) for each in loops if "probe" in each.read_text()),
        "records": sorted(map(str, Path("/run/cisfs").glob("**/*"))),
        "probe": sorted(map(str, Path("/run").glob("*probe*"))),
        # By kind and description: others' keys may be there, whose time is running out.
        "keys": [
            line.split(None, 7)[7]
            for line in Path("/proc/keys").read_text().splitlines()
            if "cisfs" in line
        ],
    }


def test_this_host_can_run_containers_and_stays_as_it_was() -> None:
    before = state()
    findings = doctor()
    for name in ("kernel", "user", "FUSE", "sealed layers", "loop devices", "ext4", "runc"):
        assert findings[name]["level"] == "ok", findings[name]
    for name in ("vaults", "resend", "keyring", "user namespaces"):
        assert findings[name]["level"] == "ok", findings[name]
    assert findings["loop devices"]["found"].endswith("through a loop device")
    assert state() == before


def test_each_finding_that_is_not_well_has_a_remedy() -> None:
    for finding in doctor().values():
        assert bool(finding["remedy"]) == (finding["level"] != "ok"), finding


def test_without_fuse_no_container_runs() -> None:
    findings = doctor("/dev/fuse", code=1)
    assert findings["sealed layers"]["level"] == "failure"
    assert findings["vaults"]["level"] == "warning"
    assert findings["resend"]["level"] == "warning"
    assert findings["ext4"]["level"] == "ok"


def test_without_loop_devices_there_is_no_scratch() -> None:
    findings = doctor("/dev/loop-control", code=1)
    assert findings["loop devices"]["level"] == "failure"
    assert "modprobe loop" in findings["loop devices"]["remedy"]
    assert findings["sealed layers"]["level"] == "ok"


def test_a_missing_program_is_named_with_its_package() -> None:
    findings = doctor(resolved("/usr/sbin/runc"), resolved("/usr/sbin/mkfs.ext4"), code=1)
    assert findings["runc"]["level"] == "failure"
    assert findings["runc"]["remedy"].endswith("apt install runc")
    assert findings["ext4"]["level"] == "failure"
    assert "mkfs.ext4" in findings["ext4"]["found"]


# ---------------------------------------------------------------------------------- isolation


def test_a_probe_works_in_a_place_of_its_own_and_tells() -> None:
    def probe(place: Path) -> str:
        assert os.getpid() == 1
        (place / "file").write_text("x")
        syscalls.mount("cisfs", str(place), "tmpfs")
        return f"{sorted(os.listdir(place.parent))} {os.listdir(place)}"

    assert isolated.attempt(probe) == isolated.Answer(True, "['probe'] []")
    assert not isolated.PLACE.exists()


def test_a_probe_that_takes_too_long_is_ended_with_all_it_began() -> None:
    mark = f"9{secrets.randbelow(10**12)}"
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()  # servers that other tests share

    def probe(place: Path) -> str:
        subprocess.Popen(["setsid", "sleep", mark])
        subprocess.Popen(["sleep", mark], cwd=place)
        time.sleep(600)
        return "never"

    assert isolated.attempt(probe, 1.0) == isolated.Answer(False, "no answer after 1 seconds")
    assert list(processes.mentioning(mark)) == []
    assert children.read_text() == before


def test_what_a_probe_raises_is_told_in_a_line() -> None:
    def system(_place: Path) -> str:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), "/some/where")

    def ours(_place: Path) -> str:
        raise MountError("in words")

    def bug(_place: Path) -> str:
        raise KeyError("x")

    def death(_place: Path) -> str:
        os._exit(3)

    for probe, words in (
        (system, "/some/where: No such device"),
        (ours, "in words"),
        (bug, "KeyError: 'x'"),
        (death, "the probe was killed"),
    ):
        assert isolated.attempt(probe) == isolated.Answer(False, words)


@pytest.mark.parametrize("killed", ["the command", "the process in between"])
def test_a_probe_ends_with_who_wanted_it(killed: str) -> None:
    mark = f"9{secrets.randbelow(10**12)}"

    def probe(_place: Path) -> str:
        subprocess.Popen(["sleep", mark])
        time.sleep(600)
        return "never"

    command = os.fork()
    if command == 0:
        try:
            isolated.attempt(probe)
        finally:
            os._exit(0)
    processes.wait_until(lambda: bool(list(processes.mentioning(mark))), "the probe began")
    between = parent(parent(next(processes.mentioning(mark))))
    assert parent(between) == command
    os.kill(command if killed == "the command" else between, 9)
    os.waitpid(command, 0)
    processes.wait_until(lambda: not list(processes.mentioning(mark)), "the probe ended")


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_tiny_image_is_one_that_its_own_checker_accepts(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(probes.tiny_image())
    subprocess.run(["fsck.erofs", str(tmp_path / "image")], check=True, stdout=subprocess.DEVNULL)
