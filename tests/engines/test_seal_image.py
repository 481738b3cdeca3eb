"""`cisfs seal docker-daemon:`: the top layer of an image of docker's, and what it runs as then."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator

import pytest

from tests.engines.clients import Client
from tests.engines.images import BUSYBOX, PUBLIC
from tests.engines.secret import STORE, Secret

pytestmark = [pytest.mark.root, pytest.mark.fuse]

_APP, _REST = "cisfs.test/app:1", "cisfs.test/app-public:1"
_MADE = f"{STORE}/made.cis"
_AUTHOR = "cat >/token && chown app /token && chmod 640 /token && rm -r /home && mkdir /home"
_READ = "stat -c '%U %a' /token; cat /token; ls -A /home; cat /etc/public; echo $DB_PASSWORD"


@pytest.fixture
def app(dock: Client) -> Iterator[str]:
    """An image with a secret in its top layer, and one in its configuration; returns the first."""
    canary = secrets.token_hex(24)
    dock.must("create", "--name=one", "--interactive", BUSYBOX, "sh", "-e", "-c", _AUTHOR)
    assert dock("start", "--attach", "--interactive", "one", stdin=canary).returncode == 0
    dock.must("commit", "--change", "ENV DB_PASSWORD=hunter2", "one", _APP)
    yield canary
    dock.clear()
    dock("image", "rm", _APP, _REST)
    dock.machine.cisfs("lock", _MADE)
    dock.machine.outside(_MADE).unlink(missing_ok=True)
    shutil.rmtree(dock.machine.memory / "public", ignore_errors=True)


@pytest.mark.usefixtures("nothing_left")
def test_what_ran_whole_runs_divided(dock: Client, app: str, secret: Secret) -> None:
    machine = dock.machine
    whole = dock.must("run", "--rm", _APP, "sh", "-c", _READ)
    assert whole == f"app 640\n{app}{PUBLIC}hunter2"
    public = f"oci:{machine.memory / 'public'}:app"
    key = ["--key-file", str(secret.key_file)]
    ended = machine.cisfs(
        *("seal", f"docker-daemon:{_APP}", "--all-but", f"docker-daemon:{BUSYBOX}"),
        *("-o", _MADE, "--public", public, "--scrub", *key),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "sealed 1 layer as " in ended.stdout
    machine.must("skopeo", "--insecure-policy", "copy", "-q", public, f"docker-daemon:{_REST}")
    assert "hunter2" not in dock.must("image", "inspect", _REST)
    without = dock("run", "--rm", _REST, "sh", "-c", _READ)
    assert "can't stat '/token'" in without.stderr
    assert app not in without.stdout
    assert machine.cisfs("unlock", *key, _MADE).returncode == 0
    words = ["--runtime=cisfs", f"--env=CISFS_LAYERS={_MADE}", _REST, "sh", "-c", _READ]
    assert dock.must("run", "--rm", *words) == whole


@pytest.mark.usefixtures("nothing_left")
def test_an_image_that_docker_does_not_have(dock: Client, secret: Secret) -> None:
    words = ["seal", "docker-daemon:no/such:1", "--top", "1", "-o", _MADE]
    ended = dock.machine.cisfs(*words, "--key-file", secret.key_file)
    assert ended.returncode == 1
    assert ended.stderr.startswith("cisfs: image no/such:1: docker: ")
    assert ended.stderr.count("\n") == 1
