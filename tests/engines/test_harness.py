"""The engines themselves, with plain runc: what the other tests in this directory stand on."""

from __future__ import annotations

import secrets
from pathlib import Path

import docker
import pytest

from tests.engines.clients import Client
from tests.engines.cri import Kubelet
from tests.engines.images import BUSYBOX, DEBIAN, PUBLIC
from tests.engines.machine import Machine
from tests.engines.machine import machine as new_machine
from tests.engines.traces import traces
from tests.mount.harness.processes import wait_until

pytestmark = [pytest.mark.root]


def test_docker(dock: Client) -> None:
    assert dock.must("run", "--rm", BUSYBOX, "cat", "/etc/public") == PUBLIC.strip()
    dock.must("run", "--detach", "--name=one", BUSYBOX, "sleep", "1000")
    assert dock("exec", "one", "sh", "-c", "echo x >/kept; exit 7").returncode == 7
    dock.must("stop", "--time=0", "one")
    dock.must("start", "one")
    assert dock.must("exec", "one", "cat", "/kept") == "x"


@pytest.mark.usefixtures("dock")
def test_docker_sdk(docker_api: docker.DockerClient) -> None:
    assert docker_api.containers.run(BUSYBOX, ["cat", "/etc/public"]) == PUBLIC.encode()


def test_docker_runs_a_debian(dock: Client) -> None:
    said = dock.must("run", "--rm", DEBIAN, "bash", "-c", "ls -d /bin /usr/bin && id -un")
    assert said == "/bin\n/usr/bin\nroot"


def test_containers_on_a_network_of_dockers_reach_each_other(dock: Client) -> None:
    dock.must("run", "--detach", "--name=one", BUSYBOX, "httpd", "-f", "-h", "/etc")
    address = dock.inspect("one")["NetworkSettings"]["IPAddress"]
    words = ["run", "--rm", BUSYBOX, "wget", "-q", "-O", "-", f"http://{address}/public"]
    wait_until(lambda: dock(*words).stdout == PUBLIC, "one answers the other")


@pytest.mark.usefixtures("nothing_left")
def test_pods(kubelet: Kubelet) -> None:
    assert kubelet.version().startswith("containerd ")
    with (
        kubelet.pod({"note": "x"}) as pod,
        pod.container(BUSYBOX, ["sleep", "1000"], env={"GIVEN": "it"}) as container,
    ):
        said = container.exec("sh", "-c", "cat /etc/public; echo $GIVEN >&2; exit 3")
        assert (said.code, said.out, said.err) == (3, PUBLIC.encode(), b"it\n")
        assert container.exit_code() is None
        container.stop()
        assert container.exit_code() == 137


def test_podman(pod_man: Client) -> None:
    assert pod_man.must("run", "--rm", BUSYBOX, "cat", "/etc/public") == PUBLIC.strip()
    pod_man.must("run", "--detach", "--name=one", BUSYBOX, "sleep", "1000")
    assert pod_man("exec", "one", "sh", "-c", "echo x >/kept; exit 7").returncode == 7
    pod_man.must("stop", "--time=0", "one")
    pod_man.must("start", "one")
    assert pod_man.must("exec", "one", "cat", "/kept") == "x"


@pytest.mark.usefixtures("nothing_left")
def test_skopeo_and_umoci(machine: Machine) -> None:
    archive = machine.memory / "busybox.tar"
    machine.must("skopeo", "copy", f"docker-archive:{archive}", "oci:/tmp/layout:busybox")
    machine.must("umoci", "unpack", "--image", "/tmp/layout:busybox", "/tmp/bundle")
    assert machine.outside("/tmp/bundle/rootfs/etc/public").read_text() == PUBLIC
    machine.must("rm", "-r", "/tmp/layout", "/tmp/bundle")


def test_a_search_of_the_disk_finds_what_a_container_wrote_and_deleted(
    machine: Machine, dock: Client
) -> None:
    canary = secrets.token_hex(16)
    assert machine.disk_has(canary.encode()) == []
    script = "sed s/x//g >/file; rm /file"
    ended = dock("run", "--rm", "--interactive", BUSYBOX, "sh", "-c", script, stdin=f"x{canary}x")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert machine.disk_has(canary.encode()) == [canary.encode()]


def test_traces_show_what_is_left(machine: Machine, dock: Client) -> None:
    before = traces(machine)
    dock.must("run", "--detach", "--name=one", BUSYBOX, "sleep", "1000")
    machine.outside("/run/cisfs").mkdir(exist_ok=True)
    machine.outside("/run/cisfs/left").touch()
    added = "\n".join(traces(machine).added(before))
    for wanted in ("sleep 1000", "/run/cisfs/left", "/merged overlay", "cpu/cisfs-engines"):
        assert wanted in added
    machine.outside("/run/cisfs/left").unlink()


def test_of_a_machine_nothing_is_left() -> None:
    def seen() -> list[str]:
        """Traces of machines; others on this one may come and go."""
        paths = [*Path("/sys/fs/cgroup").glob("*/*/"), *Path("/run").iterdir()]
        loops = Path("/sys/block").glob("loop*/loop/backing_file")
        lines = [*map(str, paths), *(f"{path}: {path.read_text()}" for path in loops)]
        lines += Path("/proc/self/mountinfo").read_text().splitlines()
        return sorted(line for line in lines if "cisfs-engines-" in line)

    before = seen()
    with new_machine() as made:
        group = Path(f"/sys/fs/cgroup/memory{made.group}")
        group.mkdir()
        made.must(
            "sh", "-c", "echo $$ >$0/cgroup.procs; sleep 1000 >&- 2>&- & mkdir $0/below", group
        )
        made.outside("/etc/left").touch()
        assert len(made.pids("sleep 1000")) == 1
        assert made.must("cat", "/etc/left") == ""
        assert not Path("/etc/left").exists()
        assert seen() != before
    assert seen() == before
