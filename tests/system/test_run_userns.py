"""The user namespace of `cisfs run --profile strict`: whose root it is, and what owners show.

What a container sees, stores and leaves on volumes is what it would be without one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.test_run import CISFS, Options, Site, Terminal, failure, started, wait_for_line
from tests.system.test_run_background import Yard, nothing_left, yard
from tests.system.test_run_isolation import FIELDS, NOTHING, STRICT, fields, rootfs

pytestmark = [pytest.mark.root, pytest.mark.fuse]

__all__ = ["nothing_left", "rootfs", "yard"]

WRITABLE: Options = [*STRICT, "--scratch", "ephemeral"]
MAP = "cat /proc/self/uid_map /proc/self/gid_map"
OF_HOST = ["0", "0", "4294967295"] * 2
NOTE = "cisfs: note: no user namespace: "


def first_of(text: str) -> int:
    """Return the host's id of the container's root; both maps must say so."""
    words = text.split()
    assert words[:3] == words[3:6], text
    inside, outside, size = map(int, words[:3])
    assert (inside, size) == (0, 65_536)
    return outside


def owners(text: str) -> dict[str, str]:
    """Return "uid:gid" by the name that `ls -ln` ends with."""
    rows = (line.split() for line in text.splitlines())
    return {row[-1]: f"{row[2]}:{row[3]}" for row in rows if len(row) > 8}


@contextlib.contextmanager
def mounted(site: Site, layer: Path, *options: str | Path) -> Iterator[Path]:
    mountpoint = site.directory / f"{layer.name}.shown"
    mountpoint.mkdir()
    done = site.cisfs("mount", *options, layer, mountpoint)
    assert done.returncode == 0, done.stderr
    try:
        yield mountpoint
    finally:
        assert site.cisfs("umount", mountpoint).returncode == 0
        mountpoint.rmdir()


def owned_vault(site: Site, name: str = "owned") -> Path:
    """Make a vault with owners of every kind, and an ACL."""
    vault = site.vault(name, {"secret": "of root\n", "app": "of 1234\n", "beyond": "of 70000\n"})
    with mounted(site, vault) as tree:
        (tree / "secret").chmod(0o600)
        (tree / "app").chmod(0o600)
        os.chown(tree / "app", 1234, 2345)
        (tree / "beyond").chmod(0o600)
        os.chown(tree / "beyond", 70_000, 70_001)
        (tree / "acl").write_text("by its ACL\n")
        subprocess.run(["setfacl", "-m", "u:1234:r", tree / "acl"], check=True)
        (tree / "acl").chmod(0o640)
    return vault


def sealed(site: Site, vault: Path) -> Path:
    """Seal what is in a vault."""
    layer = site.directory / f"{vault.name}.cis"
    done = site.cisfs("seal", vault, "-o", layer, "--quiet")
    assert done.returncode == 0, done.stderr
    return layer


# ---- whose root it is


def test_root_in_the_container_is_nobody_on_the_host(yard: Yard) -> None:
    vault = yard.vault("vault", {"secret": "x\n"})
    firsts = []
    for name in ("one", "two"):
        yard.detach("echo up; exec sleep 1000", "--name", name, *STRICT, "--layer", vault)
        (state,) = (one for one in yard.listed() if one["name"] == name)
        status = fields(Path(f"/proc/{state['init']}/status").read_text())
        first = first_of(yard.cisfs("exec", name, "sh", "-c", MAP).stdout)
        assert status["Uid"].split() == status["Gid"].split() == [str(first)] * 4
        assert first >= 524_288
        firsts.append(first)
    for name in ("one", "two"):
        assert yard.cisfs("exec", name, "id", "-u").stdout == "0\n"
        assert yard.cisfs("exec", "-u", "app", name, "id", "-u").stdout == "1234\n"
        assert yard.cisfs("stop", name).returncode == 0
    assert firsts[0] != firsts[1]


def test_strict_with_every_kind_of_layer(site: Site) -> None:
    vault = owned_vault(site)
    for layer in (vault, sealed(site, vault)):
        script = f"{MAP}; cat /secret; {FIELDS}"
        done = site.run("sh", "-c", script, options=[*STRICT, "--layer", layer])
        assert done.stderr == ""
        first_of(done.stdout)
        assert done.stdout.splitlines()[2] == "of root"
        assert fields("\n".join(done.stdout.splitlines()[3:])) == NOTHING


def test_capabilities_are_over_its_own_only(site: Site) -> None:
    script = """
        mount -t tmpfs x /tmp && echo mounted; mknod /null c 1 3; chown 1000 /etc/public
        ls -ln /etc; echo 1 > /proc/sys/vm/drop_caches; chown 65536 /etc/public
    """
    options: Options = ["--userns", "auto", "--cap-add", "SYS_ADMIN"]
    done = site.run("sh", "-c", script, options=options)
    assert done.stdout.startswith("mounted\n")
    assert owners(done.stdout)["public"] == "1000:0"
    assert "mknod: /null: Operation not permitted" in done.stderr
    assert "drop_caches" in done.stderr
    assert "chown: /etc/public: Invalid argument" in done.stderr
    assert (site.rootfs / "etc/public").stat().st_uid == 0


# ---- owners


@pytest.mark.parametrize("kind", ["vault", "sealed"])
def test_owners_are_shown_as_they_are_stored(site: Site, kind: str) -> None:
    layer = owned_vault(site) if kind == "vault" else sealed(site, owned_vault(site))
    script = "ls -ln / /etc; cat /secret /app /beyond /acl"
    for user, readable in (("0", "of root\nby its ACL\n"), ("app", "of 1234\nby its ACL\n")):
        done = site.run("sh", "-c", script, options=[*STRICT, "-u", user, "--layer", layer])
        shown = owners(done.stdout)
        assert {name: shown[name] for name in ("secret", "app", "beyond", "public", "bin")} == {
            "secret": "0:0",
            "app": "1234:2345",
            "beyond": "65534:65534",
            "public": "0:0",
            "bin": "0:0",
        }
        assert done.stdout.endswith(readable), done
        assert done.stderr.count("Permission denied") == 2


def test_what_it_writes_is_stored_as_without(yard: Yard) -> None:
    """Owners, whiteouts, opaque directories and what was copied up, in a layer of `commit`."""
    vault = yard.vault("vault", {"gone": "x", "dir/hidden": "y", "mine": "z", "deep/er/f": "f"})
    script = """
        rm /gone; rm -r /dir; mkdir /dir; echo new > /dir/new; chown 1234:2345 /mine
        mv /deep /moved; ln /dir/new /linked; mkfifo /fifo; echo done; exec sleep 1000
    """
    options: Options = ["--scratch", "ephemeral", "--layer", vault]
    trees = []
    for userns in ("auto", "host"):
        yard.detach(script, "--name", userns, "--userns", userns, *options)
        yard.wait_for(userns, "done")
        made = yard.directory / f"{userns}.cis"
        done = yard.cisfs("commit", userns, "-o", made, "--quiet")
        assert done.returncode == 0, done.stderr
        assert yard.cisfs("stop", userns).returncode == 0
        with mounted(yard, made) as tree:
            trees.append(described(tree))
    assert trees[0] == trees[1]
    assert trees[0]["gone"][:3] == (stat.S_IFCHR, 0, 0)
    assert trees[0]["mine"][1:3] == (1234, 2345)
    assert trees[0]["dir"][3] == {"trusted.overlay.opaque": b"y"}


def described(tree: Path) -> dict[str, tuple[int, int, int, dict[str, bytes]]]:
    """Return kinds, owners and what overlayfs noted of everything in a tree."""
    found = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        names = (name for name in os.listxattr(path, follow_symlinks=False) if "overlay" in name)
        noted = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if name.rpartition(".")[2] in ("opaque", "redirect", "metacopy")
        }
        kind = stat.S_IFMT(status.st_mode)
        found[str(path.relative_to(tree))] = (kind, status.st_uid, status.st_gid, noted)
    return found


def test_a_persistent_scratch_is_the_same_with_and_without(site: Site) -> None:
    vault = site.vault("vault", {"file": "x\n"})
    options: Options = ["--scratch", "persistent:kept", "--layer", vault]
    options = [*options, "--store", site.directory / "store"]
    script = "touch /$0; chown 1234:2345 /$0; chown 5:6 /file; ls -ln / | grep -E 'a$|b$|file$'"
    seen = []
    for name, userns in (("a", "auto"), ("b", "host"), ("b", "auto")):
        done = site.run("sh", "-c", script, name, options=[*options, "--userns", userns])
        assert done.stderr == ""
        seen.append(owners(done.stdout))
    assert seen[2] == seen[1] == {"a": "1234:2345", "b": "1234:2345", "file": "5:6"}


def test_volumes_keep_the_owners_of_the_host(site: Site) -> None:
    shared = site.directory / "shared"
    (shared / "inner").mkdir(parents=True)
    (shared / "file").write_text("of 1234\n")
    os.chown(shared / "file", 1234, 2345)
    (shared / "file").chmod(0o600)
    options: Options = [*STRICT, "-v", f"{shared}:/tmp/v", "-v", f"{shared / 'file'}:/etc/public"]
    script = "cat /tmp/v/file /etc/public; echo new > /tmp/v/inner/new; ls -ln /tmp/v /etc"
    done = site.run("sh", "-c", script, options=[*options, "-u", "app"])
    assert done.stdout.startswith("of 1234\nof 1234\n")
    assert "Permission denied" in done.stderr  # the directory is root's
    done = site.run("sh", "-c", script, options=options)
    assert owners(done.stdout)["file"] == owners(done.stdout)["public"] == "1234:2345"
    assert (shared / "inner/new").stat().st_uid == 0


def test_a_volume_with_another_file_system_in_it(site: Site) -> None:
    shared = site.directory / "shared"
    (shared / "inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "cisfs-test", shared / "inner"], check=True)
    try:
        (shared / "inner/file").write_text("inside\n")
        options: Options = [*STRICT, "--userns", "auto", "-v", f"{shared}:/tmp/v:ro"]
        script = "cat /tmp/v/inner/file; ls -ln /tmp/v/inner; touch /tmp/v/inner/x"
        done = site.run("sh", "-c", script, options=options)
        assert done.stdout.startswith("inside\n")
        assert owners(done.stdout)["file"] == "0:0"
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", shared / "inner"], check=True)


# ---- streams, terminals and the network


def test_standard_streams_can_be_opened_anew(yard: Yard) -> None:
    """As images do whose programs log to /dev/stdout; also when they run as somebody."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    for user in ("0", "app"):
        done = yard.run("sh", "-c", script, options=[*STRICT, "-u", user])
        assert (done.stdout, done.stderr) == ("out\n", "err\n")
    yard.detach(f"{script}; exec sleep 1000", "--name", "one", *STRICT)
    yard.wait_for("one", "err")
    assert yard.logs("one") == "out\nerr\n"
    assert yard.cisfs("exec", "one", "sh", "-c", script).stdout == "out\n"
    assert yard.cisfs("stop", "one").returncode == 0


def test_a_terminal(site: Site) -> None:
    words = site.words([*STRICT, "--tty"], ["sh", "-c", "tty; stat -c %u /dev/pts/0; exec sh"])
    terminal = Terminal(words, site.environment)
    try:
        terminal.expect(b"/dev/pts/0\r\n0\r\n")
        terminal.expect(b"# ")
        terminal.type(b"echo to it > /dev/tty; exit 9\r")
        terminal.expect(b"\nto it\r\n")
        assert terminal.process.wait(30) == 9
    finally:
        terminal.close()


def test_the_hosts_network(site: Site) -> None:
    script = f"{MAP}; readlink /proc/self/ns/net; ls /sys/class/net; touch /sys/x"
    done = site.run("sh", "-c", script, options=[*STRICT, "--network", "host"])
    first_of(done.stdout)
    lines = done.stdout.splitlines()
    assert lines[2] == os.readlink("/proc/self/ns/net")
    assert set(lines[3:]) == set(os.listdir("/sys/class/net")) - {"bonding_masters"}
    assert "Read-only file system" in done.stderr


# ---- where it cannot be had


def fuse_rootfs(site: Site) -> Path:
    """Make a vault that holds the root file system."""
    vault = site.vault("root", {})
    with mounted(site, vault) as tree:
        shutil.copytree(site.rootfs, tree, symlinks=True, dirs_exist_ok=True)
    return vault


def test_a_root_that_cannot_be_mounted_so(site: Site) -> None:
    """All else of the profile holds; and who insists gets no container."""
    with mounted(site, fuse_rootfs(site)) as tree:
        options: Options = ["--rootfs", tree, *STRICT]
        done = site.run("sh", "-c", f"{MAP}; {FIELDS}; touch /x", options=options)
        first, second = done.stderr.splitlines()
        assert first.startswith(f"{NOTE}{tree} cannot be mounted with other owners")
        assert "Read-only file system" in second
        assert done.stdout.split()[:6] == OF_HOST
        assert fields("\n".join(done.stdout.splitlines()[2:])) == NOTHING
        refused = failure(site.run("true", options=[*options, "--userns", "auto"]))
        assert "--userns auto: no user namespace: " in refused
        assert site.run("true", options=[*options, "--userns", "host"]).stderr == ""


def test_a_volume_that_cannot_be_mounted_so(site: Site) -> None:
    with mounted(site, site.vault("vault", {"file": "in a vault\n"})) as tree:
        done = site.run("cat", "/tmp/v/file", options=[*STRICT, "-v", f"{tree}:/tmp/v:ro"])
        assert done.stdout == "in a vault\n"
        assert done.stderr.startswith(f"{NOTE}{tree} or something mounted in it")


def test_users_beyond_its_ids(site: Site) -> None:
    done = site.run("sh", "-c", f"id -u; {MAP}", options=[*STRICT, "-u", "70000"])
    assert done.stdout.split() == ["70000", *OF_HOST]
    assert done.stderr.startswith(f"{NOTE}--user 70000")
    passwd = site.directory / "etc/passwd"
    rootfs = site.directory / "rootfs"
    subprocess.run(["cp", "-a", site.rootfs, rootfs], check=True)
    passwd = rootfs / "etc/passwd"
    passwd.write_text(f"{passwd.read_text()}far:x:70000:5::/:/bin/sh\n")
    options: Options = ["--rootfs", rootfs, *STRICT, "-u", "far"]
    assert "use --userns host" in failure(site.run("id", options=options))
    assert site.run("id", "-u", options=[*options, "--userns", "host"]).stdout == "70000\n"


def test_nothing_stays_of_a_killed_one(site: Site) -> None:
    vault = site.vault("vault", {"secret": "x\n"})
    words = site.words([*WRITABLE, "--layer", vault], ["sh", "-c", "echo up; exec sleep 1000"])
    assert words[: len(CISFS)] == CISFS
    with started(words, site.environment) as process:
        wait_for_line(process, b"up")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert site.run("true", options=STRICT).returncode == 0  # and sweeps
