"""podman with --runtime: the layers are an annotation or a variable."""

from __future__ import annotations

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.secret import Secret

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def annotated(secret: Secret, scratch: str = "ephemeral") -> list[str]:
    """What makes a container a cisfs container."""
    return [
        f"--annotation=dev.cisfs.layers={secret.path}",
        f"--annotation=dev.cisfs.scratch={scratch}",
    ]


def test_layers_by_annotation(cisfs_podman: Client, secret: Secret) -> None:
    said = cisfs_podman.must("run", "--rm", *annotated(secret), BUSYBOX, "cat", "/secret")
    assert said == secret.canary


def test_layers_by_variable(cisfs_podman: Client, secret: Secret) -> None:
    words = [f"--env=CISFS_LAYERS={secret.path}", "--env=CISFS_SCRATCH=memory", BUSYBOX]
    said = cisfs_podman.must("run", "--rm", *words, "sh", "-c", "cat /secret /etc/public; env")
    assert said.startswith(f"{secret.canary}\n{PUBLIC}")
    assert "CISFS" not in said


@pytest.mark.parametrize(
    ("scratch", "kept"), [("ephemeral", 1), ("memory", 1), ("persistent:kept", 0)]
)
@pytest.mark.usefixtures("kept")
def test_exec_stop_and_start(cisfs_podman: Client, secret: Secret, scratch: str, kept: int) -> None:
    words = ["--detach", "--name=one", *annotated(secret, scratch)]
    cisfs_podman.must("run", *words, BUSYBOX, "sleep", "1000")
    assert cisfs_podman("exec", "one", "sh", "-c", "echo x >/kept; sync; exit 7").returncode == 7
    cisfs_podman.must("stop", "--time=0", "one")
    cisfs_podman.must("start", "one")
    assert cisfs_podman("exec", "one", "cat", "/kept").returncode == kept
    assert cisfs_podman.must("exec", "one", "cat", "/secret") == secret.canary


def test_a_locked_layer(cisfs_podman: Client, secret: Secret) -> None:
    secret.lock()
    try:
        ended = cisfs_podman("run", "--rm", *annotated(secret), BUSYBOX, "true")
    finally:
        secret.unlock()
    assert ended.returncode == 126  # podman's, for whatever a runtime refuses
    assert f"cisfs unlock {secret.path}" in ended.stderr


def test_diff_and_commit(cisfs_podman: Client, secret: Secret) -> None:
    cisfs_podman.must("run", "--detach", "--name=one", *annotated(secret), BUSYBOX, "sleep", "99")
    cisfs_podman.must("exec", "one", "sh", "-c", "cp /secret /copied")
    changed = cisfs_podman.must("diff", "one")
    assert "secret" not in changed
    assert "copied" not in changed
    exported = cisfs_podman.machine.memory / "exported.tar"
    cisfs_podman.must("export", "--output", exported, "one")
    assert secret.canary.encode() not in exported.read_bytes()
    exported.unlink()
