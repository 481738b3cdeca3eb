"""Logins that docker or podman keep: their configuration files and credential helpers.

In this order: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, podman's own file, docker's own
file (containers-auth.json(5); docker's "Credential stores"); without HOME, in the home directory of
whose process it is.  Reads only; a secret shows up in no
message and no repr.  Does not know how a login is used.  Safe for several threads.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cisfs.errors import FormatError, LoginError, UsageError
from cisfs.format.said import repeatable
from cisfs.registry.documents import Json, parse_object
from cisfs.registry.reference import DEFAULT_REGISTRY

MAX_FILE = 1 << 20  # bytes
MAX_ANSWER = 1 << 16  # bytes that a helper may print
HELPER_SECONDS = 120.0  # it may have to ask somebody for a password
_HUB_KEY = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"  # noqa: S105 - the name by which helpers say that the secret is a token
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Login:
    """A name and password, or else an identity token (OAuth 2.0's refresh token)."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


def find_login(registry: str, repository: str) -> Login | None:
    """Return the login that some file has for a repository, the narrowest entry first.

    Raises UsageError for a file that cannot be read or understood, LoginError for a helper that
    fails.
    """
    for path in _files():
        document = _read(path)
        login = _from_document(document, registry, repository, path) if document else None
        if login is not None:
            return login
    return None


def _files() -> Iterator[Path]:
    environment = os.environ
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if directory := environment.get("DOCKER_CONFIG"):
        yield Path(directory, "config.json")
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")
    elif os.geteuid() == 0:
        yield Path("/run/containers/0/auth.json")
    home = environment.get("HOME") or _home()
    if home:
        config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        yield Path(config, "containers", "auth.json")
        yield Path(home, ".docker", "config.json")


def _home() -> str | None:
    """Services of systemd have no HOME, but for users that they name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return None


def _read(path: Path) -> dict[str, Json] | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read logins from {path}: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise UsageError(f"cannot read logins from {path}: longer than {MAX_FILE} bytes")
    try:
        return parse_object(data, str(path)) if data.strip() else None
    except FormatError as error:
        raise UsageError(f"cannot read logins: {error}") from None


def _from_document(
    document: Mapping[str, Json], registry: str, repository: str, path: Path
) -> Login | None:
    logins, helpers = _object(document, "auths"), _object(document, "credHelpers")
    for key in _keys(registry, repository):
        program = next((value for name, value in helpers.items() if _plain(name) == key), None)
        if isinstance(program, str):
            return _from_helper(program, registry)
        for name, entry in logins.items():
            if _plain(name) == key and isinstance(entry, dict):
                login = _from_entry(entry, name, path)
                if login is not None:
                    return login
    store = document.get("credsStore")
    return _from_helper(store, registry) if isinstance(store, str) and store else None


def _keys(registry: str, repository: str) -> Iterator[str]:
    """From the repository up to the registry, as podman may have entries for."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((registry, *parts[:count]))
    yield registry


def _plain(name: str) -> str:
    """Return what an entry is for: docker's may have a scheme and a path of the old API."""
    if name == _HUB_KEY:
        return DEFAULT_REGISTRY
    if "://" in name:
        return name.partition("://")[2].split("/")[0]
    return name.rstrip("/")


def _from_entry(entry: Mapping[str, Json], name: str, path: Path) -> Login | None:
    token, auth = entry.get("identitytoken"), entry.get("auth")
    username, password = entry.get("username"), entry.get("password")
    if isinstance(auth, str) and auth:
        try:
            pair = base64.b64decode(auth, validate=True).decode()
        except ValueError:
            raise UsageError(f"the login for {name} in {path} is damaged; log in anew") from None
        username, _, password = pair.rstrip("\0").partition(":")
    username = username if isinstance(username, str) else ""
    password = password if isinstance(password, str) else ""
    if isinstance(token, str) and token:
        return Login(username, "", token)
    return Login(username, password) if username else None


def _from_helper(program: str, registry: str) -> Login | None:
    """Ask `docker-credential-PROGRAM get` (github.com/docker/docker-credential-helpers)."""
    if not _HELPER.fullmatch(program):
        raise UsageError(f"{repeatable(program)!r} is no name of a credential helper")
    name = f"docker-credential-{program}"
    key = _HUB_KEY if registry == DEFAULT_REGISTRY else registry
    try:
        status, answer = _run([name, "get"], key.encode())
    except OSError as error:
        raise LoginError(
            f"cannot run {name} for the login at {registry}: {error.strerror}"
        ) from None
    return _from_answer(status, answer, name, registry)


def _run(words: list[str], said: bytes) -> tuple[int, bytes]:
    """Run a helper to its end or to our patience's; returns its status and what it printed."""
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        watch = threading.Timer(HELPER_SECONDS, process.kill)
        watch.start()
        answer = b""
        try:
            if process.stdin is not None and process.stdout is not None:  # as asked for above
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(said)
                answer = process.stdout.read(MAX_ANSWER + 1)
            if len(answer) > MAX_ANSWER:
                process.kill()
            return process.wait(), answer
        finally:
            watch.cancel()


def _from_answer(status: int, answer: bytes, name: str, registry: str) -> Login | None:
    if len(answer) > MAX_ANSWER:
        raise LoginError(f"{name} answers more than {MAX_ANSWER} bytes")
    if status:
        if b"not found" in answer:  # its words for "no login", on standard output
            return None
        raise LoginError(f"{name} failed with status {status} for {registry}; try: {name} get")
    try:
        document = json.loads(answer)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise LoginError(f"{name} answers what is no login") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise LoginError(f"{name} answers what is no login")
    return Login("", "", secret) if username == _TOKEN_USER else Login(username, secret)


def _object(document: Mapping[str, Json], name: str) -> dict[str, Json]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}
