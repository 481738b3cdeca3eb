"""Kubernetes' side of the Container Runtime Interface: what a kubelet says to containerd.

Speaks a subset, cri.proto, compiled when it is first needed.  Does not know cisfs.  One thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_PATIENCE = 60.0  # seconds for one call
_NODE = 2  # NamespaceMode: the host's network
_EXITED = 2  # ContainerState

messages: Any
services: Any
messages, services = grpc.protos_and_services("tests/engines/cri.proto")


@dataclass(frozen=True)
class Said:
    """What a command in a container came to."""

    code: int
    out: bytes
    err: bytes


class Kubelet:
    """Runs pods of one container."""

    def __init__(self, channel: grpc.Channel, group: str) -> None:
        """`group` is the control group that pods are put below."""
        self._stub = services.RuntimeServiceStub(channel)
        self._images = services.ImageServiceStub(channel)
        self._group = group
        self._count = 0

    def version(self) -> str:
        """The name and version of the engine."""
        found = self._call("Version", messages.VersionRequest(version="v1"))
        return f"{found.runtime_name} {found.runtime_version}"

    @contextlib.contextmanager
    def image(self, name: str) -> Iterator[None]:
        """An image from a registry, until it is removed."""
        spec = messages.ImageSpec(image=name)
        self._images.PullImage(messages.PullImageRequest(image=spec), timeout=_PATIENCE)
        try:
            yield
        finally:
            self._images.RemoveImage(messages.RemoveImageRequest(image=spec), timeout=_PATIENCE)

    @contextlib.contextmanager
    def pod(self, annotations: Mapping[str, str], handler: str = "") -> Iterator[Pod]:
        """A pod on the host's network, from run to removal."""
        self._count += 1
        name = f"pod-{self._count}"
        config = messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(name=name, uid=name, namespace="test"),
            log_directory="/var/log/pods",
            annotations=annotations,
            linux=messages.LinuxPodSandboxConfig(
                cgroup_parent=self._group,
                security_context=messages.LinuxSandboxSecurityContext(
                    namespace_options=messages.NamespaceOption(network=_NODE)
                ),
            ),
        )
        request = messages.RunPodSandboxRequest(config=config, runtime_handler=handler)
        found = self._call("RunPodSandbox", request).pod_sandbox_id
        pod = Pod(self, found, config)
        try:
            yield pod
        finally:
            self._call("StopPodSandbox", messages.StopPodSandboxRequest(pod_sandbox_id=found))
            self._call("RemovePodSandbox", messages.RemovePodSandboxRequest(pod_sandbox_id=found))

    def _call(self, name: str, request: object) -> Any:  # noqa: ANN401 - types made at run time
        return getattr(self._stub, name)(request, timeout=_PATIENCE)


class Pod:
    """A pod that is there."""

    def __init__(self, kubelet: Kubelet, name: str, config: object) -> None:
        """`name` is its id."""
        self._kubelet, self._name, self._config = kubelet, name, config
        self._containers = 0

    @contextlib.contextmanager
    def container(
        self,
        image: str,
        command: Sequence[str],
        annotations: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Container]:
        """A container that has been started, until it is removed."""
        self._containers += 1
        config = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name=f"container-{self._containers}"),
            image=messages.ImageSpec(image=image),
            command=command,
            annotations=annotations or {},
            envs=[messages.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            log_path=f"{self._name}-{self._containers}.log",
            linux=messages.LinuxContainerConfig(
                security_context=messages.LinuxContainerSecurityContext(
                    namespace_options=messages.NamespaceOption(network=_NODE)
                )
            ),
        )
        request = messages.CreateContainerRequest(
            pod_sandbox_id=self._name, config=config, sandbox_config=self._config
        )
        made = Container(self._kubelet, self._call("CreateContainer", request).container_id)
        try:
            self._call("StartContainer", messages.StartContainerRequest(container_id=made.name))
            yield made
        finally:
            self._call("RemoveContainer", messages.RemoveContainerRequest(container_id=made.name))

    def _call(self, name: str, request: object) -> Any:  # noqa: ANN401 - types made at run time
        return self._kubelet._call(name, request)


class Container:
    """A container of a pod."""

    def __init__(self, kubelet: Kubelet, name: str) -> None:
        """`name` is its id."""
        self._kubelet = kubelet
        self.name = name

    def exec(self, *command: str) -> Said:
        """Run a command in it to its end."""
        request = messages.ExecSyncRequest(container_id=self.name, cmd=command, timeout=30)
        found = self._kubelet._call("ExecSync", request)
        return Said(found.exit_code, found.stdout, found.stderr)

    def stop(self, seconds: int = 0) -> None:
        """SIGTERM, and SIGKILL after so many seconds."""
        request = messages.StopContainerRequest(container_id=self.name, timeout=seconds)
        self._kubelet._call("StopContainer", request)

    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        request = messages.ContainerStatusRequest(container_id=self.name)
        status = self._kubelet._call("ContainerStatus", request).status
        return int(status.exit_code) if status.state == _EXITED else None


@contextlib.contextmanager
def kubelet(sock: Path, group: str) -> Iterator[Kubelet]:
    """A connection to a socket of containerd's."""
    with grpc.insecure_channel(f"unix://{sock}") as channel:
        yield Kubelet(channel, group)
