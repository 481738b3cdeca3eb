"""The trust policy at work: what is not signed is not mounted, not run, and asks nobody for a key.

The layers are locked, so whoever asks for a key is told that there is none.

Needs root and runc, and fails without them.  After every test nothing may be left.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cisfs.crypto.signatures import SigningKey, signer_of
from cisfs.format.signatures import spelled_signer
from tests.system.bundles import Site
from tests.system.test_runtime import site

__all__ = ["site"]

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SECRET = "the launch code\n"
KEY = SigningKey.from_private_bytes(bytes(range(32)))
SIGNER = spelled_signer(signer_of(KEY))


def policy(site: Site, text: str) -> Path:
    path = site.base / "policy.toml"
    path.touch(0o644)
    path.write_text(text)
    return path


def strict(site: Site) -> Path:
    return policy(site, f'[default]\nsigners = ["{SIGNER}"]\n')


def sign(site: Site, layer: Path, *, embed: bool) -> None:
    key = site.base / "signing.key"
    key.touch(0o600)
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    site.must("sign", layer, "--key", key, *(["--embed"] if embed else []))
    assert (site.base / f"{layer.name}.sig").exists() != embed


def refusal(layer: Path, where: Path) -> str:
    return (
        f"{layer} may not be used: the policy {where}, [default], asks for a signature; missing: "
        f"{SIGNER}"
    )


@pytest.mark.parametrize("embed", [True, False])
def test_mount(site: Site, embed: bool) -> None:
    layer = site.layer("layer", {"secret": SECRET}, unlock=False)
    where, mountpoint = strict(site), site.base / "open"
    mountpoint.mkdir()
    site.environment["CISFS_POLICY"] = str(where)
    ended = site.cisfs("mount", layer, mountpoint)
    assert (ended.returncode, ended.stdout) == (21, "")
    assert ended.stderr == f"cisfs: {refusal(layer, where)}\n"
    sign(site, layer, embed=embed)
    assert site.cisfs("mount", layer, mountpoint).returncode == 14  # the key's turn
    site.must("mount", layer, mountpoint, "--key-file", site.key)
    try:
        assert (mountpoint / "secret").read_text() == SECRET
    finally:
        site.must("umount", mountpoint)


def test_mount_of_a_vault(site: Site) -> None:
    vault, mountpoint = site.base / "vault", site.base / "open"
    mountpoint.mkdir()
    site.must("init", vault, "--key-file", site.key)
    site.environment["CISFS_POLICY"] = str(strict(site))
    ended = site.cisfs("mount", vault, mountpoint)
    assert (ended.returncode, ended.stderr.count("\n")) == (21, 1)
    assert "asks for a signature, and vaults cannot be signed" in ended.stderr


@pytest.mark.parametrize("embed", [True, False])
def test_run(site: Site, embed: bool) -> None:
    layer = site.layer("layer", {"secret": SECRET}, unlock=False)
    where = strict(site)
    site.environment["CISFS_POLICY"] = str(where)
    words: list[str | Path] = [
        "--store",
        site.store,
        "--rootfs",
        site.rootfs,
        "--scratch",
        "memory",
    ]
    ended = site.cisfs("run", "--layer", layer, *words, "--", "cat", "/secret")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr == f"cisfs: {refusal(layer, where)}\n"
    sign(site, layer, embed=embed)
    ended = site.cisfs(
        "run", "--key-file", site.key, "--layer", layer, *words, "--", "cat", "/secret"
    )
    assert (ended.returncode, ended.stdout) == (0, SECRET)


@pytest.mark.parametrize("embed", [True, False])
def test_the_runtime(site: Site, embed: bool) -> None:
    layer, log = site.layer("layer", {"secret": SECRET}, unlock=False), site.base / "log"
    where = strict(site)
    options: list[str | Path] = ["--policy", where, "run", "--bundle"]
    bundle = site.bundle("box", "cat /secret", layers=[layer], scratch="memory")
    ended = site.runtime(*options, bundle, site.id("box"), log=log)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"cisfs-runtime: {refusal(layer, where)}\n"
    assert json.loads(log.read_text())["msg"] == refusal(layer, where)
    sign(site, layer, embed=embed)
    ended = site.runtime(*options, bundle, site.id("box"))
    assert "is locked" in ended.stderr  # the key's turn
    site.unlock(layer)
    ended = site.runtime(*options, bundle, site.id("box"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, SECRET, "")


def test_the_runtimes_environment_is_no_policy(site: Site) -> None:
    layer, where = site.layer("layer", {"secret": SECRET}), strict(site)
    lenient = site.base / "lenient.toml"
    lenient.touch(0o644)
    site.environment["CISFS_POLICY"] = str(lenient)
    bundle = site.bundle("box", "cat /secret", layers=[layer], scratch="memory")
    ended = site.runtime("--policy", where, "run", "--bundle", bundle, site.id("box"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert refusal(layer, where) in ended.stderr


def test_a_policy_that_others_can_write_is_none_to_follow(site: Site) -> None:
    layer, where = site.layer("layer", {"secret": SECRET}), policy(site, "")
    where.chmod(0o666)
    bundle = site.bundle("box", "cat /secret", layers=[layer], scratch="memory")
    ended = site.runtime("--policy", where, "run", "--bundle", bundle, site.id("box"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{where} decides whom to trust, and others can write it" in ended.stderr
