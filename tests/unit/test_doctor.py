"""What the doctor concludes from what the host says; what it tries out is in tests/system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.mount import programs as system
from cisfs.runtime.configure import engines
from cisfs.runtime.doctor import examination, host, programs
from cisfs.runtime.doctor.finding import Finding, Level, failure, ok, warning
from cisfs.runtime.doctor.programs import Program


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.18.1-generic", Level.OK),
        ("5.6.0", Level.OK),
        ("10.0-rc1", Level.OK),
        ("5.5.19", Level.FAILURE),
        ("4.19.0-27-amd64", Level.FAILURE),
        ("strange", Level.FAILURE),
    ],
)
def test_a_kernel_is_judged_by_its_release(release: str, level: Level) -> None:
    judged = host.kernel(release)
    assert (judged.level, judged.found) == (level, f"Linux {release}")
    assert bool(judged.remedy) == (level is not Level.OK)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("core\n", "in the container itself: core"),
        ("", "none"),
        ("|/usr/lib/systemd/systemd-coredump %P %u\n", "gets them: /usr/lib/systemd/systemd-core"),
    ],
)
def test_cores_that_leave_the_container_are_warned_of(pattern: str, found: str) -> None:
    judged = host.core_pattern(pattern)
    assert found in judged.found
    assert (judged.level is Level.WARNING) == pattern.startswith("|")


HEAD = "Filename Type Size Used Priority\n"


def test_swap_that_is_neither_encrypted_nor_memory_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_BLOCK", tmp_path)
    for name, uuid in (("dm-0", "CRYPT-PLAIN-swap"), ("dm-1", "LVM-abc")):
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm/uuid").write_text(uuid)
    for name, backing in (("zram0", "none"), ("zram1", "/dev/sdb")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "backing_dev").write_text(f"{backing}\n")
    assert host.swap("") == host.swap(HEAD) == ok("swap", "none")
    assert (
        host.swap(f"{HEAD}/dev/dm-0 partition 9 0 -2\n/dev/zram0 partition 9 0 5\n").level == "ok"
    )
    for area in ("/dev/dm-1", "/dev/zram1", "/dev/sda2", "/swapfile"):
        judged = host.swap(f"{HEAD}/dev/dm-0 partition 9 0 -2\n{area} file 9 0 -3\n")
        assert judged.level is Level.WARNING
        assert judged.found == f"{area} is not known to be encrypted"


def test_few_open_files_are_warned_of() -> None:
    assert host.open_files(-1) == ok("open files", "without a limit")
    assert host.open_files(4096) == ok("open files", "4096")
    assert host.open_files(1024).level is Level.WARNING


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that programs are found in."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(system, "_SYSTEM_DIRECTORIES", "")
    return tmp_path


def test_a_program_says_its_version_or_is_missed(path: Path) -> None:
    needed = Program("tool", "tool-package", "nothing works without it", required=True)
    assert programs.examine(needed) == failure(
        "tool",
        "not installed",
        "nothing works without it; on Debian and Ubuntu: apt install tool-package",
    )
    assert programs.examine(Program("tool", "p", "some")).level is Level.WARNING
    assert programs.examine(Program("tool", "p")) == ok("tool", "not installed")
    script(path / "tool", 'echo "tool version 1.2.3~rc1, build 7" >&2')
    assert programs.examine(needed) == ok("tool", "1.2.3~rc1")
    script(path / "tool", "exit 1")
    assert programs.examine(needed) == ok("tool", "of unknown version")


def test_a_program_that_does_not_answer_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_PATIENCE", 0.2)
    script(path / "tool", "exec sleep 600")
    assert programs.version(Program("tool", "p")) == "of unknown version"


def test_an_engine_is_asked_for_the_runtime(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, runtime = path / "daemon.json", path / "cisfs-runtime"
    monkeypatch.setitem(engines.CONFIGS, "docker", config)
    assert programs.examine_engine("docker") == ok("docker", "not installed")
    script(path / "dockerd", "echo Docker version 20.10.24, build x")
    configure = "cisfs runtime configure --engine docker"
    without = warning("docker", "20.10.24, without the runtime cisfs", configure)
    assert programs.examine_engine("docker") == without
    config.write_text("{}")
    assert programs.examine_engine("docker") == without
    config.write_text(json.dumps({"runtimes": {"cisfs": {"path": str(runtime)}}}))
    judged = programs.examine_engine("docker")
    assert judged.level is Level.WARNING
    assert f"not there: {runtime}" in judged.found
    script(runtime, "")
    assert programs.examine_engine("docker") == ok(
        "docker", f"20.10.24, with the runtime {runtime}"
    )
    config.write_text("{")
    assert "line 1, column 2" in programs.examine_engine("docker").found


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("containerd", "version = 3\n"),
        ("podman", "[engine]\n"),
        ("podman", "[engine.runtimes]\ncisfs = []\n"),
    ],
)
def test_a_configuration_without_the_runtime_is_told(
    engine: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.CONFIGS, engine, tmp_path / "config")
    (tmp_path / "config").write_text(text)
    assert engines.runtime_of(engine) is None
    script(tmp_path / "cisfs-runtime", "")
    runtime = tmp_path / "cisfs-runtime"
    engines.carry_out(engines.Wanted(engine, runtime=runtime, force=True))
    assert engines.runtime_of(engine) == str(runtime)


def test_findings_are_printed_with_their_remedies_and_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [ok("a", "well"), warning("b", "poor", "mend it")]
    monkeypatch.setattr(examination, "examine", lambda: iter(found))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok       a: well",
        "warning  b: poor",
        "         -> mend it",
    ]
    found.append(failure("c", "bad", "buy another"))
    assert main(["doctor", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed[2] == {
        "name": "c",
        "level": "failure",
        "found": "bad",
        "remedy": "buy another",
    }


def test_without_root_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Iterator[Finding]:
        raise AssertionError("tried")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("cisfs.runtime.doctor.isolated.attempt", refuse)
    findings = {finding.name: finding for finding in examination.examine()}
    assert findings["user"].level is Level.FAILURE
    tried = [findings[trial.name] for trial in examination.TRIALS]
    assert {(each.level, each.found) for each in tried} == {(Level.WARNING, "not tried")}
