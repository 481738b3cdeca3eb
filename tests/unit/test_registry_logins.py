"""Where logins are looked for, and what is made of what is there."""

from __future__ import annotations

import base64
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from cisfs.errors import CisfsError, LoginError, UsageError
from cisfs.registry import logins
from cisfs.registry.logins import Login, find_login

HUB = "https://index.docker.io/v1/"


def auth(user: str = "me", password: str = "pass:word") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path, document: Any) -> Path:  # noqa: ANN401 - JSON
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def found(registry: str = "h.io", repository: str = "a/b") -> Login | None:
    return find_login(registry, repository)


def test_files_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found() is None
    places = [
        home / ".docker/config.json",
        home / ".config/containers/auth.json",
        home / "run/containers/auth.json",
        home / "docker/config.json",
        home / "named.json",
    ]
    for number, place in enumerate(places):
        write(place, {"auths": {"h.io": auth(f"user-{number}")}})
        if number == 3:
            monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
        if number == 4:
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "named.json"))
        assert found() == Login(f"user-{number}", "pass:word")
    write(home / "named.json", {"auths": {"other.io": auth()}})
    assert found() == Login("user-3", "pass:word")


def test_without_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As services of systemd are."""
    monkeypatch.delenv("HOME")
    user = list(pwd.getpwuid(os.geteuid()))
    user[5] = str(home / "theirs")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd(user))
    write(home / "theirs/.docker/config.json", {"auths": {"h.io": auth("me")}})
    assert found() == Login("me", "pass:word")

    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert found() is None


@pytest.mark.parametrize(
    ("key", "registry", "expected"),
    [
        ("h.io", "h.io", True),
        ("https://h.io", "h.io", True),
        ("https://h.io/v1/", "h.io", True),
        ("http://h.io:5000/v2/", "h.io:5000", True),
        ("h.io/a/b", "h.io", True),
        ("h.io/a", "h.io", True),
        ("h.io/a/c", "h.io", False),
        ("h.io/a/b/c", "h.io", False),
        ("h.io:5000", "h.io", False),
        ("evil-h.io", "h.io", False),
        (HUB, "docker.io", True),
        ("docker.io", "docker.io", True),
        (HUB, "index.docker.io.example.org", False),
    ],
)
def test_keys(home: Path, key: str, registry: str, expected: bool) -> None:
    write(home / ".docker/config.json", {"auths": {key: auth()}})
    assert (found(registry) is not None) is expected


def test_the_narrowest_entry_wins(home: Path) -> None:
    entries = {"h.io": auth("wide"), "h.io/a": auth("narrow"), "h.io/a/b": auth("narrowest")}
    write(home / ".docker/config.json", {"auths": entries})
    assert [found(repository=r) for r in ("a/b", "a/c", "c")] == [
        Login(name, "pass:word") for name in ("narrowest", "narrow", "wide")
    ]


def test_other_spellings(home: Path) -> None:
    path = home / ".docker/config.json"
    write(path, {"auths": {"h.io": {"username": "me", "password": "secret"}}})
    assert found() == Login("me", "secret")
    write(path, {"auths": {"h.io": {**auth("me", ""), "identitytoken": "token"}}})
    assert found() == Login("me", "", "token")
    write(path, {"auths": {"h.io": {}}})
    assert found() is None
    path.write_text("")
    assert found() is None


def test_nothing_shows_a_secret(home: Path) -> None:
    login = Login("me", "hunter2", "tok3n")
    assert "hunter2" not in repr(login)
    assert "tok3n" not in repr(login)
    path = write(home / ".docker/config.json", {"auths": {"h.io": {"auth": "hunter2!"}}})
    with pytest.raises(UsageError) as refused:
        found()
    assert "hunter2" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b'{"auths":{"a":1,"a":2}}', b"{" + b" " * logins.MAX_FILE]
)
def test_files_that_will_not_do(home: Path, content: bytes) -> None:
    path = write(home / ".docker/config.json", {})
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        found()


@pytest.mark.parametrize(
    "document",
    [
        {"auths": 5},
        {"auths": {"h.io": 5}},
        {"auths": {"h.io": {"auth": 5, "identitytoken": {}}}},
        {"credHelpers": [], "credsStore": {}},
        {"credHelpers": {"h.io": None}},
    ],
)
def test_members_of_other_types_are_no_login(home: Path, document: dict[str, Any]) -> None:
    write(home / ".docker/config.json", document)
    assert found() is None


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = home / "docker-credential-tests"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    write(home / ".docker/config.json", {"credsStore": "tests"})


def test_a_helper_is_told_the_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        f'read -r r; echo "{{\\"Username\\":\\"$1\\",\\"Secret\\":\\"$r\\"}}" | tee {home}/said'
    )
    helper(home, monkeypatch, script)
    assert found() == Login("get", "h.io")
    assert found("docker.io") == Login("get", HUB)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "failed with status 3"),
        ("echo nonsense", "what is no login"),
        ("echo '[]'", "what is no login"),
        ('echo \'{"Username":1,"Secret":""}\'', "what is no login"),
        ("exec cat /dev/zero", "more than"),
        ("sleep 0; exec sleep 60", "status -9"),
    ],
)
def test_helpers_that_will_not_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(logins, "HELPER_SECONDS", 0.3 if "sleep" in script else 30.0)
    helper(home, monkeypatch, script)
    with pytest.raises(LoginError, match=words):
        found()


def test_a_helper_that_knows_no_login(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, 'echo "credentials not found in native keychain"; exit 1')
    assert found() is None


@pytest.mark.parametrize("name", ["absent", "../tests", "a b", "-x", "/bin/sh"])
def test_names_of_helpers(home: Path, name: str) -> None:
    write(home / ".docker/config.json", {"credsStore": name})
    with pytest.raises(CisfsError, match=r"helper|cannot run docker-credential-absent"):
        found()
