"""Registries, each with a proxy in front of it that does as a test says.

Debian's runs once for all tests, which use repositories of their own.  No test has a login, a proxy
or a directory of the user's.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.registry.patience import Patience
from cisfs.registry.repository import Repository
from cisfs.registry.session import Access
from cisfs.registry.transport import Transport
from tests.registry.harness.certificates import Authority
from tests.registry.harness.debian import DebianRegistry, debian_registry
from tests.registry.harness.modern import ModernRegistry, modern_registry
from tests.registry.harness.proxy import Proxy, proxy
from tests.registry.harness.tokens import Tokens, token_server

# Long enough for a busy machine, short enough for a test that waits for its end.
PATIENCE = Patience(connect=10, idle=10, attempts=4, longest_wait=0.1)
_COUNT = itertools.count()

Open = Callable[..., Repository]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of somebody who has logged in nowhere; returns docker's directory."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [t for t in threading.enumerate() if t not in before and not _serves(t)] == []


def _serves(thread: threading.Thread) -> bool:
    """Threads of session-wide servers come and go with connections."""
    return "process_request_thread" in thread.name


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    with debian_registry(tmp_path_factory.mktemp("debian")) as made:
        yield made


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    """One that wants a name and password."""
    with debian_registry(tmp_path_factory.mktemp("locked"), password=True) as made:
        yield made


@pytest.fixture
def modern() -> Iterator[ModernRegistry]:
    with modern_registry() as made:
        yield made


@pytest.fixture
def front(debian: DebianRegistry) -> Iterator[Proxy]:
    """A proxy in front of Debian's."""
    with proxy((debian.host, debian.port)) as made:
        yield made


@pytest.fixture
def modern_front(modern: ModernRegistry) -> Iterator[Proxy]:
    with proxy((modern.host, modern.port)) as made:
        yield made


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokens]:
    with token_server(tmp_path_factory.mktemp("tokens")) as made:
        yield made


@pytest.fixture(scope="session")
def bearer(tmp_path_factory: pytest.TempPathFactory, tokens: Tokens) -> Iterator[DebianRegistry]:
    """One that wants tokens."""
    directory = tmp_path_factory.mktemp("bearer")
    with debian_registry(directory, tokens=tokens.server) as made:
        yield made


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens repositories at a registry, one of its own in each test unless it is named."""
    transports: list[Transport] = []
    own = f"tests/number-{next(_COUNT)}"

    def open_one(
        at: str,
        repository: str = own,
        *,
        patience: Patience = PATIENCE,
        ca_file: Path | None = None,
        plain_http: bool = False,
    ) -> Repository:
        access = Access(ca_file=ca_file, plain_http=plain_http, patience=patience)
        transports.append(access.transport())
        return Repository(transports[-1], at, repository)

    yield open_one
    for transport in transports:
        transport.close()
