"""References are what docker takes them for."""

from __future__ import annotations

import pytest

from cisfs.errors import UsageError
from cisfs.registry.reference import Reference, is_digest, is_loopback

DIGEST = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpine", Reference("docker.io", "library/alpine", "latest")),
        ("alpine:3.20", Reference("docker.io", "library/alpine", "3.20")),
        ("team/app", Reference("docker.io", "team/app", "latest")),
        ("docker.io/alpine", Reference("docker.io", "library/alpine", "latest")),
        ("index.docker.io/team/app:1", Reference("docker.io", "team/app", "1")),
        ("localhost/app", Reference("localhost", "app", "latest")),
        ("localhost:5000/a/b/c:x", Reference("localhost:5000", "a/b/c", "x")),
        ("host:5000/app", Reference("host:5000", "app", "latest")),
        ("Host/app", Reference("Host", "app", "latest")),
        ("quay.io/a/b_c__d-e--f.g:T_1.-", Reference("quay.io", "a/b_c__d-e--f.g", "T_1.-")),
        ("[::1]:5000/app", Reference("[::1]:5000", "app", "latest")),
        ("[2001:db8::1]/app:1", Reference("[2001:db8::1]", "app", "1")),
        (f"app@{DIGEST}", Reference("docker.io", "library/app", None, DIGEST)),
        (f"h.io/app:1@{DIGEST}", Reference("h.io", "app", "1", DIGEST)),
        ("h.io/" + "a" * 250, Reference("h.io", "a" * 250, "latest")),
    ],
)
def test_what_docker_takes(text: str, expected: Reference) -> None:
    found = Reference.parse(text)
    assert found == expected
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "/app",
        "app/",
        "a//b",
        "App",
        "h.io/App",
        "h.io/",
        "app:",
        "app:.tag",
        "app:" + "t" * 129,
        "app:täg",
        "app@",
        "app@sha256:abc",
        f"app@{DIGEST.upper()}",
        f"app@{DIGEST}0",
        "app@sha512:" + "0" * 128,
        "a" * 64,
        "0" * 64,
        "h.io/" + "a" * 251,
        "-h.io/app",
        "h..io/app",
        "h.io:port/app",
        "h.io:123456/app",
        "user:pass@h.io/app",
        "https://h.io/app",
        "h.io/app?x=1",
        "h.io/../app",
        "h.io/app\n",
        "h.io/a_-b",
        "h.io/a...b",
    ],
)
def test_what_docker_does_not_take(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_what_is_asked_for() -> None:
    assert Reference.parse("app:1").target == "1"
    bound = Reference.parse(f"app:1@{DIGEST}")
    assert bound.target == DIGEST
    assert bound.name == "docker.io/library/app"
    assert str(bound) == f"docker.io/library/app:1@{DIGEST}"


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1", True),
        ("127.255.3.4:80", True),
        ("[::1]", True),
        ("[::1]:443", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org:80", False),
        ("example.org:127", False),
        ("10.0.0.1:5000", False),
        ("[2001:db8::1]:5000", False),
        ("2130706433", False),  # 127.0.0.1 to some resolvers, and nothing that we would guess at
    ],
)
def test_loopback(registry: str, expected: bool) -> None:
    assert is_loopback(registry) is expected


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert not is_digest(DIGEST + "\n")


def test_what_is_repeated_is_short() -> None:
    for text in ("\U000e0001" * 300, "a/" + "A\x01" * 150, "a:" + "!\x01" * 150):
        with pytest.raises(UsageError) as caught:
            Reference.parse(text)
        assert len(str(caught.value)) < 400
