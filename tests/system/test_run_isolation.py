"""What a container of the embedded engine may do, by default and under `--profile strict`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.test_run import Options, Site, failure, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.fuse]

STRICT: Options = ["--profile", "strict"]
FIELDS = "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status"
NOTHING = {
    **{f"Cap{kind}": "0" * 16 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
    "NoNewPrivs": "1",
    "Seccomp": "2",
}


@pytest.fixture(scope="module")
def rootfs(rootfs: Path) -> Path:
    for name in ("proc", "sys", "dev", "run", "var/tmp"):
        (rootfs / name).mkdir(parents=True, exist_ok=True)
    return rootfs


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    before = site.traces()
    yield
    assert site.traces() == before


def fields(text: str) -> dict[str, str]:
    rows = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in rows}


# ---- strict


def test_strict_leaves_no_privilege(site: Site) -> None:
    vault = site.vault("vault", {"secret": "read all the same\n"})
    done = site.run("sh", "-c", f"cat /secret; {FIELDS}", options=[*STRICT, "--layer", vault])
    first, _, rest = done.stdout.partition("\n")
    assert first == "read all the same"
    assert fields(rest) == NOTHING


def test_strict_and_what_can_be_written(site: Site) -> None:
    """Every mount that takes a file refuses to execute it."""
    script = """
        cut -d' ' -f2 /proc/mounts | sort -u | while read d; do
            [ -d "$d" ] && cp /bin/busybox "$d/probe" 2>/dev/null || continue
            "$d/probe" true 2>/dev/null && echo "executed in $d" || echo "written in $d"
        done
        touch /x /etc/x; ls /x
    """
    done = site.run("sh", "-c", script, options=STRICT)
    written = set(done.stdout.splitlines())
    assert {
        f"written in {path}" for path in ("/tmp", "/run", "/var/tmp", "/dev", "/dev/shm")
    } <= written
    assert not any(line.startswith("executed") for line in written)
    assert done.stderr.count("Read-only file system") == 2


def test_strict_volumes_are_not_executable(site: Site) -> None:
    shared = site.directory / "shared"
    shared.mkdir()
    script = "cp /bin/busybox /v/b && /v/b true; echo x > /v/new"
    options: Options = [*STRICT, "-v", f"{shared}:/tmp/v"]
    done = site.run("sh", "-c", script.replace("/v", "/tmp/v"), options=options)
    assert "Permission denied" in done.stderr
    assert (shared / "new").read_text() == "x\n"


def test_strict_limits(site: Site) -> None:
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max"
    if not Path("/sys/fs/cgroup/memory").exists():
        script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
    assert site.run("sh", "-c", script, options=STRICT).stdout.split() == [str(512 << 20), "512"]
    options: Options = [*STRICT, "-m", "64m", "--pids-limit", "9"]
    assert site.run("sh", "-c", script, options=options).stdout.split() == [str(64 << 20), "9"]


def test_too_much_memory_ends_the_container(site: Site) -> None:
    done = site.run("sh", "-c", "exec tail /dev/zero", options=["-m", "32m"])
    assert done.returncode == 137


def test_strict_with_a_scratch_can_be_written(site: Site) -> None:
    done = site.run("sh", "-c", "echo kept > /x; cat /x", options=[*STRICT, "--scratch", "memory"])
    assert done.stdout == "kept\n"


def test_a_neighbour_is_out_of_reach(site: Site) -> None:
    """Each container has a network of its own, with nothing but a loopback interface."""
    with site.start("httpd -h /etc && echo up && exec sleep 1000", STRICT) as neighbour:
        wait_for_line(neighbour, b"up")
        for options in (STRICT, []):
            script = "ls /sys/class/net; wget -q -O - http://127.0.0.1/public; cat /proc/net/tcp"
            done = site.run("sh", "-c", script, options=options)
            assert done.stdout.split()[0] == "lo"
            assert "public" not in done.stdout
            assert "Connection refused" in done.stderr
            assert ":0050 " not in done.stdout
        neighbour.terminate()


# ---- by default


def test_default_privileges(site: Site) -> None:
    got = fields(site.run("sh", "-c", FIELDS).stdout)
    assert got["CapEff"] == got["CapBnd"] == "00000000a80425fb"  # docker's 14
    assert (got["NoNewPrivs"], got["Seccomp"]) == ("1", "2")


def test_capabilities_that_are_asked_for(site: Site) -> None:
    done = site.run("sh", "-c", FIELDS, options=["--cap-drop", "all", "--cap-add", "chown"])
    assert fields(done.stdout)["CapEff"] == f"{1:016x}"
    options: Options = ["--cap-add", "SYS_ADMIN"]
    assert site.run("mount", "-t", "tmpfs", "x", "/tmp", options=options).returncode == 0
    assert site.run("mount", "-t", "tmpfs", "x", "/tmp").returncode == 1


@pytest.mark.parametrize("options", [[], STRICT], ids=["default", "strict"])
def test_the_kernels_keys_are_out_of_reach(site: Site, options: Options) -> None:
    """By the call itself, with a program of this host: busybox has none for it."""
    program = site.directory / "keys.c"
    program.write_text(
        "#include <errno.h>\n#include <stdio.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n"
        'static void say(const char *n, long r) { printf("%s %d\\n", n, r < 0 ? errno : 0); }\n'
        "int main(void) {\n"
        '  say("add_key", syscall(SYS_add_key, "user", "x", "y", 1, -3));\n'
        '  say("keyctl", syscall(SYS_keyctl, 0, -4, 0, 0, 0));\n'
        '  say("request_key", syscall(SYS_request_key, "user", "cisfs:x", 0, -4));\n'
        '  say("unshare", syscall(SYS_unshare, 0x10000000));\n'
        '  say("bpf", syscall(SYS_bpf, 0, 0, 0));\n'
        '  say("io_uring_setup", syscall(SYS_io_uring_setup, 1, 0));\n'
        '  say("getpid", syscall(SYS_getpid)); return 0; }\n'
    )
    binary = site.directory / "share/keys"
    binary.parent.mkdir()
    subprocess.run(["gcc", "-static", "-o", binary, program], check=True, capture_output=True)
    rootfs = site.directory / "with-keys"
    subprocess.run(["cp", "-a", site.rootfs, rootfs], check=True)
    subprocess.run(["cp", binary, rootfs / "bin/keys"], check=True)
    done = site.run("keys", options=["--rootfs", rootfs, *options])
    answers = dict(line.split() for line in done.stdout.splitlines())
    assert answers.pop("getpid") == "0"
    assert set(answers.values()) == {"1"}, answers


# ---- mounts and the network


def test_volumes_and_tmpfs(site: Site) -> None:
    shared = site.directory / "shared:dir"
    shared.mkdir()
    plain = site.directory / "plain"
    plain.mkdir()
    (plain / "file").write_text("of the host\n")
    options: Options = ["-v", f"{plain}:/mnt/a", "-v", f"{plain}:/mnt/b:ro", "--tmpfs", "/mnt/a/t"]
    script = "cat /mnt/a/file; echo new > /mnt/a/new; touch /mnt/b/x; touch /mnt/a/t/in-memory"
    (plain / "t").mkdir()
    done = site.run("sh", "-c", script, options=options)
    assert done.stdout == "of the host\n"
    assert "/mnt/b/x: Read-only file system" in done.stderr
    assert (plain / "new").read_text() == "new\n"
    assert list((plain / "t").iterdir()) == []


def test_a_volume_in_a_read_only_root(site: Site) -> None:
    (site.directory / "v").mkdir()
    options: Options = ["--read-only", "-v", f"{site.directory / 'v'}:/tmp"]
    assert site.run("touch", "/tmp/x", options=options).returncode == 0
    assert (site.directory / "v/x").exists()


def test_the_hosts_network_when_asked_for(site: Site) -> None:
    with site.start("echo up; exec sleep 1000", ["--network", "host"]) as process:
        wait_for_line(process, b"up")
        done = site.run("sh", "-c", "readlink /proc/self/ns/net", options=["--network", "host"])
        assert done.stdout.strip() == os.readlink("/proc/self/ns/net")
        process.terminate()
    own = site.run("readlink", "/proc/self/ns/net")
    assert own.stdout.strip() != os.readlink("/proc/self/ns/net")


def test_a_hostname(site: Site) -> None:
    assert site.run("hostname", options=["--hostname", "web-1"]).stdout == "web-1\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "80:80"], "--engine docker"),
        (["--network", "bridge"], "none and host"),
        (["-v", "data:/data"], "keeps no volumes"),
        (["-v", "/no/such:/data"], "/no/such does not exist"),
        (["-v", "/x"], "SRC:DST"),
        (["--tmpfs", "x"], "absolute"),
        (["-m", "1k"], "--memory 1k"),
        (["--cpus", "9999"], "--cpus 9999"),
        (["--cap-add", "fly"], "no such capability"),
        (["--name", "a b"], "--name"),
        (["--scratch", "tape"], "no kind of scratch"),
        (["--read-only", "--scratch", "memory"], "contradict"),
        (["--env-file", "/no/such"], "No such file"),
    ],
)
def test_what_cannot_be(site: Site, options: list[str], words: str) -> None:
    assert words in failure(site.run("true", options=options))


def test_cpus_and_env_files(site: Site) -> None:
    file = site.directory / "env"
    file.write_text("A=from file\nB=2\n")
    script = "echo $A $B; cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us 2>/dev/null || cat cpu.max"
    options: Options = ["--env-file", file, "-e", "B=3", "--cpus", "0.5"]
    done = site.run("sh", "-c", script, options=options)
    assert done.stdout.split()[:4] == ["from", "file", "3", "50000"]
