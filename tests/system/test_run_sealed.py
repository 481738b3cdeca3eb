"""`cisfs run` over sealed layers: stacked, hidden under, survived and cleaned up.

Needs root, runc, busybox-static, mkfs.erofs and /dev/fuse, and fails without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.keys.credentials import Credential, Passphrase, RawKey
from tests.mount.harness import layers
from tests.mount.harness.layers import flip
from tests.system.test_run import (
    PASSPHRASE,
    PATIENCE,
    WORKSPACES,
    Site,
    failure,
    poll,
    processes,
    started,
    supervisor,
    wait_for_line,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]

UNITS = 131_072
LARGE = 6 * 1024 * 1024 + 321
KEY = RawKey(bytes(range(32)))
SAME_AS_VAULTS = Passphrase(PASSPHRASE.encode())
# Says when it is there, and then does something whenever it is told to.
ON_USR1 = "trap '{}' USR1; echo up; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public root filesystem."""
    directory = tmp_path_factory.mktemp("rootfs")
    directory.chmod(0o755)
    for name in ("bin", "etc", "tmp", "opt/old"):
        (directory / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", directory / "bin/busybox")
    words = ["chroot", str(directory), "/bin/busybox", "--install", "-s", "/bin"]
    subprocess.run(words, check=True, timeout=PATIENCE)
    (directory / "etc/public").write_text("public\n")
    (directory / "opt/public").write_text("public\n")
    (directory / "opt/old/file").write_text("public\n")
    return directory


@pytest.fixture
def site(tmp_path: Path, rootfs: Path) -> Site:
    key = tmp_path / "passphrase"
    key.write_text(PASSPHRASE + "\n")
    key.chmod(0o600)
    marker = f"cisfs-test-{os.getpid()}-{time.monotonic_ns()}"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CISFS_PASSPHRASE_FILE": str(key),
        "CISFS_TEST_MARKER": marker,
    }
    return Site(tmp_path, rootfs, key, marker, environment)


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    before = traces(site)
    yield
    assert traces(site) == before


def traces(site: Site) -> tuple[list[str], list[str], list[int]]:
    """What a run can leave behind, as the host sees it: mounts, files in /run/cisfs, processes."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    ours = [line for line in mounts if str(site.directory) in line or f"{WORKSPACES}/" in line]
    kept = [str(path) for path in WORKSPACES.glob("run-*")]
    with contextlib.suppress(FileNotFoundError):
        for path in (WORKSPACES / "mounts").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(site.directory) in path.read_text():
                    kept.append(str(path))
    return ours, sorted(kept), sorted(processes(site.marker))


def sealed(
    site: Site, name: str, fill: Callable[[Path], None], credential: Credential = KEY
) -> Path:
    """Make a sealed layer of a tree that `fill` makes."""
    tree, image = site.directory / f"{name}.tree", site.directory / f"{name}.erofs"
    tree.mkdir()
    fill(tree)
    layers.make_image(tree, image)
    layer = site.directory / f"{name}.cis"
    layers.seal(image, layer, credential)
    return layer


def files(contents: dict[str, str]) -> Callable[[Path], None]:
    """Fill a tree with files."""

    def fill(tree: Path) -> None:
        for name, text in contents.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)

    return fill


def whiteout(path: Path) -> None:
    """Make what hides a name in the layers below (overlayfs.rst, "whiteouts")."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def opaque(path: Path) -> None:
    """Make a directory that hides all of the one below it."""
    path.mkdir(parents=True)
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def in_order(*stack: Path) -> list[str | Path]:
    """The options for layers, the first on top; vaults among them have the passphrase."""
    return [word for layer in stack for word in ("--layer", layer)]


def with_key(site: Site, *stack: Path) -> list[str | Path]:
    """The options for sealed layers that the key file opens, which takes no Argon2."""
    key = site.directory / "key"
    key.touch(0o600)
    key.write_bytes(KEY.secret)
    return [*in_order(*stack), "--key-file", key]


# ---- what it is for


def test_a_container_reads_what_the_disk_does_not_show(site: Site) -> None:
    layer = sealed(site, "layer", files({"secret": "the launch code\n", "deep/er/file": "x"}))
    stored = layer.read_bytes()
    done = site.run("cat", "/secret", "/etc/public", options=with_key(site, layer))
    assert (done.returncode, done.stdout, done.stderr) == (0, "the launch code\npublic\n", "")
    assert b"launch" not in stored
    assert layer.read_bytes() == stored


def test_a_program_owners_and_modes_come_from_the_layer(site: Site) -> None:
    def fill(tree: Path) -> None:
        shutil.copy2("/bin/busybox", tree / "busybox")
        (tree / "owned").touch()
        os.chown(tree / "owned", 1234, 2345)
        (tree / "owned").chmod(0o4751)

    layer = sealed(site, "layer", fill)
    words = ("/busybox", "stat", "-c", "%u %g %a", "/owned")
    done = site.run(*words, options=with_key(site, layer))
    assert (done.returncode, done.stdout) == (0, "1234 2345 4751\n"), done.stderr


def test_the_first_layer_is_on_top_whatever_its_kind(site: Site) -> None:
    vault = site.vault("vault", {"both": "vault\n", "of-vault": "v\n", "etc/public": "hidden\n"})
    contents = files({"both": "sealed\n", "of-layer": "l\n"})
    layer = sealed(site, "layer", contents, SAME_AS_VAULTS)
    for options, winner in [
        (in_order(vault, layer), "vault\n"),
        ([*in_order(layer, vault), "--read-only"], "sealed\n"),
    ]:
        done = site.run("cat", "/both", "/of-vault", "/of-layer", "/etc/public", options=options)
        assert done.stdout == f"{winner}v\nl\nhidden\n", done.stderr


def test_two_sealed_layers(site: Site) -> None:
    one = sealed(site, "one", files({"both": "one\n", "dir/one": ""}))
    two = sealed(site, "two", files({"both": "two\n", "dir/two": ""}))
    script = "cat /both; ls /dir"
    done = site.run("sh", "-c", script, options=with_key(site, one, two))
    assert done.stdout == "one\none\ntwo\n"
    done = site.run("sh", "-c", script, options=with_key(site, two, one))
    assert done.stdout == "two\none\ntwo\n"


def test_whiteouts_and_opaque_directories_hide_what_is_below(site: Site) -> None:
    """In the root filesystem, in a vault, and in another sealed layer."""

    def fill(tree: Path) -> None:
        whiteout(tree / "etc/public")
        whiteout(tree / "of-vault")
        whiteout(tree / "of-sealed")
        opaque(tree / "opt")
        (tree / "opt/new").write_text("new\n")

    upper = sealed(site, "upper", fill, SAME_AS_VAULTS)
    contents = files({"of-sealed": "s", "opt/sealed": "s", "kept-s": "s"})
    lower = sealed(site, "lower", contents, SAME_AS_VAULTS)
    vault = site.vault("vault", {"of-vault": "v", "opt/vault": "v", "kept-v": "v"})
    script = "ls /opt; ls /etc | grep public; ls / | grep -e kept -e of-"
    done = site.run("sh", "-c", script, options=in_order(upper, lower, vault))
    assert done.stdout == "new\nkept-s\nkept-v\n", done.stderr
    # A whiteout below hides nothing above it.
    done = site.run("sh", "-c", script, options=in_order(lower, vault, upper))
    assert done.stdout == "new\nsealed\nvault\nkept-s\nkept-v\nof-sealed\nof-vault\n"


def test_what_the_container_writes_is_not_in_the_layer(site: Site) -> None:
    layer = sealed(site, "layer", files({"file": "sealed\n", "dir/other": "x"}))
    stored = hashlib.sha256(layer.read_bytes()).hexdigest()
    script = "echo more >> /file; cat /file; rm -r /dir; mv /file /moved; ls / | grep -e dir -e mov"
    done = site.run("sh", "-c", script, options=with_key(site, layer))
    assert done.stdout == "sealed\nmore\nmoved\n", done.stderr
    assert hashlib.sha256(layer.read_bytes()).hexdigest() == stored
    assert site.run("cat", "/file", options=with_key(site, layer)).stdout == "sealed\n"


def test_a_layer_that_is_mounted_elsewhere_at_the_same_time(site: Site) -> None:
    layer, mountpoint = sealed(site, "layer", files({"f": "x"})), site.directory / "m"
    mountpoint.mkdir()
    options = with_key(site, layer)
    assert site.cisfs("mount", layer, mountpoint, *options[-2:]).returncode == 0
    try:
        assert site.run("cat", "/f", options=options).stdout == "x"
        assert (mountpoint / "f").read_text() == "x"
    finally:
        assert site.cisfs("umount", mountpoint).returncode == 0
        poll(lambda: not list(processes(site.marker)), "the supervisor to end")


def test_the_host_sees_nothing_of_it(site: Site) -> None:
    layer = sealed(site, "layer", files({"secret": "x"}))
    before, _, _ = traces(site)
    with site.start("echo up; exec sleep 1000", with_key(site, layer)) as process:
        wait_for_line(process, b"up")
        now, kept, _ = traces(site)
        assert now == before
        assert [path for path in kept if "/mounts/" in path] == []
        titles = [title(pid) for pid in processes(site.marker)]
        assert f"cisfs: supervisor {layer}" in titles
        assert f"cisfs: worker {layer}" in titles
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0"))
    return ""


# ---- what cannot be run


def test_layers_that_cannot_be_used(site: Site) -> None:
    layer = sealed(site, "layer", files({"f": "x"}))
    options = with_key(site, layer)
    assert "given twice" in failure(site.run("true", options=in_order(layer, layer)))
    flip(layer, 60)
    assert str(layer) in failure(site.run("true", options=options))
    flip(layer, 60)
    flip(layer, UNITS + 1024)
    done = site.run("true", options=options)
    assert done.returncode == 125
    *logged, said = done.stderr.splitlines()
    assert said.startswith("cisfs: ")
    assert str(layer) in said
    assert all("unit 0 was altered" in line for line in logged)
    flip(layer, UNITS + 1024)
    (site.directory / "key").write_bytes(bytes(32))
    assert "wrong key" in failure(site.run("true", options=options))


# ---- deaths


def large(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(LARGE))


def workers(site: Site, layer: Path) -> list[int]:
    return [pid for pid in processes(site.marker) if title(pid) == f"cisfs: worker {layer}"]


def test_workers_may_be_killed_during_a_run(site: Site) -> None:
    layer = sealed(site, "layer", large)
    content = (site.directory / "layer.tree/large").read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    script = ON_USR1.format("sha256sum /large")
    with site.start(script, with_key(site, layer)) as process:
        wait_for_line(process, b"up")
        victims = workers(site, layer)
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        process.send_signal(signal.SIGUSR1)
        wait_for_line(process, f"{expected}  /large".encode())
        poll(lambda: len(workers(site, layer)) == len(victims), "new workers")
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        said = process.stderr.read().decode()
    # They have other numbers in there.
    assert said.count("ended (SIGKILL): it is replaced\n") == said.count("\n") == len(victims)


def test_the_death_of_the_layers_supervisor_is_reported(site: Site) -> None:
    """What the container has not read yet fails; its exit code stands; a warning says why."""
    layer = sealed(site, "layer", large)
    script = ON_USR1.format("cat /large >/dev/null || echo failed") + " "
    with site.start(f"trap 'exit 4' TERM; {script}", with_key(site, layer)) as process:
        wait_for_line(process, b"up")
        (victim,) = (
            pid for pid in processes(site.marker) if title(pid) == f"cisfs: supervisor {layer}"
        )
        os.kill(victim, signal.SIGKILL)
        process.send_signal(signal.SIGUSR1)
        wait_for_line(process, b"failed")
        process.terminate()
        assert process.wait(PATIENCE) == 4
        assert process.stderr is not None
        assert b"cisfs: warning: the server of" in process.stderr.read()


@pytest.mark.parametrize("whom", ["run", "inner", "both"])
def test_kill_9_leaves_nothing(site: Site, whom: str) -> None:
    one, two = sealed(site, "one", large), sealed(site, "two", files({"f": "x"}))
    with site.start("echo up; exec sleep 1000", with_key(site, one, two)) as process:
        wait_for_line(process, b"up")
        inner = supervisor(process.pid)
        if whom == "both":
            process.send_signal(signal.SIGSTOP)  # so that neither can clean up after the other
        if whom != "run":
            os.kill(inner, signal.SIGKILL)
        if whom != "inner":
            process.kill()
        process.wait(PATIENCE)
        poll(lambda: not list(processes(site.marker)), "the processes to end")
    if whom == "both":  # the empty directory in /run/cisfs is the next run's to remove
        assert site.run("true").returncode == 0


def test_ctrl_c_during_the_start(site: Site) -> None:
    layer = sealed(site, "layer", files({"f": "x"}))
    for delay in (0.2, 0.4, 0.6):
        # No shell: one that is just about to become another program can lose the signal.
        words = site.words(with_key(site, layer), ["sleep", "1000"])
        with started(words, site.environment) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) in (130, -signal.SIGINT)
