"""containerd as Kubernetes drives it: the layers are an annotation of the pod."""

from __future__ import annotations

import grpc
import pytest

from tests.engines import hostview
from tests.engines.cri import Kubelet
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.machine import Machine
from tests.engines.secret import Secret

pytestmark = [pytest.mark.root, pytest.mark.fuse]

HANDLER = "cisfs"  # of the RuntimeClass


def annotated(secret: Secret, scratch: str = "ephemeral") -> dict[str, str]:
    """What makes a pod's containers cisfs containers."""
    return {"dev.cisfs.layers": secret.path, "dev.cisfs.scratch": scratch}


@pytest.mark.usefixtures("nothing_left")
def test_a_pod(kubelet: Kubelet, machine: Machine, secret: Secret) -> None:
    with (
        kubelet.pod(annotated(secret), HANDLER) as pod,
        pod.container(BUSYBOX, ["sleep", "1000"]) as container,
    ):
        said = container.exec("cat", "/secret", "/etc/public")
        assert (said.code, said.out) == (0, f"{secret.canary}\n{PUBLIC}".encode())
        assert container.exec("sh", "-c", "echo x >/kept; exit 3").code == 3
        places = ["/run", "/tmp", "/var"]
        for process in hostview.namespaces(machine).values():
            assert not hostview.files_with(process, places, [secret.canary.encode()])
        container.stop()
        assert container.exit_code() == 137


@pytest.mark.usefixtures("nothing_left")
def test_two_containers_of_a_pod(kubelet: Kubelet, secret: Secret) -> None:
    with (
        kubelet.pod(annotated(secret, "memory"), HANDLER) as pod,
        pod.container(BUSYBOX, ["sleep", "1000"]) as one,
        pod.container(BUSYBOX, ["sleep", "1000"]) as two,
    ):
        assert one.exec("sh", "-c", "echo mine >/secret").code == 0
        assert two.exec("cat", "/secret").out == f"{secret.canary}\n".encode()
        one.stop()
        assert two.exec("cat", "/secret").code == 0


@pytest.mark.usefixtures("nothing_left")
def test_layers_of_one_container(kubelet: Kubelet, secret: Secret) -> None:
    """By the variable, and by an annotation of its own."""
    with kubelet.pod({}, HANDLER) as pod:
        with pod.container(BUSYBOX, ["sleep", "9"], env={"CISFS_LAYERS": secret.path}) as one:
            assert one.exec("cat", "/secret").code == 0
        with pod.container(BUSYBOX, ["sleep", "9"], annotated(secret)) as two:
            assert two.exec("cat", "/secret").code == 0
        with pod.container(BUSYBOX, ["sleep", "9"]) as three:
            assert three.exec("cat", "/secret").code == 1


@pytest.mark.usefixtures("nothing_left")
def test_another_handler_knows_nothing(kubelet: Kubelet, secret: Secret) -> None:
    with (
        kubelet.pod(annotated(secret)) as pod,
        pod.container(BUSYBOX, ["sleep", "1000"]) as container,
    ):
        assert container.exec("cat", "/secret").code == 1


@pytest.mark.usefixtures("nothing_left")
def test_a_locked_layer(kubelet: Kubelet, secret: Secret) -> None:
    secret.lock()
    try:
        with (
            kubelet.pod({}, HANDLER) as pod,
            pytest.raises(grpc.RpcError, match=f"cisfs unlock {secret.path}"),
            pod.container(BUSYBOX, ["true"], annotated(secret)),
        ):
            pass
    finally:
        secret.unlock()
