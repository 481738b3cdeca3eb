"""No secret where it can be seen: one long scenario with every kind of key, watched and searched.

Each search finds secrets that were planted for it, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.mount.harness import linux
from tests.mount.harness.processes import alive, mentioning, wait_until
from tests.system.canaries import Canaries, Watcher, spellings
from tests.system.secrets_stage import (
    BUG,
    RUN,
    Stage,
    assert_private,
    dumps_to_files,
    is_dead,
    servers,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.skipif(shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed"),
]

_SEEN_INSIDE = ("/proc/1/environ", "/proc/1/cmdline", "/proc/self/environ", "/proc/mounts")
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT, signal.SIGTRAP)


@pytest.fixture
def stage() -> Iterator[Stage]:
    if os.geteuid() != 0:
        pytest.fail("these tests mount: run them as root (scripts/test does)")
    base = Path(tempfile.mkdtemp(prefix="cisfs-secrets-test-", dir="/run"))
    linux.mount("cisfs-test", base, "tmpfs", 0, "mode=0755")
    try:
        made = Stage(base)
        yield made
        wait_until(lambda: not of(base), "all of them have ended", patience=15)
        subprocess.run(["umount", made.disk], check=True)
        assert [each.path for each in linux.mounts_below(base)] == [base]
    finally:
        for pid in of(base):
            os.kill(pid, signal.SIGKILL)
        linux.detach_all(base)
        base.rmdir()


def of(base: Path) -> list[int]:
    return [pid for pid in mentioning(str(base)) if alive(pid)]


def test_the_search_finds_every_spelling(tmp_path: Path) -> None:
    for number in range(40):
        secret = secrets.token_bytes(32)
        for spelling, needle in spellings(secret).items():
            assert len(needle) >= 16, spelling
        for before in range(3):
            text = b64encode(bytes(before) + secret + b"more")
            for spelled in (text, secret.hex().encode(), repr(secret).encode(), secret[16:]):
                path = tmp_path / f"{number}"
                path.write_bytes(b"x" * 1000 + spelled + b"x")
                canaries = Canaries({"it": secret, "another": secrets.token_bytes(32)})
                canaries.search_tree(tmp_path)
                assert list(canaries.found) == ["it"]
                path.unlink()


def test_nothing_of_a_secret_is_seen_anywhere(stage: Stage) -> None:
    cores = stage.cores()
    found: dict[str, set[str]] = {}
    with planted(stage), Watcher(RUN) as watcher:
        for act in (make, change, use, fail, crash):
            act(stage)
            found.update(stage.searched())  # before others are written over what was deleted
    assert stage.cores() == cores
    deleted = stage.work / "deleted"
    deleted.write_bytes(stage.planted["deleted file"] * 1000)
    deleted.unlink()
    found.update(stage.searched())  # before the core is written over it
    stage.dies_with(stage.planted["core"])
    assert (stage.cores() != cores) == dumps_to_files()
    found.update(stage.searched(watcher))
    wrong = {name: where for name, where in found.items() if name not in stage.planted}
    assert wrong == {}
    expected = set(stage.planted) if dumps_to_files() else set(stage.planted) - {"core"}
    assert set(found) == expected
    print(
        f"{watcher.passes} passes, {len(watcher.said)} texts, {stage.commands} commands, "
        f"{len(stage.hidden)} secrets"
    )


@contextlib.contextmanager
def planted(stage: Stage) -> Iterator[None]:
    """Secrets where none may be, each in another spelling."""
    secret = stage.planted
    (stage.work / "planted").write_bytes(b"x" + secret["file"])
    (stage.logs / "planted").write_text(f"the key is {list(secret['log'])}")
    words = [sys.executable, "-c", "import time; time.sleep(1000)", secret["argv"].hex()]
    environment = {"PLANTED": b64encode(secret["environment"]).decode()}
    with subprocess.Popen(words, env=environment) as process:
        try:
            yield
        finally:
            process.kill()


# ---- the scenario


def make(stage: Stage) -> None:
    """A sealed layer and a vault with every kind of key, and private keys of ours."""
    keys, passwords = stage.keys, stage.keys.base
    signing = passwords / "signing.key"
    source = passwords / "ec.password"
    stage.cisfs("keygen", "--signing", "-o", signing, "--passphrase-file", source)
    loaded = load_pem_private_key(signing.read_bytes(), source.read_bytes())
    assert isinstance(loaded, Ed25519PrivateKey)
    stage.hidden["signing key"] = loaded.private_bytes_raw()
    recipients = [*keys.recipients, "-r", f"key-file:{stage.key_file}"]
    sign = ["--sign", f"{signing}:file={source}"]
    stage.cisfs("seal", stage.source, "-o", stage.layer, *recipients, *sign)
    stage.cisfs("init", stage.vault, *recipients)
    for path in (stage.layer, stage.vault):
        stage.note(path)
    stage.cisfs("sign", stage.layer, "--key", f"{signing}:file={source}")
    stage.cisfs("verify", stage.layer, "--signer", f"{signing}.pub")
    stage.cisfs("inspect", "--json", stage.layer)


def change(stage: Stage) -> None:
    """The keys of both: added, removed, rotated."""
    friend = stage.keys.base / "friend.key"
    command = f"cat {stage.keys.base / 'rsa.password'}"
    stage.cisfs("keygen", "-o", friend, "--passphrase-command", command)
    for path in (stage.layer, stage.vault):
        for opener in ("rsa", "pkcs11", "provider", "passphrase"):
            said = stage.cisfs("key", "add", path, "-r", f"{friend}.pub", *stage.options(opener))
            stage.cisfs("key", "list", "--json", path)
            stage.cisfs("key", "remove", path, said.split()[0], *stage.options("age"))
        words = next(
            line.split()[0]
            for line in stage.cisfs("key", "list", path).splitlines()
            if line.split()[1] == "passphrase"
        )
        fresh = ["-r", stage.keys.kinds["passphrase"].recipient, "--drop", words]
        stage.cisfs("key", "rotate", path, "--key-file", stage.key_file, *fresh)
        stage.note(path)


def use(stage: Stage) -> None:
    """Mounts and containers, with each kind of key and without one."""
    for kind in stage.keys.kinds:
        stage.cisfs("verify", stage.layer, *stage.options(kind))
    for path in (stage.layer, stage.vault):
        log = ["--log-file", str(stage.logs / f"{path.name}.log")]
        stage.cisfs("mount", path, stage.open, *stage.options("passphrase"), *log)
        try:
            for server in servers(path):
                assert_private(server)
            if path == stage.vault:
                (stage.open / "secret").write_bytes(stage.hidden["content"] * 1000)
            assert (stage.open / "secret").read_bytes() == stage.hidden["content"] * 1000
            stage.cisfs("status")
        finally:
            stage.cisfs("umount", stage.open)
    unlock(stage)
    contain(stage)


def unlock(stage: Stage) -> None:
    for path in (stage.layer, stage.vault):
        stage.cisfs("unlock", path, "--timeout=5m", *stage.options("pkcs11"))
        try:
            stage.cisfs("status")
            stage.cisfs("status", "--json")
            stage.cisfs("verify", path)
            stage.cisfs(*stage.run_words, "--rm", "--layer", path, "--", "cat", *_SEEN_INSIDE)
        finally:
            stage.cisfs("lock", path)
    stage.cisfs("status", "--json", stage.layer)


def contain(stage: Stage) -> None:
    """A container in the background, and a layer of what it wrote."""
    name = f"box-{os.getpid()}"
    detached = [*stage.run_words, "-d", "--name", name, "--scratch", "persistent:kept"]
    script = "head -c 100000 /dev/urandom > /written; echo up; sleep 1000"
    _, identity = stage.options("provider")
    layer = ["--layer", str(stage.layer), "--identity", identity]
    stage.cisfs(*detached, *layer, "--", "sh", "-c", script)
    try:
        wait_until(lambda: "up" in stage.cisfs("logs", name), "the container is up")
        listed = json.loads(stage.cisfs("ps", "--json"))
        (box,) = [each for each in listed if each["name"] == name]
        canaries = Canaries(stage.hidden)
        for what in ("environ", "cmdline", "mountinfo"):
            canaries.search(Path(f"/proc/{box['init']}/{what}").read_bytes(), what)
        assert canaries.found == {}
        assert_private(box["supervisor"])
        stage.cisfs("exec", name, "cat", *_SEEN_INSIDE)
        stage.cisfs("scratch", "list", "--store", stage.disk / "store")
        made = stage.work / "made.cis"
        recipients = ["-r", stage.keys.kinds["ec"].recipient, "--key-file", str(stage.key_file)]
        stage.cisfs("commit", name, "-o", made, *recipients)
        stage.note(made)
    finally:
        stage.cisfs("rm", "--force", name)
    stage.cisfs("scratch", "destroy", "--yes", "--store", stage.disk / "store", "kept")


def fail(stage: Stage) -> None:
    """Whatever is refused or goes wrong, while keys are around."""
    base, layer, vault = stage.keys.base, stage.layer, stage.vault
    for path in (layer, vault):
        stage.cisfs("verify", path, "--key-file", stage.wrong, code=12)
        stage.cisfs("verify", path, "--passphrase-file", stage.wrong_words, code=12)
        stage.cisfs(
            "mount", path, stage.open, "-i", f"{base}/friend.key:file={base}/rsa.password", code=12
        )
        stage.cisfs("verify", path, "-i", f"{base}/ec.key:file={base}/rsa.password", code=12)
        stage.cisfs("verify", path, "-i", f"{base}/ec.key:file={base}/ec.key", code=12)
        stage.cisfs("verify", path, "--key-file", base / "passphrase", code=2)
        stage.cisfs("verify", path, "-i", base / "passphrase", code=2)
        stage.cisfs(
            "verify", path, "-i", f"pkcs11:token=team?pin-source={base}/ec.password", code=12
        )
        stage.cisfs("verify", path, *stage.options("rsa"), change=BUG, code=1)
        stage.cisfs("verify", path, "--passphrase-file", "-", stdin=stage.hidden["PIN"], code=12)
        for name in ("loud", "echo"):
            recipient = ["-r", f"provider:{name}"]
            stage.cisfs("key", "add", path, *recipient, *stage.options("ec"), code=1)
            stage.cisfs("verify", path, "-i", f"provider:{name}", code=12)
        # Keys where something else belongs: what is not understood is not repeated.
        stage.cisfs("key", "add", path, "-r", base / "age.key", *stage.options("age"), code=2)
        stage.cisfs("key", "add", path, "-r", f"age:{base}/age.key", *stage.options("age"), code=2)
        stage.cisfs("mount", path, stage.keys.base, *stage.options("age"), code=17)
    stage.cisfs("verify", base / "passphrase", *stage.options("age"), code=10)
    loose = base / "loose"
    shutil.copyfile(base / "passphrase", loose)
    loose.chmod(0o644)
    for option in ("--passphrase-file", "--key-file", "--identity"):
        stage.cisfs("verify", layer, option, loose, code=2)
    damage(stage)


def damage(stage: Stage) -> None:
    """Altered copies: of the header, of the slots, of the data; read until it is noticed."""
    copy = stage.work / "altered.cis"
    for offset, codes in ((100, {11, 16}), (5000, {11, 16}), (140_000, {19})):
        shutil.copyfile(stage.layer, copy)
        with copy.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        with stage.start("verify", copy, *stage.options("passphrase")) as process:
            process.wait(60)
        assert process.returncode in codes | {0}, (offset, stage.said())
    config = json.loads((stage.vault / "vault.json").read_text())
    altered = stage.work / "altered.vault"
    shutil.copytree(stage.vault, altered)
    config["slots"][0]["salt"] = b64encode(bytes(16)).decode()
    (altered / "vault.json").write_text(json.dumps(config))
    for kind in ("passphrase", "ec"):
        with stage.start("verify", altered, *stage.options(kind)) as process:
            assert process.wait(60) in (11, 12, 16), stage.said()


def crash(stage: Stage) -> None:
    """Commands and servers that die with keys in their memory, each in another way."""
    for path in (stage.layer, stage.vault):
        for number, kind in zip(_CRASHES, ("passphrase", "rsa", "pkcs11", "provider"), strict=True):
            with stage.holding_the_key("verify", path, *stage.options(kind)) as process:
                assert_private(process.pid)
                process.send_signal(number)
                assert process.wait(60) == -number
        with stage.holding_the_key("key", "rotate", path, "--key-file", stage.key_file) as process:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        stage.cisfs("mount", path, stage.open, *stage.options("age"))
        for server in servers(path):
            with contextlib.suppress(ProcessLookupError):  # a supervisor's workers end with it
                os.kill(server, signal.SIGSEGV)
            wait_until(partial(is_dead, server), "the server is dead")
        stage.cisfs("umount", stage.open)
