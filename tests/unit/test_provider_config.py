"""The configuration of key providers: what is read, and whose word is not taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cisfs.errors import UsageError
from cisfs.keys import provider_config
from cisfs.keys.provider_config import VARIABLE, Command, Service, Tls, configured, find


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "providers.json"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def write(file: Path, providers: object, mode: int = 0o644) -> None:
    file.write_text(json.dumps({"key-providers": providers}))
    file.chmod(mode)


def test_every_way_to_a_provider_is_read(file: Path) -> None:
    tls = {
        "root-ca-file": "/ca",
        "cert-file": "/cert",
        "key-file": "/key",
        "server-name": "kms",
        "insecure-skip-verify": False,
    }
    write(
        file,
        {
            "program": {"cmd": {"path": "/bin/x", "args": ["a", "b"]}, "comment": 1},
            "alone": {"cmd": {"path": "x", "args": None}},
            "near": {"grpc": "localhost:50051"},
            "far": {"grpc": "kms:1", "grpc-tls": tls},
            "public": {"grpc": "kms:1", "grpc-tls": {}},
        },
    )
    assert configured() == ["alone", "far", "near", "program", "public"]
    assert find("program") == Command("/bin/x", ("a", "b"))
    assert find("alone") == Command("x", ())
    assert find("near") == Service("localhost:50051", None)
    assert find("far") == Service("kms:1", Tls("/ca", "/cert", "/key", "kms"))
    assert find("public") == Service("kms:1", Tls())


def test_no_file_is_no_provider(file: Path) -> None:
    assert configured() == []
    with pytest.raises(UsageError, match=f"^no key provider 'x' in {file}, which has: none$"):
        find("x")
    file.write_text("{}")
    file.chmod(0o600)
    assert configured() == []


def test_without_the_variable_it_is_ours_in_etc(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path("/etc/cisfs/keyproviders.json") == provider_config.DEFAULT
    write(file, {"x": {"grpc": "localhost:1"}})
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(provider_config, "DEFAULT", file)
    assert configured() == ["x"]


def test_one_bad_entry_leaves_the_others_alone(file: Path) -> None:
    write(file, {"bad": 1, "good": {"grpc": "localhost:1"}})
    assert configured() == ["bad", "good"]
    assert find("good") == Service("localhost:1", None)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (1, "is not a JSON object"),
        ({}, 'has neither "cmd" nor "grpc"'),
        ({"path": "/x", "args": []}, '"path" and "args" belong into an object "cmd"'),
        ({"cmd": "/x"}, "cmd is not a JSON object"),
        ({"cmd": {}}, "cmd has no path"),
        ({"cmd": {"path": 1}}, "path is not text"),
        ({"cmd": {"path": "/x", "args": "a b"}}, "args is not a list of texts"),
        ({"cmd": {"path": "/x", "args": [1]}}, "args is not a list of texts"),
        ({"grpc": 1}, "grpc is not text"),
        ({"grpc": "x:1", "grpc-tls": 1}, "grpc-tls is not a JSON object"),
        ({"grpc": "x:1", "grpc-tls": {"key-file": 1}}, "key-file is not text"),
        (
            {"grpc": "x:1", "grpc-tls": {"insecure-skip-verify": True}},
            "no insecure-skip-verify; name its CA in root-ca-file instead",
        ),
    ],
)
def test_a_bad_entry_is_told_where_and_why(file: Path, entry: object, words: str) -> None:
    write(file, {"x": entry})
    with pytest.raises(UsageError) as raised:
        find("x")
    assert str(raised.value).startswith(f"key provider x in {file}")
    assert str(raised.value).endswith(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is not valid JSON"),
        ("[]", "it is not a JSON object"),
        ('{"key-providers": []}', "key-providers is not a JSON object"),
        ('{"key-providers": {"x": {}, "x": {}}}', "a field stands twice"),
    ],
)
def test_a_bad_file_is_named(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(UsageError, match=f"^{file}: .*{words}"):
        configured()


def test_a_file_that_others_can_write_is_not_believed(file: Path) -> None:
    for mode in (0o664, 0o646):
        write(file, {}, mode)
        with pytest.raises(UsageError, match=f"others can write {file}, .*; chmod go-w it"):
            configured()


def test_a_file_of_somebody_else_is_not_believed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, {})
    owner = file.stat().st_uid
    if owner == 0:
        os.chown(file, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UsageError, match="is neither yours nor root's"):
        configured()


def test_a_file_that_cannot_be_read_is_no_absent_one(file: Path) -> None:
    file.mkdir()
    with pytest.raises(UsageError, match=f"cannot read {file}: Is a directory"):
        configured()
