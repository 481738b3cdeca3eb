"""Debian's docker-registry, started on a loopback port with a storage directory of its own.

Does not know cisfs.  Each started one is ended by the context manager that started it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.registry.harness.certificates import Certificate

PROGRAM = "docker-registry"
USER, PASSWORD = "somebody", "a wrong horse"
# bcrypt of PASSWORD at the least cost there is: it is computed for every request.
_HTPASSWD = f"{USER}:$2y$04$rabRFZdepdRkkQouQj0pbe/K/wBbTZSSDtjKBXQ3Dj9L/S.0r1eUi\n"
_PATIENCE = 20.0  # seconds for it to answer


@dataclass(frozen=True)
class TokenServer:
    """Where a registry sends its clients for tokens, and whose signatures it believes."""

    realm: str
    service: str
    issuer: str
    certificates: Path


@dataclass(frozen=True)
class DebianRegistry:
    """A running one."""

    host: str
    port: int
    storage: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        """As a reference begins with it."""
        return f"{self.host}:{self.port}"

    def blob_path(self, digest: str) -> Path:
        """Where it keeps a blob."""
        value = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"


@contextlib.contextmanager
def debian_registry(
    directory: Path,
    *,
    host: str = "127.0.0.1",
    password: bool = False,
    tokens: TokenServer | None = None,
    tls: Certificate | None = None,
    delete: bool = True,
) -> Iterator[DebianRegistry]:
    """Run one whose files are all below `directory`, until the end of the block."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port(host)
    storage, log = directory / "storage", directory / "log"
    config = _config(directory, f"{host}:{port}", storage, password, tokens, tls, delete)
    path = directory / "config.yml"  # JSON is YAML
    path.write_text(json.dumps(config))
    program = shutil.which(PROGRAM)
    assert program, f"{PROGRAM} is not installed; scripts/test installs it"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        _wait(process, host, port, tls is not None, log)
        yield DebianRegistry(host, port, storage, log, process)
    finally:
        process.kill()
        process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listened on just now."""
    with socket.socket() as tried:
        tried.bind((host, 0))
        return int(tried.getsockname()[1])


def _config(
    directory: Path,
    address: str,
    storage: Path,
    password: bool,
    tokens: TokenServer | None,
    tls: Certificate | None,
    delete: bool,
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": delete},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": address, "secret": "of the tests"},
    }
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    if password:
        htpasswd = directory / "htpasswd"
        htpasswd.write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(htpasswd)}}
    if tokens is not None:
        config["auth"] = {
            "token": {
                "realm": tokens.realm,
                "service": tokens.service,
                "issuer": tokens.issuer,
                "rootcertbundle": str(tokens.certificates),
            }
        }
    return config


def _wait(process: subprocess.Popen[bytes], host: str, port: int, tls: bool, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        if _answers(host, port, tls):
            return
        time.sleep(0.02)
    raise AssertionError(f"no answer in {_PATIENCE:.0f} s: {log.read_text()}")


def _answers(host: str, port: int, tls: bool) -> bool:
    if tls:
        context = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=5, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 401)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
