"""Nothing decrypted gets out of a container: not to docker's own commands, the host or the disk.

Two canaries: one in the sealed layer, and one that the container writes, which it is told through
its standard input so that docker does not know it either.
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.engines import hostview
from tests.engines.clients import Client
from tests.engines.images import BUSYBOX
from tests.engines.machine import Machine
from tests.engines.secret import Secret, unlocked
from tests.engines.test_docker import options

pytestmark = [pytest.mark.root, pytest.mark.fuse]

_WRITE = """
cat >/written && cp /written /etc/written && mkdir /dir && mv /written /dir/renamed
echo >>/secret
for i in 1 2 3 4 5 6 7 8; do cat /etc/written /secret; done >/many
cat /many /many /many /many >"/$(cat /etc/written)" && ln -s "$(cat /etc/written)" /link
sync
"""


@dataclass(frozen=True)
class Running:
    """A container that has read and written secrets."""

    dock: Client
    secret: Secret
    written: str  # the canary that it wrote

    @property
    def canaries(self) -> list[bytes]:
        """What must not be seen."""
        return [self.secret.canary.encode(), self.written.encode()]

    def judge(self, said: bytes) -> None:
        """Fail if a canary, which is a file's name, too, is in what docker gave away."""
        assert said
        for needle in self.canaries:
            assert needle not in said


@pytest.fixture(scope="module")
def unseen(machine: Machine) -> Iterator[Secret]:
    """A layer that no container prints anything of: that would be in docker's logs, on the disk."""
    with unlocked(machine, "unseen") as made:
        yield made


@pytest.fixture(params=["ephemeral", "persistent:kept", "memory"])
def running(kept: str, dock: Client, unseen: Secret, request: pytest.FixtureRequest) -> Running:
    assert kept == "persistent:kept"
    made = Running(dock, unseen, secrets.token_hex(24))
    words = ["--detach", "--name=one", *options(unseen, request.param)]
    dock.must("run", *words, BUSYBOX, "sleep", "1000")
    ended = dock("exec", "-i", "one", "sh", "-e", "-c", _WRITE, stdin=made.written)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert dock.must("exec", "one", "cat", "/dir/renamed") == made.written
    return made


def test_dockers_own_ways_to_the_files(running: Running, machine: Machine) -> None:
    dock = running.dock
    assert dock.must("diff", "one") == ""
    saved = machine.memory / "saved.tar"
    dock.must("export", "--output", saved, "one")
    running.judge(saved.read_bytes())
    ended = dock("cp", "one:/secret", machine.memory / "copied")
    assert ended.returncode == 1
    assert not (machine.memory / "copied").exists()
    dock.must("cp", "one:/", machine.memory / "copied")
    copied = "\n".join(str(path) for path in (machine.memory / "copied").rglob("*"))
    running.judge(copied.encode())
    machine.must("rm", "-r", machine.memory / "copied")
    dock.must("commit", "one", "cisfs.test/committed")
    try:
        dock.must("save", "--output", saved, "cisfs.test/committed")
        running.judge(saved.read_bytes())
        judge_layers(running, saved.read_bytes())
    finally:
        dock.must("rmi", "cisfs.test/committed")
    saved.unlink()
    assert dock.must("exec", "one", "cat", "/dir/renamed") == running.written  # still there


def judge_layers(running: Running, saved: bytes) -> None:
    """Look into every file of every layer of a saved image."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as image:
        layers = [member for member in image if member.name.endswith("layer.tar")]
        assert layers
        for member in layers:
            content = image.extractfile(member)
            assert content is not None
            with tarfile.open(fileobj=content) as layer:
                running.judge("\n".join([member.name, *layer.getnames()]).encode())


def test_what_the_host_sees(running: Running, machine: Machine) -> None:
    pid = running.dock.pid("one")
    inside = machine.proc / str(pid)
    assert hostview.files_with(inside, ["/"], running.canaries)  # so that it is there to be found
    mine = hostview.mounted(machine.proc / "1")
    seen = hostview.namespaces(machine)
    assert seen
    for process in seen.values():
        mounted = hostview.mounted(process)
        assert process.name == "1" or mounted == mine, process
        docker = {place for place in mounted if "/docker/" in place}
        places = [*docker, "/run", "/tmp"]
        assert not hostview.files_with(process, places, running.canaries)
    kinds = {kind.split()[0] for kind in mine.values()}
    assert not kinds & {"erofs", "fuse", "fuse.cisfs"}
    assert not [line for line in mine.values() if "/dev/loop" in line and "ext4" not in line]


def test_who_is_told_of_keys(running: Running, machine: Machine) -> None:
    said = hostview.words(machine)
    assert b"dockerd" in said
    told = running.dock.must("inspect", "one").encode() + running.dock.must("info").encode()
    for needle in running.secret.needles:
        assert needle not in said
        assert needle not in told
    assert running.written.encode() not in said + told


def test_what_the_disk_holds(running: Running, machine: Machine) -> None:
    needles = [*running.canaries, *running.secret.key_needles]
    assert machine.disk_has(*needles) == []
    running.dock.must("stop", "--time=0", "one")
    assert machine.disk_has(*needles) == []
    running.dock.clear()
    assert machine.disk_has(*needles) == []


def test_with_plain_runc_all_of_these_find_it(dock: Client, machine: Machine) -> None:
    canary = secrets.token_hex(24)
    dock.must("run", "--detach", "--name=one", BUSYBOX, "sleep", "1000")
    dock("exec", "-i", "one", "sh", "-c", "cat >/written; touch /$(cat /written)", stdin=canary)
    needle = [canary.encode()]
    assert "/written" in dock.must("diff", "one")
    saved = machine.memory / "saved.tar"
    dock.must("export", "--output", saved, "one")
    assert needle[0] in saved.read_bytes()
    dock.must("commit", "one", "cisfs.test/committed")
    dock.must("save", "--output", saved, "cisfs.test/committed")
    dock.must("rmi", "cisfs.test/committed")
    assert needle[0] in saved.read_bytes()
    saved.unlink()
    host = machine.proc / "1"
    docker = [place for place in hostview.mounted(host) if "/docker/" in place]
    assert len(hostview.files_with(host, docker, needle)) == 2
    assert machine.disk_has(*needle) == needle
