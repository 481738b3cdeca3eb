"""Which of several programs of our name is ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cisfs.runtime import installed


def program(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / installed.BINARY
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_one_beside_the_command_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the command is a link to what was installed, and where it is a module."""
    command, interpreter, other = tmp_path / "bin", tmp_path / "python", tmp_path / "other"
    (tmp_path / "cisfs").symlink_to(command / "cisfs")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cisfs")])
    monkeypatch.setattr(sys, "executable", str(interpreter / "python"))
    monkeypatch.setenv("PATH", str(other))
    assert installed.runtime() is None
    for directory in (other, interpreter, command):
        expected = str(program(directory))
        assert installed.runtime() == expected
    (command / installed.BINARY).chmod(0o644)
    assert installed.runtime() == str(interpreter / installed.BINARY)
