"""`cisfs commit`: a container's writes become a layer, on a disk that never sees them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.machine import Ended, Machine
from tests.engines.secret import STORE, Secret
from tests.engines.test_docker import start

pytestmark = [pytest.mark.root, pytest.mark.fuse]

_AUTHOR = """
cat >/token && chown app /token && chmod 640 /token
mkdir /opt && cp /token "/opt/$(cat /token)" && ln /token /opt/hard && ln -s /token /opt/soft
rm /secret && rm -r /home && mkdir /home && echo mine >/home/mine
echo more >>/etc/public
"""
_READ = """exec 2>/dev/null
stat -c '%U %a %h' /token; ls /opt | wc -l; readlink /opt/soft; ls /secret /home; cat /etc/public
"""


def commit(machine: Machine, secret: Secret, made: str) -> Ended:
    """Seal what the container "one" has written, with the key of a layer."""
    return machine.cisfs("commit", "one", "-o", made, "--key-file", secret.key_file)


@pytest.fixture
def made(dock: Client) -> Iterator[str]:
    """Where a layer is to be made, which is gone before the container is."""
    machine = dock.machine
    yield f"{STORE}/made.cis"
    machine.cisfs("lock", f"{STORE}/made.cis")
    machine.outside(f"{STORE}/made.cis").unlink(missing_ok=True)


@pytest.mark.parametrize("scratch", ["ephemeral", "persistent:kept"])
@pytest.mark.usefixtures("kept")
def test_what_was_written_is_there_again(
    dock: Client, made: str, machine: Machine, secret: Secret, scratch: str
) -> None:
    canary = secrets.token_hex(24)
    start(dock, secret, scratch=scratch)
    ended = dock("exec", "-i", "one", "sh", "-e", "-c", _AUTHOR, stdin=canary)
    assert (ended.returncode, ended.stderr) == (0, "")
    before = dock("exec", "one", "sh", "-c", _READ).stdout
    assert before == f"app 640 2\n3\n/token\n/home:\nmine\n{PUBLIC}more\n"
    assert commit(machine, secret, made).returncode == 0
    assert dock("exec", "one", "sh", "-c", _READ).stdout == before  # it goes on
    dock.clear()
    assert machine.cisfs("unlock", "--key-file", secret.key_file, made).returncode == 0
    layers = f"--env=CISFS_LAYERS={made},{secret.path}"
    dock.must("run", "--detach", "--name=one", "--runtime=cisfs", layers, BUSYBOX, "sleep", "99")
    assert dock("exec", "one", "sh", "-c", _READ).stdout == before
    assert dock("exec", "one", "cat", "/token").stdout == canary
    assert machine.disk_has(canary.encode()) == []


@pytest.mark.parametrize("scratch", ["memory", "none"])
def test_there_may_be_nothing_to_seal(
    dock: Client, made: str, secret: Secret, scratch: str
) -> None:
    start(dock, secret, scratch=scratch)
    ended = commit(dock.machine, secret, made)
    assert ended.returncode == 2
    assert scratch in ended.stderr
    assert not dock.machine.outside(made).exists()
