"""A container that hunts for keys, and for what else the host has."""

from __future__ import annotations

import pytest

from tests.engines.clients import Client
from tests.engines.cri import Kubelet
from tests.engines.images import DEBIAN
from tests.engines.secret import Secret
from tests.engines.test_docker import run

pytestmark = [pytest.mark.root, pytest.mark.fuse]

# add_key, request_key and keyctl by their numbers, as cisfs would find its keys.
_KEYS = r"""
my ($add, $request, $keyctl) = `uname -m` =~ /aarch64/ ? (217, 218, 219) : (248, 249, 250);
my ($user, $mine, $name, $ring, $ours) = ("user", "mine", "cisfs:", "keyring", "cisfs");
sub told { my ($what, $result) = @_; print "$what ", ($result == -1 ? "no: $!" : "yes"), "\n"; }
told("add", syscall($add, $user, $mine, $mine, 1, -2));
told("request", syscall($request, $user, $name, 0, 0));
told("session", syscall($keyctl, 1, 0));
told("link", syscall($keyctl, 8, -4, -1));
told("search", syscall($keyctl, 10, -4, $ring, $ours, 0));
told("read", syscall($keyctl, 11, -4, 0, 0));
told("x32", syscall($keyctl | 0x40000000, 11, -4, 0, 0));
"""


def judge(said: str) -> None:
    """Every call is refused, or not there at all."""
    lines = said.splitlines()
    assert len(lines) == 7, said
    refused = ("no: Operation not permitted", "no: Function not implemented")
    assert all(line.endswith(refused) for line in lines), lines


@pytest.mark.parametrize("more", ["--cap-drop=ALL", "--security-opt=seccomp=unconfined"])
def test_the_keyring_is_out_of_reach(dock: Client, secret: Secret, more: str) -> None:
    judge(run(dock, secret, more, DEBIAN, "perl", "-e", _KEYS).stdout)


def test_the_keyring_is_out_of_reach_in_pods(kubelet: Kubelet, secret: Secret) -> None:
    with (
        kubelet.pod({"dev.cisfs.layers": secret.path}, "cisfs") as pod,
        pod.container(DEBIAN, ["sleep", "1000"]) as container,
    ):
        judge(container.exec("perl", "-e", _KEYS).out.decode())


def test_the_keyring_is_out_of_reach_under_podman(cisfs_podman: Client, secret: Secret) -> None:
    named = f"--annotation=dev.cisfs.layers={secret.path}"
    judge(cisfs_podman.must("run", "--rm", named, DEBIAN, "perl", "-e", _KEYS))


def test_proc_tells_nothing(dock: Client, secret: Secret) -> None:
    script = "ls /proc | grep -c '^[0-9]'; cat /proc/keys; cat /proc/[0-9]*/cmdline; mount; env"
    ended = run(dock, secret, DEBIAN, "bash", "-c", script)
    assert int(ended.stdout.splitlines()[0]) <= 4, ended.stdout  # its own
    assert "cisfs:" not in ended.stdout
    assert secret.name not in ended.stdout


def test_mountinfo_leads_nowhere(dock: Client, secret: Secret) -> None:
    """The overlay's own options name directories, and none of them is there for the container."""
    ended = run(dock, secret, DEBIAN, "cat", "/proc/self/mountinfo")
    (root,) = [line for line in ended.stdout.splitlines() if line.split()[4] == "/"]
    kinds = {line.partition(" - ")[2].split()[0] for line in ended.stdout.splitlines()}
    assert not kinds & {"erofs", "fuse", "fuse.cisfs"}
    places = root.partition(" - ")[2].split()[2].split(",")
    named = [each.partition("=")[2] for each in places if "dir=" in each]
    paths = [path for each in named for path in each.split(":") if path.startswith("/")]
    script = 'for p in "$@"; do [ ! -e "$p" ] || echo "$p"; done'
    assert run(dock, secret, DEBIAN, "bash", "-c", script, "bash", *paths).stdout == ""


def test_no_device_and_no_descriptor_is_left_to_it(dock: Client, secret: Secret) -> None:
    script = "ls -l /proc/1/fd/ /dev; ls /dev/fuse /dev/loop* /sys/fs/fuse/connections"
    ended = run(dock, secret, DEBIAN, "bash", "-c", script)
    assert "/dev/fuse" not in ended.stdout
    assert "loop" not in ended.stdout
    assert "cisfs" not in ended.stdout
