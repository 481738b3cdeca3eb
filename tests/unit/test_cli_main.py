"""The frame of the command line: help, dispatch, and what each kind of failure becomes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from cisfs import __version__, errors
from cisfs.cli import inspect, run
from cisfs.cli import main as frame
from cisfs.cli.main import COMMANDS, main
from cisfs.runtime.request import Outcome

HEAVY = ("cryptography", "blake3", "pyfuse3", "trio", "docker", "cisfs.layer", "cisfs.runtime")


def _raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_args: argparse.Namespace) -> int:
        raise error

    return run


def _every_class(base: type[errors.CisfsError]) -> list[type[errors.CisfsError]]:
    """All there are for others, whichever modules were loaded, and have their own, before."""
    children = [child for child in base.__subclasses__() if child.__module__ == errors.__name__]
    return [base, *(found for child in children for found in _every_class(child))]


@pytest.mark.parametrize("kind", _every_class(errors.CisfsError))
def test_each_error_is_one_line_and_its_own_exit_code(
    kind: type[errors.CisfsError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inspect, "run", _raising(kind("what happened:\nand what next")))
    assert main(["inspect", "x"]) == kind.exit_code
    assert capsys.readouterr().err == "cisfs: what happened: and what next\n"


def test_an_error_does_nothing_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect, "run", _raising(FileNotFoundError(2, "gone", "/\x1b[2J\udcff")))
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == "cisfs: /?[2J?: gone\n"


def test_what_a_container_ends_with_does_nothing_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Outcome(127, "cannot run /x: its interpreter /\x1b]0;\x07 is not in the container")
    monkeypatch.setattr(run, "_run", lambda _: said)
    assert main(["run", "--rootfs", "/", "x"]) == 127
    assert capsys.readouterr().err == (
        "cisfs: cannot run /x: its interpreter /?]0;? is not in the container\n"
    )


def test_the_operating_systems_errors_name_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect, "run", _raising(PermissionError(13, "Permission denied", "/x/y")))
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == "cisfs: /x/y: Permission denied\n"


def test_an_interrupt_is_what_a_shell_calls_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "run", _raising(KeyboardInterrupt()))
    assert main(["inspect", "x"]) == 130


@pytest.mark.parametrize(
    "arguments", [[], ["bogus"], ["mount"], ["mount", "a"], ["--bogus"], ["init", "x", "--key"]]
)
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["seal", "", "-o", "x.cis"], 2),
        (["seal", "x", "-o", ""], 2),
        (["mount", "x", ""], 2),
        (["umount", ""], 2),
        (["init", ""], 2),
        (["commit", "x", "-o", ""], 2),
        (["save", "x", "-o", ""], 2),
        (["run", "--rootfs", "", "--", "true"], 125),
    ],
)
def test_a_variable_that_is_not_set_does_not_stand_for_the_current_directory(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    assert "nothing is given; . is the current directory" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"cisfs {__version__}\n"


def test_help_names_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text
    for kind in _every_class(errors.CisfsError):
        assert f" {kind.exit_code}  " in text, kind


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_describes_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"\n  cisfs {command} " in capsys.readouterr().out


def test_the_first_word_that_is_no_option_is_the_command() -> None:
    parser = frame._parser(only="inspect")
    assert parser.parse_args(["inspect", "verify"]).cisfs_command == "inspect"


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from cisfs.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = (
        "import sys\n"
        "from cisfs.cli import inspect, main\n"
        "inspect.run = lambda args: print('x' * 1_000_000) or 0\n"
        "sys.exit(main.main(['inspect', 'x']))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


_SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "cisfs.cli.main":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from cisfs.cli.start import main
sys.exit(main())
"""


def test_ctrl_c_while_it_starts_shows_no_traceback() -> None:
    words = [sys.executable, "-c", _SLOW]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (-signal.SIGINT, b"")
