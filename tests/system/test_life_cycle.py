"""The life of containers whose layers are unlocked for a while: `lock --stop`, `unlock --stop`.

Containers of `cisfs-runtime` with no engine at all, and of the embedded engine.  Needs root and
runc.  After every test nothing may be left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.keys import keyring
from cisfs.keys.credentials import RawKey
from cisfs.layer.opening import key_id, master_key
from cisfs.runtime.oci import stopping
from tests.mount.harness.processes import wait_until
from tests.system.bundles import CISFS, RUNTIME, Site, site_in

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SECRET = "the launch code\n"
DEAF = "trap '' TERM; echo up > /tmp/up; while :; do sleep 0.1; done"
POLITE = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as made:
        (made.rootfs / "tmp").mkdir()
        yield made


@pytest.fixture
def layer(site: Site) -> Path:
    return site.layer("layer", {"secret": SECRET})


def is_running(site: Site, name: str) -> bool:
    state = site.runtime("state", site.id(name))
    return state.returncode == 0 and json.loads(state.stdout)["status"] == "running"


# ---- our own containers


def detach(site: Site, layer: Path, script: str, *options: str) -> str:
    words: list[str | Path] = [
        "run",
        "-d",
        "--name",
        site.id("ours"),
        "--layer",
        layer,
        "--rootfs",
        site.rootfs,
    ]
    words += ["--scratch", "memory", *options]
    return site.must(*words, "--", "sh", "-c", script).stdout.strip()


def listed(site: Site) -> list[dict[str, Any]]:
    found = json.loads(site.must("ps", "-a", "--json").stdout)
    return [each for each in found if each["name"] == site.id("ours")]


@pytest.fixture
def ours(site: Site) -> Iterator[str]:
    """The name of the container of ours, which is gone in the end."""
    yield site.id("ours")
    if listed(site):
        site.must("rm", "--force", site.id("ours"))


# ---- lock --stop


def test_locking_stops_who_uses_the_layer_and_nobody_else(
    site: Site, layer: Path, ours: str
) -> None:
    other = site.layer("other", {"secret": SECRET})
    site.start("box", "sleep 1000", layers=[layer])
    site.start("bystander", "sleep 1000", layers=[other])
    detach(site, layer, POLITE)
    wait_until(lambda: "up" in site.must("logs", ours).stdout, "ours is up")
    said = site.must("lock", "--stop", layer).stdout.splitlines()
    assert said[0] == f"locked {layer}"
    assert sorted(said[1:]) == sorted([f"stopped {site.id('box')}", f"stopped {ours}"])
    assert not is_running(site, "box")
    assert [each["container"] for each in site.records()] == [site.id("bystander")]
    assert is_running(site, "bystander")
    (state,) = listed(site)
    assert (state["status"], state["exit_code"]) == ("exited", 3)
    again = site.run("again", "cat /secret", layers=[layer])
    assert again.returncode == 1
    assert f"cisfs unlock {layer}" in again.stderr
    site.unlock(layer)


def test_what_does_not_end_when_asked_is_killed(site: Site, layer: Path) -> None:
    site.start("box", DEAF, layers=[layer])
    wait_until(lambda: site.exec("box", "test", "-e", "/tmp/up").returncode == 0, "it is deaf")
    assert f"stopped {site.id('box')}" in site.must("lock", "--stop", "--time=0.5", layer).stdout
    assert site.records() == []


def test_without_its_keeper_a_container_is_stopped_all_the_same(site: Site, layer: Path) -> None:
    site.start("box", "sleep 1000", layers=[layer])
    os.kill(site.record("box")["keeper"], signal.SIGKILL)
    assert f"stopped {site.id('box')}" in site.must("lock", "--stop", layer).stdout
    assert not is_running(site, "box")
    site.delete("box", forgotten=False)
    site.must("unlock", layer, "--key-file", site.key)
    site.run("other", "true", layers=[layer])  # forgets what the keeper could not


def test_a_layer_that_was_moved_is_known_by_its_key(site: Site, layer: Path) -> None:
    site.start("box", "sleep 1000", layers=[layer])
    moved = layer.rename(site.base / "moved.cis")
    assert f"stopped {site.id('box')}" in site.must("lock", "--stop", moved).stdout
    moved.rename(layer)


def test_a_paused_container_is_stopped(site: Site, layer: Path) -> None:
    site.start("box", "sleep 1000", layers=[layer])
    assert site.runtime("pause", site.id("box")).returncode == 0
    assert f"stopped {site.id('box')}" in site.must("lock", "--stop", layer).stdout


def test_a_container_that_goes_on_is_an_error_that_names_it(
    site: Site, layer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody on the host is in its mount namespace."""
    site.start("box", "sleep 1000", layers=[layer])
    init = json.loads(site.runtime("state", site.id("box")).stdout)["pid"]
    monkeypatch.setattr(stopping, "_LAST_PATIENCE", 0.5)
    inside = subprocess.Popen(
        ["nsenter", "-t", str(init), "-m", "--", "/bin/busybox", "sleep", "1000"]
    )
    try:
        wait_until(
            lambda: (
                os.readlink(f"/proc/{inside.pid}/ns/mnt") == os.readlink(f"/proc/{init}/ns/mnt")
            ),
            "somebody is inside",
        )
        assert main(["lock", "--stop", str(layer)]) == 1
        said = capsys.readouterr()
        assert said.out == f"locked {layer}\n"
        assert said.err.startswith(f"cisfs: container {site.id('box')} does not end: ")
    finally:
        inside.kill()
        inside.wait()


@pytest.mark.parametrize("options", [[], ["--loop-device"]])
def test_mounts_are_named_and_stay(site: Site, layer: Path, options: list[str]) -> None:
    mountpoint = site.base / "open"
    mountpoint.mkdir()
    site.must("mount", *options, layer, mountpoint)
    try:
        said = site.must("lock", "--stop", layer).stdout
        assert said == f"locked {layer}\nstill mounted at {mountpoint}: {layer}\n"
        (state,) = json.loads(site.must("status", "--json", layer).stdout)
        assert (state["state"], state["mounted"]) == ("locked", [str(mountpoint)])
        assert (mountpoint / "secret").read_text() == SECRET
    finally:
        site.must("umount", mountpoint)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_container_in_the_middle_of_its_start_is_stopped(
    site: Site, layer: Path, ours: str, is_ours: bool
) -> None:
    """Whenever the key goes, nothing runs a moment later: locked at another instant each time."""
    bundle = site.bundle("box", "sleep 1000", layers=[layer])
    of_runtime = [*RUNTIME, "--store", site.store, "run", "--bundle", bundle, site.id("box")]
    of_ours = ["run", "--name", ours, "--layer", layer, "--rootfs", site.rootfs, "--scratch=memory"]
    words = [*CISFS, *of_ours, "--", "sleep", "1000"] if is_ours else of_runtime
    secret = master_key(layer, RawKey(site.key.read_bytes()))
    for tens in range(8, 36):
        keyring.store(key_id(layer), secret, 60)
        with subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL) as process:
            time.sleep(tens / 100)
            try:
                assert main(["lock", "--stop", str(layer)]) == 0
                assert process.wait(20) != 0
            finally:
                process.kill()
        assert site.records() == []


# ---- unlock --stop


def test_when_the_time_is_up_containers_end(site: Site, layer: Path, ours: str) -> None:
    site.must("unlock", "--timeout=3s", "--stop", layer, "--key-file", site.key)
    site.start("box", "sleep 1000", layers=[layer])
    detach(site, layer, POLITE)
    wait_until(lambda: "up" in site.must("logs", ours).stdout, "ours is up")
    assert site.exec("box", "cat", "/secret").stdout == SECRET
    site.await_end("box")
    wait_until(lambda: listed(site)[0]["status"] == "exited", "ours has ended")
    assert not is_running(site, "box")
    assert site.must("logs", ours).stdout.splitlines() == [
        "up",
        "bye",
        "cisfs: the container was stopped: the time for which its layers were unlocked is up",
    ]
    assert keyring.find(key_id(layer)) is None
    assert site.run("again", "true", layers=[layer]).returncode == 1


def test_what_is_unlocked_anew_goes_on(site: Site, layer: Path) -> None:
    site.must("unlock", "--timeout=2s", "--stop", layer, "--key-file", site.key)
    site.start("box", "sleep 1000", layers=[layer])
    terms = keyring.terms(key_id(layer))
    assert terms is not None
    site.must("unlock", "--timeout=1h", "--stop", layer, "--key-file", site.key)
    wait_until(lambda: time.time() > terms.until + 1, "the first time is over")
    assert is_running(site, "box")


def test_locking_alone_puts_off_no_end(site: Site, layer: Path) -> None:
    site.must("unlock", "--timeout=3s", "--stop", layer, "--key-file", site.key)
    site.start("box", "sleep 1000", layers=[layer])
    site.must("lock", layer)
    assert is_running(site, "box")
    site.await_end("box")
