"""init, inspect and verify on real vaults, and the arguments of mount and umount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cisfs.cli import arguments, verify
from cisfs.cli.main import main
from cisfs.layer import store
from cisfs.layer.vault import DEFAULT_UNIT_SIZE
from cisfs.layer.verify import Finding

FINDINGS = [
    Finding("/a", None, "its header is damaged"),
    Finding("/b/c", 7, "its tag was torn", mended=True),
]


@pytest.fixture
def key(tmp_path: Path) -> list[str]:
    """A raw key: opening with one needs no slow key derivation."""
    file = tmp_path / "key"
    file.write_bytes(bytes(range(32)))
    file.chmod(0o600)
    return ["--key-file", str(file)]


@pytest.fixture
def vault(tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    path = str(tmp_path / "vault")
    assert main(["init", *key, path]) == 0
    assert f"cisfs mount {path}" in capsys.readouterr().out
    return path


def test_a_new_vault_can_be_inspected_by_people_and_programs(
    vault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--json", vault]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["type"], described["unit_size"]) == ("vault", DEFAULT_UNIT_SIZE)
    assert main(["inspect", vault]) == 0
    assert f"unit size: {DEFAULT_UNIT_SIZE}" in capsys.readouterr().out


def test_the_unit_size_is_the_users(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--unit-size", "16k", *key, str(tmp_path / "small")]) == 0
    capsys.readouterr()
    assert main(["inspect", "--json", str(tmp_path / "small")]) == 0
    assert json.loads(capsys.readouterr().out)["unit_size"] == 16 * 1024


def test_the_help_states_the_unit_size_that_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init", "--help"])
    assert f"default: {DEFAULT_UNIT_SIZE // 1024}K" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("size", ["", "K", "0", "5K", "2K", "2M", "-4K", "4096.0", "٤٠٩٦", "4KB"])
def test_a_size_that_will_not_do_is_wrong_use(tmp_path: Path, size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["init", f"--unit-size={size}", str(tmp_path / "vault")])
    assert ended.value.code == 2
    assert not (tmp_path / "vault").exists()


def test_verify_says_that_all_is_well(
    vault: str, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *key, vault]) == 0
    assert capsys.readouterr().out == f"{vault}: everything is whole\n"
    assert main(["verify", "--json", *key, vault]) == 0
    assert json.loads(capsys.readouterr().out) == {"layer": vault, "damaged": 0, "findings": []}


def test_verify_prints_a_line_for_each_finding_and_a_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verify._print_lines(Path("v"), FINDINGS) == 1
    assert capsys.readouterr().out.splitlines() == [
        "/a: its header is damaged",
        "/b/c: unit 7: its tag was torn (mended)",
        "v: 1 mended, 1 damaged",
    ]


def test_a_name_cannot_say_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    planted = [Finding("/a\nv: everything is whole\x1b[8m", None, "it does not belong there")]
    assert verify._print_lines(Path("v"), planted) == 1
    assert capsys.readouterr().out.splitlines() == [
        "/a?v: everything is whole?[8m: it does not belong there",
        "v: 0 mended, 1 damaged",
    ]


def test_verify_prints_one_document_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify._print_json(Path("v"), FINDINGS) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["damaged"] == 1
    assert printed["findings"][1] == {
        "path": "/b/c",
        "unit": 7,
        "problem": "its tag was torn",
        "mended": True,
    }


def test_verify_fails_with_its_own_code_when_damage_remains(
    vault: str, key: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cisfs.layer.verify.verify", lambda _vault, **_options: iter(FINDINGS))
    assert main(["verify", *key, vault]) == 19
    monkeypatch.setattr("cisfs.layer.verify.verify", lambda _vault, **_options: iter(FINDINGS[1:]))
    assert main(["verify", *key, "--salvage", vault]) == 0


def test_what_is_no_vault_is_said_to_be_none(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["inspect"], ["verify", *key]):
        assert main([*command, str(tmp_path)]) == 10
        assert main([*command, str(tmp_path / "missing")]) == 10
    assert capsys.readouterr().err.count("\n") == 4


def test_umount_of_what_is_not_mounted_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["umount", "."]) == 17
    assert f"{tmp_path} is not a mount point" in capsys.readouterr().err


def test_a_layer_of_the_host_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, here = tmp_path / "layers", tmp_path / "here"
    directory.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(store, "DIRECTORY", directory)
    (directory / "team.cis").touch()
    assert arguments.layer("team") == directory / "team.cis"
    Path("team").touch()
    assert arguments.layer("team") == Path("team")
    for neither in ("none", "./team.cis", "", "a\0b"):
        assert arguments.layer(neither) == Path(neither)
