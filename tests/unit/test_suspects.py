"""What looks like a secret in a configuration is named; what does not is left in peace."""

from __future__ import annotations

from typing import Any

import pytest

from cisfs.runtime.images.suspects import Suspect, find, reason

SECRETS = [
    ("KEY", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc", "a private key"),
    ("X", "AKIAIOSFODNN7EXAMPLE", "an access key of AWS"),
    ("X", "ghp_" + "a1B2" * 9, "a token of GitHub"),
    ("X", "glpat-" + "a1B2" * 5, "a token of GitLab"),
    ("X", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc", "a JSON web token"),
    ("DATABASE_URL", "postgres://app:hunter2@db:5432/app", "a URL with a password"),
    ("DB_PASSWORD", "hunter2", "a secret, by its name"),
    ("dbPassword", "hunter2", "a secret, by its name"),
    ("SECRET_KEY_BASE", "x", "a secret, by its name"),
    ("STRIPE_API_KEY", "x", "a secret, by its name"),
    ("com.example.auth-token", "x", "a secret, by its name"),
    ("PGPASSWORD", "hunter2", "a secret, by its name"),
    ("MYSQL_PWD", "hunter2", "a secret, by its name"),
    ("DB_PWD", "hunter2", "a secret, by its name"),
    ("PGPASS", "hunter2", "a secret, by its name"),
    ("MYSQLPASSWORD", "hunter2", "a secret, by its name"),
    ("SECRETKEY", "x", "a secret, by its name"),
    ("S3_ACCESSKEY", "x", "a secret, by its name"),
    ("X", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "40 random characters"),
]
PLAIN = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("GPG_KEY", "A035C8C19219BA821ECEA86B64E628F8D684696D"),
    ("PYTHON_SHA256", "24887b92e2afd4a2ac602419ad4b596372f67ac9b077190f459aba390faf5550"),
    ("POSTGRES_PASSWORD_FILE", "/run/secrets/db"),
    ("DB_PASSWORD", ""),
    ("DB_PASSWORD", "$SECRET"),
    ("REQUIRE_AUTH", "true"),
    ("org.opencontainers.image.authors", "someone@example.org"),
    ("org.opencontainers.image.url", "https://example.org/some/long/path?x=1#fragment"),
    ("org.opencontainers.image.revision", "a" * 40),
    ("JAVA_OPTS", "-XX:+UseContainerSupport -XX:MaxRAMPercentage=75.0 -Djava.security.egd=x"),
    ("LANG", "C.UTF-8"),
    ("NODE_VERSION", "20.11.1"),
    ("MONKEY", "see"),
    ("COMPASS", "north"),
    ("PWD", "/app"),
    ("OLDPWD", "app"),
    ("PGPASSFILE", "pgpass"),
]
COMMANDS = [
    ("RUN |1 NPM_TOKEN=abc /bin/sh -c npm install", True),
    ("RUN /bin/sh -c curl https://user:pass@host/file", True),
    ("/bin/sh -c #(nop)  ENV DB_PASSWORD=hunter2", True),
    ("RUN app --password hunter2", True),
    ("RUN app --api-key='abc'", True),
    ("RUN /bin/sh -c apt-get install -y passwd && rm -rf /var/lib/apt/lists/*", False),
    (
        "/bin/sh -c #(nop) ADD file:2a949686d9886ac7c10582a6c29116fd29d3077d in /",
        False,
    ),
    ("COPY app /app # buildkit", False),
    ("RUN app --password $SECRET", False),
    ("RUN app --password-file /run/secrets/x", False),
    ("RUN x-token abc; y=--secret; eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0", True),
    ("RUN a-b-c d e=-f", False),
    ('CMD ["nginx" "-g" "daemon off;"]', False),
]


@pytest.mark.parametrize(("name", "text", "why"), SECRETS)
def test_what_looks_like_a_secret_is_said_to(name: str, text: str, why: str) -> None:
    assert reason(name, text) == why


@pytest.mark.parametrize(("name", "text"), PLAIN)
def test_what_images_have_anyway_is_no_secret(name: str, text: str) -> None:
    assert reason(name, text) is None


@pytest.mark.parametrize(("command", "is_secret"), COMMANDS)
def test_commands_are_searched_for_what_they_assign(command: str, is_secret: bool) -> None:
    assert bool(reason("", command)) is is_secret


def test_every_place_is_looked_at_and_no_secret_repeated() -> None:
    word = "hunter2"
    document: dict[str, Any] = {
        "comment": f"password={word}",
        "config": {
            "Env": ["PATH=/bin", f"DB_PASSWORD={word}"],
            "Labels": {"secret": word, "plain": "x"},
            "Entrypoint": ["app", f"--password={word}"],
            "Cmd": ["--token", word],
            "Healthcheck": {"Test": ["CMD", "curl", f"http://u:{word}@localhost"]},
            "OnBuild": ["COPY a b", f"ENV TOKEN={word}"],
            "Shell": ["sh", "--password", word],
            "Volumes": {"/data": {}},
            "Hostname": None,
        },
        "of a builder": {"args": [{"build-arg:TOKEN": word}, {"x": 1}]},
        "created": "2026-01-01T00:00:00.123456789Z",
        "rootfs": {"diff_ids": [f"password={word}"]},
        "history": [{"created_by": "COPY x"}, {"created_by": f"ENV TOKEN={word}"}],
    }
    found = find(document)
    assert [(each.where, each.name) for each in found] == [
        ("Env", "DB_PASSWORD"),
        ("Labels", "secret"),
        ("Entrypoint", ""),
        ("Cmd", ""),
        ("Healthcheck", ""),
        ("OnBuild", ""),
        ("Shell", ""),
        ("comment", ""),
        ("of a builder", ""),
        ("history", "2"),
    ]
    assert word not in "".join(map(str, found))
    assert str(Suspect("Env", "A", "b")) == "Env A: looks like b"
    assert str(Suspect("x\x1b[2J", "\ud800", "b")) == "x [2J: looks like b"


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [1, None, {}], {"a": 1}])
def test_what_is_of_a_wrong_type_is_no_secret(value: object) -> None:
    parts = ("Env", "Labels", "Entrypoint", "Cmd", "Healthcheck", "OnBuild", "Shell", "of others")
    find({"config": value, "history": value, "comment": value, "of others": value})
    find({"config": dict.fromkeys(parts, value), "history": [value]})


@pytest.mark.parametrize("part", ["-a", "a.", "eyJ-"])
def test_megabytes_of_what_begins_like_a_secret_come_to_an_end(part: str) -> None:
    """They take less than a second; looked at from each of the beginnings, hours."""
    text = part * ((1 << 20) // len(part))
    assert reason("", text) is None
