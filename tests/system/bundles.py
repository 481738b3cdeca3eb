"""OCI bundles for the tests of `cisfs-runtime` with no engine at all, and what one leaves behind.

Judges by the kernel's own eyes.  Needs root and runc.  One test at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import processes
from tests.mount.harness.processes import wait_until

PATIENCE = 30.0  # seconds
RUNTIME = [sys.executable, "-m", "cisfs.runtime.oci.main"]
CISFS = [sys.executable, "-m", "cisfs"]
CONTAINERS = Path("/run/cisfs/containers")

Ended = subprocess.CompletedProcess[str]


class Site:
    """Where a test works: a store, a key, a public root filesystem, bundles."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.store, self.rootfs, self.key = base / "store", base / "rootfs", base / "key"
        self.store.mkdir()
        self.key.touch(0o600)
        self.key.write_bytes(secrets.token_bytes(32))
        (self.rootfs / "bin").mkdir(parents=True)
        (self.rootfs / "etc").mkdir()
        (self.rootfs / "etc/public").write_text("public\n")
        shutil.copy2("/bin/busybox", self.rootfs / "bin/busybox")
        subprocess.run(
            ["chroot", self.rootfs, "/bin/busybox", "--install", "-s", "/bin"], check=True
        )
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}
        self._locked: list[Path] = []
        self._containers: list[str] = []

    # -- layers ------------------------------------------------------------------------------

    def layer(self, name: str, files: dict[str, str], *, unlock: bool = True) -> Path:
        """Seal a layer of some files."""
        source, path = self.base / f"{name}.source", self.base / f"{name}.cis"
        for file, text in files.items():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_text(text)
        self.must("seal", source, "-o", path, "--key-file", self.key)
        shutil.rmtree(source)
        if unlock:
            self.unlock(path)
        return path

    def unlock(self, path: Path) -> None:
        """Unlock a layer until the test's end."""
        self.must("unlock", path, "--key-file", self.key)
        self._locked.append(path)

    def lock(self, path: Path) -> None:
        """Lock a layer."""
        self.must("lock", path)
        self._locked.remove(path)

    # -- commands ----------------------------------------------------------------------------

    def cisfs(self, *words: str | Path) -> Ended:
        """Run a command of cisfs to its end."""
        return self._run([*CISFS, *map(str, words)])

    def must(self, *words: str | Path) -> Ended:
        """Run a command that has to succeed."""
        ended = self.cisfs(*words)
        assert ended.returncode == 0, ended
        return ended

    def runtime(self, *words: str | Path, log: Path | None = None) -> Ended:
        """Run `cisfs-runtime` to its end."""
        logging = ["--log", str(log), "--log-format", "json"] if log else []
        return self._run([*RUNTIME, "--store", str(self.store), *logging, *map(str, words)])

    def _run(self, words: Sequence[str]) -> Ended:
        # Files, not pipes: what a container keeps open must not be waited for.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                env=self.environment,
                timeout=PATIENCE,
                check=False,
                cwd=Path.cwd(),
            )
            out.seek(0)
            complaints.seek(0)
            ended = subprocess.CompletedProcess(
                done.args, done.returncode, out.read(), complaints.read()
            )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    # -- containers --------------------------------------------------------------------------

    def id(self, name: str) -> str:
        """The id of a container, unlike that of any other test's."""
        return f"{name}.{self.base.name}"

    def bundle(
        self,
        name: str,
        script: str,
        *,
        layers: Sequence[Path | str] = (),
        scratch: str = "",
        annotations: dict[str, str] | None = None,
        read_only: bool = False,
    ) -> Path:
        """Make a bundle that runs a shell script."""
        path = self.base / name
        path.mkdir(exist_ok=True)
        (path / "config.json").unlink(missing_ok=True)
        subprocess.run(["runc", "spec", "--bundle", str(path)], check=True)
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        config["process"]["terminal"] = False
        config["process"]["args"] = ["sh", "-c", script]
        config["root"] = {"path": str(self.rootfs), "readonly": read_only}
        config["annotations"] = annotations or {}
        if layers:
            config["process"]["env"].append(f"CISFS_LAYERS={','.join(map(str, layers))}")
        if scratch:
            config["process"]["env"].append(f"CISFS_SCRATCH={scratch}")
        (path / "config.json").write_text(json.dumps(config))
        return path

    def run(self, name: str, script: str, **options: Any) -> Ended:
        """Run a container to its end."""
        bundle = self.bundle(name, script, **options)
        return self.runtime("run", "--bundle", bundle, self.id(name))

    def start(self, name: str, script: str, **options: Any) -> None:
        """Create and start a container."""
        bundle = self.bundle(name, script, **options)
        created = self.runtime(
            "create", "--bundle", bundle, "--pid-file", bundle / "pid", self.id(name)
        )
        self._containers.append(name)
        assert created.returncode == 0, created
        started = self.runtime("start", self.id(name))
        assert started.returncode == 0, started

    def exec(self, name: str, *words: str) -> Ended:
        """Run a command in a container."""
        return self.runtime("exec", self.id(name), *words)

    def delete(self, name: str, *, forgotten: bool = True) -> None:
        """Kill and delete a container, and wait until nothing of it is left."""
        self._containers.remove(name)
        found = [each for each in self.records() if each["container"] == self.id(name)]
        ended = self.runtime("delete", "--force", self.id(name))
        assert ended.returncode == 0, ended
        if forgotten:
            self.await_end(name)
        for record in found:
            wait_until(partial(is_free, record["device"]), "the loop device is free", PATIENCE)

    def await_end(self, name: str) -> None:
        """Wait until a container is forgotten."""
        wait_until(
            lambda: not any(each["container"] == self.id(name) for each in self.records()),
            f"{name} is forgotten",
            PATIENCE,
        )

    def record(self, name: str) -> dict[str, Any]:
        """What is recorded of a container."""
        (found,) = (each for each in self.records() if each["container"] == self.id(name))
        return found

    def records(self) -> list[dict[str, Any]]:
        """All records of containers."""
        if not CONTAINERS.exists():
            return []
        found = [path / "record.json" for path in CONTAINERS.glob(f"*{self.base.name}*")]
        return [json.loads(path.read_text()) for path in found if path.exists()]

    def close(self) -> None:
        """End what is left."""
        for name in list(self._containers):
            self.delete(name)
        for path in list(self._locked):
            self.lock(path)


@contextmanager
def site_in(base: Path) -> Iterator[Site]:
    """A site that is closed at the end, and has left nothing behind."""
    if os.geteuid() != 0:
        pytest.fail("these tests start containers: run them as root (scripts/test does)")
    base.chmod(0o755)
    site = Site(base)
    before = traces(base)
    try:
        yield site
    finally:
        site.close()
    wait_until(lambda: traces(base)["processes"] == [], "no process is left")
    after = traces(base)
    assert {**after, "nameless files": []} == {**before, "nameless files": []}


def traces(base: Path) -> dict[str, list[str]]:
    """What a test below `base` can leave behind, as the host sees it."""
    ours = (str(base), str(CONTAINERS))
    return {
        "mounts": [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if any(word in line for word in ours)
        ],
        "processes": sorted(
            f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
            for pid in processes.mentioning(base.name)
            if processes.alive(pid)
        ),
        "containers": sorted(str(path) for path in CONTAINERS.glob("*") if base.name in path.name),
        "nameless files": sorted(map(str, (base / "store").rglob("*"))),
    }


def is_free(device: str | None) -> bool:
    """Whether a loop device has no file; None is no device."""
    return device is None or not Path(f"/sys/block/{Path(device).name}/loop").exists()
