"""`cisfs-runtime` with no engine at all: bundles in, containers over encrypted layers out.

Needs root and runc, and fails without them.  After every test nothing may be left: no mount, loop
device, process, record or key.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import processes
from tests.mount.harness.layers import flip
from tests.mount.harness.processes import wait_until
from tests.system.bundles import CISFS, PATIENCE, RUNTIME, Site, site_in, traces

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SECRET = "the launch code\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as made:
        yield made


# ---- what it is for


def test_without_layers_it_is_runc(site: Site) -> None:
    done = site.run("plain", "cat /etc/public; ls /secret")
    assert (done.returncode, done.stdout) == (1, "public\n")
    version = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    assert site.runtime("--version").stdout == version.stdout


def test_a_container_reads_its_layers_and_the_host_sees_no_mount(site: Site) -> None:
    top = site.layer("top", {"secret": SECRET, "both": "top\n"})
    bottom = site.layer("bottom", {"both": "bottom\n", "only": "below\n"})
    before = traces(site.base)["mounts"]
    site.start("box", "sleep 1000", layers=[top, bottom])
    assert traces(site.base)["mounts"] == before
    got = site.exec("box", "cat", "/secret", "/both", "/only", "/etc/public")
    assert (got.returncode, got.stdout) == (0, f"{SECRET}top\nbelow\npublic\n")
    state = json.loads(site.runtime("state", site.id("box")).stdout)
    assert state["status"] == "running"
    assert state["bundle"] == str(site.base / "box")
    assert "mnt" not in (site.base / "box/config.json").read_text()  # the host's is as it was


def test_the_environment_of_the_container_does_not_tell(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    done = site.run("box", "env", layers=[layer], scratch="memory")
    assert "CISFS" not in done.stdout
    assert "PATH=" in done.stdout


def test_an_annotation_names_layers_too(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    annotations = {"dev.cisfs.layers": str(layer), "dev.cisfs.scratch": "none"}
    done = site.run("box", "cat /secret; touch /x", annotations=annotations)
    assert done.stdout == SECRET
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("written", ["{id} --bundle {bundle}", "--bundle {bundle} -- {id}"])
def test_options_stand_wherever_runc_takes_them(site: Site, written: str) -> None:
    bundle = site.bundle("box", "cat /secret", layers=[site.layer("layer", {"secret": SECRET})])
    words = written.format(id=site.id("box"), bundle=bundle).split()
    assert site.runtime("run", *words).stdout == SECRET


def test_vaults_and_sealed_layers_stack(site: Site) -> None:
    vault, mountpoint = site.base / "vault", site.base / "open"
    mountpoint.mkdir()
    site.must("init", vault, "--key-file", site.key)
    site.must("mount", vault, mountpoint, "--key-file", site.key)
    (mountpoint / "vaulted").write_text("in the vault\n")
    site.must("umount", mountpoint)
    site.unlock(vault)
    layer = site.layer("layer", {"secret": SECRET})
    done = site.run("box", "cat /vaulted /secret", layers=[vault, layer])
    assert (done.stdout, done.stderr) == (f"in the vault\n{SECRET}", "")


def test_two_containers_on_one_layer_do_not_see_each_other_write(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    site.start("one", "echo one > /secret; sleep 1000", layers=[layer])
    site.start("two", "sleep 1000", layers=[layer])
    wait_until(lambda: site.exec("one", "cat", "/secret").stdout == "one\n", "one has written")
    assert site.exec("two", "cat", "/secret").stdout == SECRET
    site.delete("one")
    assert site.exec("two", "cat", "/secret").stdout == SECRET


# ---- scratch


def test_an_ephemeral_scratch_holds_no_plaintext_and_ends_with_the_container(site: Site) -> None:
    script = (
        "for i in $(seq 200000); do echo canary-in-the-scratch; done > /part; mv /part /written"
    )
    site.start("box", f"{script}; sleep 1000", scratch="ephemeral,size=64M")
    record = site.record("box")
    wait_until(lambda: site.exec("box", "test", "-s", "/written").returncode == 0, "it has written")
    server = record["servers"][-1]
    backing = next(
        fd
        for fd in Path(f"/proc/{server}/fd").iterdir()
        if os.readlink(fd).startswith(str(site.store / "scratch"))
    )
    os.sync()
    stored = backing.read_bytes()
    assert len(stored) - stored.count(0) > 1 << 20
    assert b"canary" not in stored


def test_a_persistent_scratch_is_found_again(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    scratch = "persistent:db,size=64M"
    assert site.run("box", "echo kept > /data; sync", layers=[layer], scratch=scratch).stderr == ""
    done = site.run("box", "cat /data; df / | tail -1", layers=[layer], scratch=scratch)
    assert done.stdout.startswith("kept\n")
    stored = b"".join(path.read_bytes() for path in site.store.rglob("*") if path.is_file())
    assert b"kept" not in stored


def test_a_store_is_found_from_where_it_was_named(site: Site) -> None:
    layer, scratch = site.layer("layer", {"secret": SECRET}), "persistent:db,size=64M"
    bundle = site.bundle("one", "echo kept > /kept", layers=[layer], scratch=scratch)
    words = [*RUNTIME, "--store", site.store.name, "run", "--bundle", bundle.name, site.id("one")]
    subprocess.run(words, env=site.environment, cwd=site.base, check=True, timeout=60)
    assert (site.store / "scratch/db").is_dir()
    assert site.run("two", "cat /kept", layers=[layer], scratch=scratch).stdout == "kept\n"


def test_a_persistent_scratch_is_one_containers_at_a_time(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    site.start("one", "sleep 1000", layers=[layer], scratch="persistent:db,size=64M")
    done = site.run("two", "true", layers=[layer], scratch="persistent:db")
    assert done.returncode == 1
    assert "db" in done.stderr


def test_a_persistent_scratch_of_another_layer_is_refused(site: Site) -> None:
    one, other = site.layer("one", {"a": ""}), site.layer("other", {"a": ""})
    scratch = "persistent:db,size=64M"
    assert site.run("box", "true", layers=[one], scratch=scratch).returncode == 0
    done = site.run("box", "true", layers=[other], scratch=scratch)
    assert done.returncode == 1
    assert "made with another layer" in done.stderr
    assert site.run("box", "true", layers=[other, one], scratch=scratch).returncode == 0


@pytest.mark.parametrize("kind", ["ephemeral", "memory", "persistent:full"])
def test_a_full_scratch_fails_the_writer_and_nobody_else(site: Site, kind: str) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    script = "dd if=/dev/zero of=/big bs=1M count=64; rm /big; cat /secret; echo fits > /small"
    done = site.run("box", f"{script}; cat /small", layers=[layer], scratch=f"{kind},size=32M")
    assert done.stdout == f"{SECRET}fits\n"
    assert "No space left on device" in done.stderr


# ---- what is refused


@pytest.mark.parametrize(
    ("layers", "scratch", "words"),
    [
        (["/nowhere/layer.cis"], "", "/nowhere/layer.cis"),
        (["unheard-of"], "", "unheard-of"),
        (["relative/path"], "", "relative/path"),
        ([], "disk", "persistent:NAME"),
        ([], "persistent:new", "takes a layer"),
    ],
)
def test_what_cannot_be_is_said_in_the_engines_log(
    site: Site, layers: list[str], scratch: str, words: str
) -> None:
    bundle, log = site.bundle("box", "true", layers=layers, scratch=scratch), site.base / "log"
    ended = site.runtime("create", "--bundle", bundle, site.id("box"), log=log)
    assert ended.returncode == 1
    (line,) = log.read_text().splitlines()
    said = json.loads(line)
    assert said["level"] == "error"
    assert words in said["msg"]
    assert ended.stderr == f"cisfs-runtime: {said['msg']}\n"


def test_a_locked_layer_is_named_with_the_way_to_unlock_it(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    assert site.run("box", "true", layers=[layer]).returncode == 0
    site.lock(layer)
    done = site.run("box", "true", layers=[layer])
    assert done.returncode == 1
    assert f"cisfs unlock {layer}" in done.stderr


def test_a_damaged_layer_is_refused_or_fails_where_it_is_damaged(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET, "large": "x" * 300_000})
    flip(layer, 4000)
    done = site.run("box", "cat /secret", layers=[layer])
    assert (done.returncode, done.stdout) == (1, "")
    flip(layer, 4000)
    flip(layer, layer.stat().st_size - 200_000)
    done = site.run("box", "cat /secret; cat /large > /copy", layers=[layer])
    assert done.stdout == SECRET
    assert "Input/output error" in done.stderr


def test_an_id_that_is_taken_is_refused_at_once(site: Site) -> None:
    site.start("box", "sleep 1000", scratch="memory")
    begun = time.monotonic()
    done = site.runtime("create", "--bundle", site.base / "box", site.id("box"))
    assert (done.returncode, time.monotonic() - begun < 10) == (1, True)
    assert f"a container {site.id('box')} exists already" in done.stderr
    assert site.exec("box", "true").returncode == 0


def test_a_root_that_is_not_there_is_named(site: Site) -> None:
    bundle = site.bundle("box", "true", scratch="memory")
    site.rootfs.rename(site.base / "elsewhere")
    done = site.runtime("run", "--bundle", bundle, site.id("box"))
    assert done.returncode == 1
    assert f"{site.rootfs}, is no directory" in done.stderr


def test_a_failure_of_runc_leaves_nothing(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    bundle = site.bundle("box", "true", layers=[layer])
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/no/such/program"]
    (bundle / "config.json").write_text(json.dumps(config))
    ended = site.runtime("run", "--bundle", bundle, site.id("box"))
    assert ended.returncode != 0
    site.await_end("box")


@pytest.mark.parametrize("limited", [False, True])
def test_what_is_executed_in_a_container_leaves_no_core(site: Site, limited: bool) -> None:
    """The kernel hands a core to a program of the host at any limit but 1: fs/coredump.c."""
    site.start("exec", "sleep 60", layers=[site.layer("a", {"secret": "s\n"})])
    process: dict[str, object] = {
        "args": ["cat", "/proc/self/limits"],
        "cwd": "/",
        "env": ["PATH=/bin"],
    }
    if limited:
        process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 1 << 30, "hard": 1 << 30}]
    path = site.base / "process.json"
    path.write_text(json.dumps({**process, "user": {"uid": 0, "gid": 0}}))
    done = site.runtime("exec", "--process", path, site.id("exec"))
    (row,) = (row for row in done.stdout.splitlines() if row.startswith("Max core file size"))
    assert row.split()[4:6] == ["1", "1"], done
    site.delete("exec")


def test_memory_is_never_checkpointed(site: Site) -> None:
    site.start("box", "sleep 1000", scratch="memory")
    image = site.base / "image"
    done = site.runtime("checkpoint", "--image-path", image, site.id("box"))
    assert (done.returncode, image.exists()) == (1, False)
    assert "in plain" in done.stderr
    bundle = site.bundle("other", "true", scratch="memory")
    done = site.runtime("restore", "--image-path", image, "--bundle", bundle, site.id("other"))
    assert done.returncode == 1
    assert "in plain" in done.stderr


# ---- deaths


def test_a_container_survives_its_keeper_and_a_worker(site: Site) -> None:
    layer = site.layer("layer", {f"f{number}": f"{number}\n" * 9999 for number in range(20)})
    site.start("box", "sleep 1000", layers=[layer])
    os.kill(site.record("box")["keeper"], signal.SIGKILL)
    for pid in list(processes.mentioning(f"cisfs: worker {layer}")):
        os.kill(pid, signal.SIGKILL)
    got = site.exec("box", "sh", "-c", "cat /f* | wc -c; echo more > /written; cat /written")
    assert got.stdout == f"{sum(len(f'{n}') + 1 for n in range(20)) * 9999}\nmore\n"
    site.delete("box", forgotten=False)
    # What a dead keeper could not remove is removed by the next container's.
    wait_until(
        lambda: site.run("other", "true", scratch="none").returncode == 0 and not site.records(),
        "it is forgotten",
    )


@pytest.mark.parametrize("which", [0, -1])
def test_a_dead_server_is_an_error_and_no_hang(site: Site, which: int) -> None:
    layer = site.layer("layer", {"secret": SECRET, "other": "x" * 3_000_000})
    site.start("box", "sleep 1000", layers=[layer])
    os.kill(site.record("box")["servers"][which], signal.SIGKILL)
    wait_until(
        lambda: (
            site.exec(
                "box",
                "sh",
                "-c",
                "cat /other && dd if=/dev/zero of=/z bs=1M count=8 &&"
                " sync && sleep 1 && echo 3 > /proc/sys/vm/drop_caches; cat /z > /dev/null",
            )
            is not None
        ),
        "the container answers",
    )
    site.delete("box")


def test_a_container_killed_from_outside_leaves_nothing(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    site.start("box", "sleep 1000", layers=[layer])
    os.kill(int((site.base / "box/pid").read_text()), signal.SIGKILL)
    site.await_end("box")


# ---- keys


def test_a_container_finds_no_key(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET})
    bundle = site.bundle("box", "cat /proc/keys; ls /proc | grep -c '^[0-9]'", layers=[layer])
    config = json.loads((bundle / "config.json").read_text())
    config["linux"].pop("seccomp", None)
    config["linux"]["maskedPaths"] = []
    (bundle / "config.json").write_text(json.dumps(config))
    done = site.runtime("run", "--bundle", bundle, site.id("box"))
    assert "cisfs:" not in done.stdout
    assert int(done.stdout.split()[-1]) < 5


# ---- commit


def test_what_a_container_wrote_can_be_sealed(site: Site) -> None:
    layer = site.layer("layer", {"secret": SECRET, "gone": "x", "dir/file": "y", "dir/kept": "z"})
    script = "rm /gone /dir/file; echo new > /dir/new; ln -s /dir /link; mv /etc /moved; sleep 1000"
    site.start("author", script, layers=[layer])
    wait_until(
        lambda: site.exec("author", "test", "-e", "/moved").returncode == 0, "it has written"
    )
    made = site.base / "made.cis"
    site.must("commit", site.id("author"), "-o", made, "--key-file", site.key, "--quiet")
    site.unlock(made)
    listing = "ls /dir; cat /moved/public; readlink /link; cat /secret; ls /gone /etc"
    done = site.run("box", listing, layers=[made, layer])
    assert done.stdout == f"kept\nnew\npublic\n/dir\n{SECRET}"
    assert "/gone: No such file" in done.stderr
    assert site.exec("author", "cat", "/dir/new").stdout == "new\n"


@pytest.mark.parametrize("kind", ["runtime", "embedded"])
def test_a_container_goes_on_when_its_commit_is_killed(site: Site, kind: str) -> None:
    name, made = site.id("author"), site.base / "made.cis"
    script = "dd if=/dev/urandom of=/f bs=1M count=100; while :; do date >> /growing; done"
    if kind == "runtime":
        site.start("author", script, layers=[site.layer("layer", {"secret": SECRET})])
    else:
        options = ("--name", name, "--store", site.store, "--rootfs", site.rootfs)
        site.must("run", "-d", "--rm", *options, "--", "sh", "-c", script)

    def size() -> int:
        """How large the growing file is, or 0: while the container is paused there is no answer."""
        stat = ("stat", "-c", "%s", "/growing")
        done = site.exec("author", *stat) if kind == "runtime" else site.cisfs("exec", name, *stat)
        return int(done.stdout or 0)

    def is_paused() -> bool:
        if kind == "runtime":
            return '"paused"' in site.runtime("state", name).stdout
        return any(site.base.glob(".made.cis.*"))  # the layer that is being made

    try:
        wait_until(lambda: size() > 0, "it writes", PATIENCE)
        words = [*CISFS, "commit", name, "-o", str(made), "--key-file", str(site.key), "--quiet"]
        with subprocess.Popen(words, env=site.environment) as commit:
            wait_until(is_paused, "it is sealed", PATIENCE)
            commit.kill()
        before = size()
        wait_until(lambda: size() > before, "it goes on", PATIENCE)
    finally:
        if kind == "embedded":
            site.must("rm", "--force", name)


def test_what_cannot_be_committed_is_said(site: Site) -> None:
    made = site.base / "made.cis"
    done = site.cisfs("commit", "unheard-of", "-o", made, "--key-file", site.key)
    assert (done.returncode, made.exists()) == (2, False)
    site.start("box", "sleep 1000", scratch="memory")
    done = site.cisfs("commit", site.id("box"), "-o", made, "--key-file", site.key)
    assert (done.returncode, made.exists()) == (2, False)
    assert "memory" in done.stderr


def test_what_a_container_of_our_own_wrote_can_be_sealed(site: Site) -> None:
    name, made = site.id("author"), site.base / "made.cis"
    script = "echo new > /new; rm /etc/public; while :; do date >> /growing; done"
    options = ("--name", name, "--store", site.store, "--rootfs", site.rootfs)
    site.must("run", "-d", *options, "--", "sh", "-c", script)
    try:
        grows = ("exec", name, "test", "-s", "/growing")
        wait_until(lambda: site.cisfs(*grows).returncode == 0, "it has written")
        site.must("commit", name, "-o", made, "--key-file", site.key, "--quiet")
        size = int(site.must("exec", name, "stat", "-c", "%s", "/growing").stdout)
        wait_until(
            lambda: int(site.must("exec", name, "stat", "-c", "%s", "/growing").stdout) > size,
            "it goes on",
        )
    finally:
        site.must("rm", "--force", name)
    site.unlock(made)
    done = site.run("box", "cat /new; ls /etc; head -n 1 /growing | wc -l", layers=[made])
    assert (done.stdout, done.stderr) == ("new\n1\n", "")
