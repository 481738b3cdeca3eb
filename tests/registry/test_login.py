"""Names and passwords, tokens, helpers, and what is said when none of it will do."""

from __future__ import annotations

import base64
import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from cisfs.errors import LoginError, RegistryError, UnreachableError
from cisfs.registry.blobs import blob_size
from cisfs.registry.source import BytesSource
from tests.registry.conftest import Open
from tests.registry.content import blob, pushed_blob
from tests.registry.harness.debian import PASSWORD, USER, DebianRegistry
from tests.registry.harness.faults import Answer, Rule
from tests.registry.harness.proxy import proxy
from tests.registry.harness.tokens import IDENTITY_TOKEN, Tokens


def basic(user: str = USER, password: str = PASSWORD) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def configure(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config))


def log_in(directory: Path, registry: str, **entry: str) -> None:
    configure(directory, {"auths": {registry: entry or {"auth": basic()}}})


def test_a_name_and_password(locked: DebianRegistry, opened: Open, nobody: Path) -> None:
    log_in(nobody, locked.name)
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        descriptor, content = pushed_blob(opened(front.name), 1000)
        assert opened(front.name).read_blob(descriptor, 1000) == content
        # Asked for once; sent with every request from then on.
        assert [s.status for s in front.seen].count(401) == 2
        assert front.seen[1].header("authorization") == f"Basic {basic()}"


def test_no_login(locked: DebianRegistry, opened: Open) -> None:
    descriptor, _ = blob(10)
    with pytest.raises(LoginError) as found:
        opened(locked.name, "some/thing").has_blob(descriptor)
    assert str(found.value) == (
        f"{locked.name}/some/thing: blob {descriptor.digest[:19]}: a login is needed: "
        f"docker login {locked.name}"
    )
    assert found.value.exit_code == 22


def test_a_wrong_password(
    locked: DebianRegistry, opened: Open, nobody: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log_in(nobody, locked.name, auth=basic(password="hunter2-wrong"))
    descriptor, _ = blob(10)
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name, auth=basic(password="hunter2-wrong"))
        with pytest.raises(LoginError, match=f"the login of {USER} is not accepted") as found:
            opened(front.name).has_blob(descriptor)
        assert len(front.seen) == 2
    for secret in ("hunter2-wrong", basic(password="hunter2-wrong")):
        assert secret not in str(found.value)
        assert secret not in caplog.text


def test_forbidden(locked: DebianRegistry, opened: Open, nobody: Path) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"not\\u001b[2J for you"}]}'
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        front.rules = [Rule("POST", Answer(403, body=body))]
        descriptor, content = blob(10)
        with pytest.raises(LoginError, match=rf"forbidden to {USER} \(not \[2J for you\)"):
            opened(front.name).upload_bytes(descriptor, content)


def test_tokens(bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path) -> None:
    with proxy((bearer.host, bearer.port)) as front:
        log_in(nobody, front.name)
        tokens.asked.clear()
        tokens.logins.clear()
        repository = opened(front.name, "team/app")
        descriptor, content = pushed_blob(repository, 1000)
        assert repository.read_blob(descriptor, 1000) == content
        # One to look, one to push; the second request that only reads takes the first again.
        assert [asked["scope"] for asked in tokens.asked] == [
            ["repository:team/app:pull"],
            ["repository:team/app:pull,push"],
        ]
        assert tokens.logins == [f"Basic {basic()}"] * 2
        sent = [s.header("authorization") or "" for s in front.seen]
        assert sent[0] == ""
        assert all(header.startswith("Bearer ") for header in sent[1:])
        other = opened(front.name, "team/other")
        assert not other.upload(descriptor, BytesSource(content), mount_from="team/app")
        assert tokens.asked[-1]["scope"] == [
            "repository:team/app:pull",
            "repository:team/other:pull,push",
        ]


def test_anybody_may_pull(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path
) -> None:
    log_in(nobody, bearer.name)
    descriptor, content = pushed_blob(opened(bearer.name, "team/public"), 1000)
    (nobody / "config.json").unlink()
    tokens.logins.clear()
    stranger = opened(bearer.name, "team/public")
    assert stranger.read_blob(descriptor, 1000) == content
    assert tokens.logins == [None]
    other, more = blob(10, seed=5)
    with pytest.raises(LoginError, match="a login is needed: docker login"):
        stranger.upload_bytes(other, more)


def test_an_identity_token(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path
) -> None:
    log_in(nobody, bearer.name, identitytoken=IDENTITY_TOKEN)
    tokens.logins.clear()
    pushed_blob(opened(bearer.name), 1000)
    assert tokens.logins == [None, None]
    log_in(nobody, bearer.name, identitytoken="another")
    with pytest.raises(LoginError, match="does not accept the login of the token's owner"):
        pushed_blob(opened(bearer.name, "team/else"), 1000)


@pytest.mark.parametrize("status", [307, 308])
def test_an_identity_token_goes_nowhere_else(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path, status: int
) -> None:
    with (
        proxy((bearer.host, bearer.port)) as front,
        proxy((bearer.host, bearer.port)) as server,
        proxy((bearer.host, bearer.port)) as elsewhere,
    ):
        log_in(nobody, front.name, identitytoken=IDENTITY_TOKEN)
        challenge = f'Bearer realm="http://{server.name}/token"'
        front.rules = [Rule("", Answer(401, [("WWW-Authenticate", challenge)]))]
        to = f"http://{elsewhere.name}/token"
        server.rules = [Rule("POST /token", Answer(status, [("Location", to)]))]
        with pytest.raises(RegistryError, match=f"redirects a login to {elsewhere.name}: refused"):
            blob_size(opened(front.name).session, f"sha256:{'0' * 64}")
        assert not elsewhere.seen
        server.rules = [
            Rule("POST /token", Answer(status, [("Location", "/other")])),
            Rule("POST /other", Answer(307, [("Location", tokens.server.realm)])),
        ]
        with pytest.raises(RegistryError, match="redirects a login to"):
            blob_size(opened(front.name).session, f"sha256:{'0' * 64}")
        assert [each.target for each in server.seen] == ["/token", "/token", "/other"]


def test_a_life_longer_than_the_universe(bearer: DebianRegistry, opened: Open) -> None:
    with proxy((bearer.host, bearer.port)) as front:
        challenge = f'Bearer realm="http://{front.name}/token"'
        answer = b'{"token":"a","expires_in":' + b"9" * 400 + b"}"
        front.rules = [
            Rule("GET /token", Answer(200, [], answer)),
            Rule("", Answer(401, [("WWW-Authenticate", challenge)])),
        ]
        with pytest.raises(LoginError):
            blob_size(opened(front.name).session, f"sha256:{'0' * 64}")


def test_a_token_that_is_over(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path
) -> None:
    """It is fetched anew, in the midst of an upload too."""
    with proxy((bearer.host, bearer.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, content = blob(300_000, seed=77)
        over = Answer(
            401, [("WWW-Authenticate", f'Bearer realm="{tokens.server.realm}",service="s"')]
        )
        front.rules = [Rule("PATCH", over, times=1), Rule("PUT", over, times=1)]
        before = len(tokens.asked)
        assert repository.upload(descriptor, BytesSource(content), chunk=200_000)
        assert repository.read_blob(descriptor, 300_000) == content
        assert len(tokens.asked) - before == 4


def test_a_token_that_is_never_right(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, nobody: Path
) -> None:
    with proxy((bearer.host, bearer.port)) as front:
        log_in(nobody, front.name)
        challenge = f'Bearer realm="{tokens.server.realm}",error="insufficient_scope"'
        front.rules = [Rule("", Answer(401, [("WWW-Authenticate", challenge)]))]
        with pytest.raises(LoginError, match="not accepted"):
            blob_size(opened(front.name).session, f"sha256:{'0' * 64}")
        assert len(front.seen) == 3


@pytest.mark.parametrize(
    ("status", "kind"), [(401, LoginError), (403, LoginError), (503, UnreachableError)]
)
def test_the_token_server_refuses(
    bearer: DebianRegistry, tokens: Tokens, opened: Open, status: int, kind: type[RegistryError]
) -> None:
    tokens.status = status
    try:
        with pytest.raises(kind, match=bearer.name):
            blob_size(opened(bearer.name).session, f"sha256:{'0' * 64}")
    finally:
        tokens.status = None


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("Negotiate", "of a kind that cisfs cannot do"),
        (None, "of a kind that cisfs cannot do"),
        ('Bearer realm="ftp://127.0.0.1/"', "names no token server"),
        ('Bearer service="x"', "names no token server"),
        ('Bearer realm="http://example.org/token"', "without TLS"),
        ('Bearer realm="http://user:pass@127.0.0.1/token"', "has a password in it"),
        (f'Bearer realm="https://{"a" * 64}/token"', "is no address of a registry"),
        ('Bearer realm="https://a..b/token"', "is no address of a registry"),
        ('Bearer realm="https://xn--a/token"', "is no address of a registry"),
        ('Bearer realm="https://[::1/token"', "is no address of a registry"),
    ],
)
def test_challenges_that_will_not_do(
    locked: DebianRegistry, opened: Open, nobody: Path, challenge: str | None, words: str
) -> None:
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        headers = [] if challenge is None else [("WWW-Authenticate", challenge)]
        front.rules = [Rule("", Answer(401, headers))]
        with pytest.raises(RegistryError, match=words):
            blob_size(opened(front.name).session, f"sha256:{'0' * 64}")


HELPER = """\
#!/bin/sh
read -r registry || true
[ "$registry" = '{registry}' ] || {{ echo "credentials not found in native keychain"; exit 1; }}
echo '{{"ServerURL":"x","Username":"{user}","Secret":"{secret}"}}'
"""


def install_helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = directory / "docker-credential-tests"
    path.write_text(script)
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize("named", ["credsStore", "credHelpers"])
def test_a_helper(
    locked: DebianRegistry,
    opened: Open,
    nobody: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
) -> None:
    script = HELPER.format(registry=locked.name, user=USER, secret=PASSWORD)
    install_helper(nobody, monkeypatch, script)
    value = "tests" if named == "credsStore" else {locked.name: "tests"}
    configure(nobody, {"auths": {locked.name: {}}, named: value})
    pushed_blob(opened(locked.name), 10)


def test_a_helper_with_a_token(
    bearer: DebianRegistry, opened: Open, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = HELPER.format(registry=bearer.name, user="<token>", secret=IDENTITY_TOKEN)
    install_helper(nobody, monkeypatch, script)
    configure(nobody, {"credsStore": "tests"})
    pushed_blob(opened(bearer.name), 10)
