"""The engines' configurations: what is added, what stays, what is refused, and the way back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.runtime.configure import engines

CRI = "io.containerd.grpc.v1.cri"
DOCKER = """{
  "log-driver": "local",
  "runtimes": {
    "other": {"path": "/opt/other", "runtimeArgs": ["-x"]}
  },
  "insecure-registries": ["ö.example"]
}
"""
CONTAINERD = f"""\
# ours
version = 2  # the second
[plugins]
  [plugins."{CRI}".containerd]
    default_runtime_name = "runc"
    [plugins."{CRI}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"   # as ever
      [plugins."{CRI}".containerd.runtimes.runc.options]
        SystemdCgroup = true
"""
PODMAN = '[engine.runtimes]\ncisfs = ["/opt/other"]\n'


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    return program(tmp_path / "cisfs-runtime")


def program(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


class Engine:
    """An engine's configuration in a directory of its own, and the commands on it."""

    def __init__(self, name: str, directory: Path, runtime: str) -> None:
        self.name = name
        self.config = directory / "etc" / "config"
        self.runtime = runtime
        self.pid_file = directory / "docker.pid"

    def write(self, text: str) -> None:
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(text)

    def run(self, action: str, *words: str) -> int:
        given = ["--engine", self.name, "--config", str(self.config)]
        given += ["--runtime-path", self.runtime, "--pid-file", str(self.pid_file)]
        return main(["runtime", action, *given, *words])

    def configure(self, *words: str) -> int:
        return self.run("configure", *words)

    def unconfigure(self, *words: str) -> int:
        return self.run("unconfigure", *words)

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.config.parent)) if self.config.parent.exists() else []

    def path_of_runtime(self) -> object:
        text = self.config.read_text()
        if self.name == "docker":
            return json.loads(text)["runtimes"]["cisfs"]["path"]
        config = tomllib.loads(text)
        if self.name == "podman":
            return config["engine"]["runtimes"]["cisfs"][0]
        handler = config["plugins"][CRI]["containerd"]["runtimes"]["cisfs"]
        return handler["options"]["BinaryName"]


@pytest.fixture(params=["docker", "containerd", "podman"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, runtime: str) -> Engine:
    return Engine(request.param, tmp_path, runtime)


@pytest.fixture
def docker(tmp_path: Path, runtime: str) -> Engine:
    return Engine("docker", tmp_path, runtime)


@pytest.fixture
def containerd(tmp_path: Path, runtime: str) -> Engine:
    return Engine("containerd", tmp_path, runtime)


@pytest.fixture
def podman(tmp_path: Path, runtime: str) -> Engine:
    return Engine("podman", tmp_path, runtime)


def test_where_there_is_no_file_there_is_one_and_none_again(engine: Engine) -> None:
    assert engine.configure() == 0
    assert engine.path_of_runtime() == engine.runtime
    assert stat.S_IMODE(engine.config.stat().st_mode) == 0o644
    assert engine.configure() == 0
    assert engine.names == ["config"]
    assert engine.unconfigure() == 0
    assert engine.names == []
    assert engine.unconfigure() == 0


def test_what_was_done_is_said(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.configure()
    said = capsys.readouterr()
    done, remark = (said.err, said.out) if engine.name == "containerd" else (said.out, said.err)
    assert done.startswith(f"configured {engine.name} in {engine.config}\n")
    assert remark.startswith("apiVersion: node.k8s.io/v1\n" if engine.name == "containerd" else "")
    engine.configure()
    said = capsys.readouterr()
    again = f"{engine.config} has the runtime cisfs already; nothing was changed\n"
    assert again in (said.out, said.err)
    engine.unconfigure()
    assert capsys.readouterr().out.startswith(f"unconfigured {engine.name} in {engine.config}\n")
    engine.unconfigure()
    said = capsys.readouterr()
    assert said.out == f"{engine.config} has no runtime cisfs; nothing was changed\n"


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.configure("--dry-run") == 0
    assert engine.names == []
    assert not engine.config.parent.exists()
    said = capsys.readouterr().out
    assert said.startswith(f"--- /dev/null\n+++ {engine.config}\n@@ ")
    assert f"+{'' if engine.name == 'podman' else '  '}" in said
    assert engine.runtime in said
    engine.configure()
    before = engine.config.read_bytes()
    capsys.readouterr()
    assert engine.unconfigure("--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"--- {engine.config}\n+++ /dev/null\n")
    assert engine.config.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docker", DOCKER),
        ("docker", DOCKER.rstrip("\n")),
        ("docker", '{"runtimes":{},"debug":true}'),
        ("docker", "{}"),
        ("docker", ""),
        ("docker", '{\n\t"debug": true\n}'),
        ("containerd", CONTAINERD),
        ("containerd", CONTAINERD.rstrip("\n")),
        ("containerd", CONTAINERD + "\n\n# the end"),
        ("containerd", "version = 2\n"),
        ("containerd", "version = 3\n"),
        ("containerd", 'version = 2\nplugins."x".y = 1\n'),
    ],
)
def test_the_way_back_leads_to_the_same_bytes(
    name: str, text: str, tmp_path: Path, runtime: str
) -> None:
    engine = Engine(name, tmp_path, runtime)
    engine.write(text)
    engine.config.chmod(0o640)
    assert engine.configure() == 0
    assert engine.config.read_text() != text
    assert engine.unconfigure() == 0
    assert engine.config.read_bytes() == text.encode()
    assert stat.S_IMODE(engine.config.stat().st_mode) == 0o640
    (backup,) = [each for each in engine.names if each != "config"]
    assert re.fullmatch(r"config\.\d{4}-\d\d-\d\d-\d{6}\.cisfs-backup", backup)
    assert (engine.config.parent / backup).read_bytes() == text.encode()


def test_what_docker_was_told_before_stays(docker: Engine) -> None:
    docker.write(DOCKER)
    docker.configure()
    config = json.loads(docker.config.read_text())
    assert config.pop("runtimes") == {
        "other": {"path": "/opt/other", "runtimeArgs": ["-x"]},
        "cisfs": {"path": docker.runtime},
    }
    assert config == {"log-driver": "local", "insecure-registries": ["ö.example"]}
    assert '\n  "log-driver"' in docker.config.read_text()
    assert "ö" in docker.config.read_text()


def test_what_docker_is_told_afterwards_stays(docker: Engine) -> None:
    docker.write(DOCKER)
    docker.configure()
    config = json.loads(docker.config.read_text())
    docker.write(json.dumps({**config, "debug": True}))
    assert docker.unconfigure() == 0
    assert json.loads(docker.config.read_text()) == {**json.loads(DOCKER), "debug": True}
    assert len(docker.names) == 3, "what it was last is kept, too"


def test_what_containerd_was_told_stays_comments_included(containerd: Engine) -> None:
    containerd.write(CONTAINERD)
    containerd.configure()
    text = containerd.config.read_text()
    assert text.startswith(CONTAINERD)
    config = tomllib.loads(text)
    assert config["plugins"][CRI]["containerd"]["runtimes"].pop("cisfs") == {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["dev.cisfs.*"],
        "container_annotations": ["dev.cisfs.*"],
        "options": {"BinaryName": containerd.runtime, "SystemdCgroup": True},
    }
    assert config == tomllib.loads(CONTAINERD)
    containerd.write(text + "[metrics]\n  address = 'x'\n")
    assert containerd.unconfigure() == 0
    assert containerd.config.read_text() == CONTAINERD + "[metrics]\n  address = 'x'\n"


def test_containerd_keeps_runc_which_it_had_by_itself(containerd: Engine) -> None:
    def handlers() -> dict[str, object]:
        config = tomllib.loads(containerd.config.read_text())
        found = config["plugins"][CRI]["containerd"]["runtimes"]
        assert isinstance(found, dict)
        return found

    containerd.write("version = 2\n# nothing else\n")
    containerd.configure()
    assert handlers().keys() == {"runc", "cisfs"}
    assert handlers()["runc"] == {"runtime_type": "io.containerd.runc.v2"}
    Engine("containerd", containerd.config.parents[1], "/bin/sh").configure("--force")
    assert handlers().keys() == {"runc", "cisfs"}
    assert containerd.path_of_runtime() == "/bin/sh"
    assert containerd.unconfigure("--force") == 0
    assert containerd.config.read_text() == "version = 2\n# nothing else\n"


def test_containerd_2_has_another_plugin(containerd: Engine) -> None:
    containerd.write("version = 3\n")
    containerd.configure()
    config = tomllib.loads(containerd.config.read_text())
    plugin = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert plugin["containerd"]["runtimes"]["cisfs"]["options"]["BinaryName"] == containerd.runtime


def test_a_handler_without_our_marks_is_replaced_and_removed_as_well(containerd: Engine) -> None:
    containerd.configure()
    lines = containerd.config.read_text().splitlines(keepends=True)
    rewritten = "".join(line for line in lines if not line.startswith("#")) + "[metrics]\n"
    containerd.write(rewritten.replace("dev.cisfs.*", "dev.*"))
    assert containerd.configure() == 0
    assert tomllib.loads(containerd.config.read_text())["metrics"] == {}
    assert '"dev.*"' not in containerd.config.read_text()
    containerd.write(rewritten)
    assert containerd.unconfigure() == 0
    assert "cisfs" not in containerd.config.read_text()
    assert tomllib.loads(containerd.config.read_text()).keys() == {"version", "plugins", "metrics"}


@pytest.mark.parametrize(
    "text",
    [
        f'version = 2\nplugins."{CRI}".containerd.runtimes = {{ runc = {{ x = 1 }} }}\n',
        f'version = 2\n[plugins."{CRI}".containerd]\nruntimes = {{}}\n',
    ],
)
def test_tables_that_cannot_be_added_to_are_left_alone(
    containerd: Engine, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    containerd.write(text)
    assert containerd.configure() == 2
    assert "in a way that cisfs cannot edit; nothing was changed" in capsys.readouterr().err
    assert (containerd.names, containerd.config.read_text()) == (["config"], text)


def test_a_block_that_somebody_wrote_into_is_left_alone(containerd: Engine) -> None:
    containerd.configure()
    text = containerd.config.read_text() + "  NoPivotRoot = true\n"
    containerd.write(text)
    assert containerd.unconfigure() == 2
    assert containerd.config.read_text() == text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("docker", '{\n  "a": 1,\n  b\n}', "line 3, column 3: "),
        ("docker", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("docker", "[]", "is no JSON object"),
        ("docker", '{"runtimes": []}', '"runtimes" is no object'),
        ("docker", "[" * 100_000, "nothing was changed"),
        ("containerd", "version = 2\nx = \n", "at line 2, column 5"),
        ("containerd", "version = 1\n", "has configuration version 1; cisfs knows 2 and 3"),
        ("containerd", "", "has configuration version 1"),
        ("containerd", "version = 2.0\n", "version 2.0"),
        ("containerd", "version = true\n", "version True"),
        ("containerd", "version = [2]\n", "version [2]"),
        ("containerd", "version = 2\nplugins = 3\n", "'plugins' should be a table"),
        ("podman", "x =", "at end of document"),
        ("podman", PODMAN + "runc = []\n", "has more than the runtime cisfs"),
        ("podman", "[engine]\n", "has more than the runtime cisfs"),
    ],
)
@pytest.mark.parametrize("action", ["configure", "unconfigure"])
def test_what_is_no_configuration_is_refused_and_left_alone(
    name: str,
    text: str,
    words: str,
    action: str,
    tmp_path: Path,
    runtime: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = Engine(name, tmp_path, runtime)
    engine.write(text)
    assert engine.run(action) == 2
    said = capsys.readouterr().err
    assert str(engine.config) in said
    assert words in said
    assert (engine.names, engine.config.read_text()) == (["config"], text)


def test_what_is_no_text_or_no_file_is_refused(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.write("")
    engine.config.write_bytes(b"abc\xff")
    assert engine.configure() == 2
    assert "is not UTF-8 at byte 3" in capsys.readouterr().err
    engine.config.write_bytes(b" " * (5 << 20))
    assert engine.configure() == 2
    engine.config.unlink()
    os.mkfifo(engine.config)
    opened = os.open(engine.config, os.O_RDWR)  # not to wait for a writer
    assert engine.configure() == 2
    os.close(opened)


def test_a_runtime_of_somebody_else_is_replaced_and_removed_by_force_only(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Engine(engine.name, tmp_path, program(tmp_path / "theirs"))
    assert theirs.configure() == 0
    text = engine.config.read_text()
    capsys.readouterr()
    for action in ("configure", "unconfigure"):
        assert engine.run(action) == 2
        said = capsys.readouterr().err
        assert f"is {theirs.runtime}, not {engine.runtime}; --force" in said
        assert (engine.names, engine.config.read_text()) == (["config"], text)
    assert engine.configure("--force") == 0
    assert engine.path_of_runtime() == engine.runtime
    assert theirs.unconfigure("--force") == 0


def test_a_backup_never_replaces_another(docker: Engine) -> None:
    for number in range(3):
        docker.write(json.dumps({"number": number}))
        assert docker.configure() == 0
    kept = [each for each in docker.names if each != "config"]
    found = [json.loads((docker.config.parent / each).read_text())["number"] for each in kept]
    assert sorted(found) == [0, 1, 2]


def test_a_link_stays_and_its_target_is_changed(docker: Engine, tmp_path: Path) -> None:
    docker.write("")
    docker.config.unlink()
    (tmp_path / "target.json").write_text("{}")
    docker.config.symlink_to(tmp_path / "target.json")
    assert docker.configure() == 0
    assert docker.config.is_symlink()
    assert docker.path_of_runtime() == docker.runtime


def test_attributes_and_owner_stay(docker: Engine) -> None:
    docker.write("{}")
    os.setxattr(docker.config, "user.note", b"kept")
    owner = (12, 34) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(docker.config, *owner)
    assert docker.configure() == 0
    assert os.getxattr(docker.config, "user.note") == b"kept"
    status = docker.config.stat()
    assert (status.st_uid, status.st_gid) == owner


def test_two_commands_on_a_directory_wait_for_each_other(docker: Engine) -> None:
    docker.write("{}")
    holder = os.open(docker.config.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    words = ["-c", "import sys; from cisfs.cli.main import main; sys.exit(main())"]
    words += ["runtime", "configure", "--engine", "docker", "--config", str(docker.config)]
    words += ["--runtime-path", docker.runtime, "--pid-file", "/nonexistent"]
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(2)
    assert docker.config.read_text() == "{}"
    os.close(holder)
    assert child.wait(60) == 0
    assert docker.path_of_runtime() == docker.runtime


def test_without_permission_root_is_asked_for(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.config = Path("/sys/cisfs-test/config")  # where nobody may make anything
    assert engine.configure() == 1
    said = capsys.readouterr().err
    assert re.search(r"/sys/cisfs-test/config cannot be changed: .*; run it as root", said)


def test_the_runtime_has_to_be_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("")
    for path in (tmp_path / "text", tmp_path, tmp_path / "missing"):
        engine = Engine("docker", tmp_path, str(path))
        assert engine.configure() == 2
        assert f"{path} is not a program" in capsys.readouterr().err
    engine = Engine("docker", tmp_path, program(tmp_path / "a\nb"))
    assert engine.configure() == 2


def test_a_path_with_odd_characters_is_spelled_right(engine: Engine, tmp_path: Path) -> None:
    odd = Engine(engine.name, tmp_path, program(tmp_path / "ö \"x\\y'😀"))
    assert odd.configure() == 0
    assert odd.path_of_runtime() == odd.runtime


def test_containerd_without_cri_is_remarked_on(
    containerd: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    containerd.write(f'version = 2\ndisabled_plugins = ["{CRI}"]\n')
    assert containerd.configure() == 0
    assert "also disables CRI" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- reloading


def stand_in(name: str, directory: Path) -> subprocess.Popen[bytes]:
    """A process that is called `name` and says so when it gets SIGHUP."""
    script = directory / name
    script.write_text("#!/bin/sh\ntrap 'echo reloaded; exit 0' HUP\necho up\nread line\n")
    script.chmod(0o755)
    child = subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def test_dockerd_is_told_when_something_changed(
    docker: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = stand_in("dockerd", tmp_path)
    docker.write(json.dumps({"pidfile": str(tmp_path / "named.pid")}))
    (tmp_path / "named.pid").write_text(f"{child.pid}\n")
    assert docker.configure("--dry-run") == 0
    assert child.poll() is None
    assert docker.configure() == 0
    assert "dockerd was told to read it" in capsys.readouterr().out
    assert child.communicate(timeout=60)[0] == b"reloaded\n"


def test_what_is_no_dockerd_gets_no_signal(
    docker: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = stand_in("other", tmp_path)
    docker.pid_file.write_text(str(child.pid))
    assert docker.configure() == 0
    assert "it will see this when it starts" in capsys.readouterr().out
    assert child.communicate(b"\n", timeout=60)[0] == b""
    assert child.returncode != -signal.SIGHUP
    for content in ("", "no number", str(child.pid), "-1", "9" * 30):
        docker.unconfigure()
        docker.pid_file.write_text(content)
        capsys.readouterr()
        assert docker.configure() == 0
        assert "dockerd is not running" in capsys.readouterr().out


def test_each_engine_is_known_to_the_command() -> None:
    from cisfs.cli import runtime

    assert set(runtime.ENGINES) == set(engines.CONFIGS)
