"""TLS, and where redirects may lead."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cisfs.errors import LoginError, RegistryError, UnreachableError, UsageError
from cisfs.registry.blobs import blob_size
from cisfs.registry.repository import Repository
from cisfs.registry.transport import Transport
from tests.registry.conftest import PATIENCE, Open
from tests.registry.content import blob, pushed_blob
from tests.registry.harness.certificates import Authority
from tests.registry.harness.debian import DebianRegistry, debian_registry
from tests.registry.harness.faults import Answer, Rule, Seen
from tests.registry.harness.modern import ModernRegistry
from tests.registry.harness.proxy import Proxy, proxy
from tests.registry.test_login import log_in

GET = r"GET .*/blobs/sha256"


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[DebianRegistry]:
    directory = tmp_path_factory.mktemp("secure")
    certificate = authority.issue("registry", "127.0.0.1")
    with debian_registry(directory, tls=certificate) as made:
        yield made


@pytest.fixture
def secure_front(modern: ModernRegistry, authority: Authority) -> Iterator[Proxy]:
    context = authority.issue("front", "127.0.0.1").context()
    with proxy((modern.host, modern.port), tls=context) as made:
        yield made


@pytest.fixture
def elsewhere(debian: DebianRegistry) -> Iterator[Proxy]:
    """Another host, which answers anything."""
    with proxy((debian.host, debian.port), host="127.0.0.2") as made:
        yield made


def redirect(to: str, status: int = 307) -> Answer:
    return Answer(status, [("Location", to)])


def test_tls(secure: DebianRegistry, authority: Authority, opened: Open) -> None:
    descriptor, content = pushed_blob(opened(secure.name, ca_file=authority.file), 1000)
    repository = opened(secure.name, ca_file=authority.file)
    assert repository.read_blob(descriptor, 1000) == content


def test_an_authority_that_nobody_trusts(
    secure: DebianRegistry, opened: Open, tmp_path: Path
) -> None:
    """No second try without TLS, nor without verification."""
    other = Authority(tmp_path, "other")
    for ca_file in (None, other.file):
        with pytest.raises(RegistryError, match=r"not trusted.*--ca-file") as found:
            blob_size(opened(secure.name, ca_file=ca_file).session, f"sha256:{'0' * 64}")
        assert not isinstance(found.value, UnreachableError)


def test_a_certificate_for_another_host(
    modern: ModernRegistry, authority: Authority, opened: Open
) -> None:
    context = authority.issue("stranger", "127.0.0.9").context()
    with (
        proxy((modern.host, modern.port), tls=context) as front,
        pytest.raises(RegistryError, match="not trusted"),
    ):
        blob_size(opened(front.name, ca_file=authority.file).session, f"sha256:{'0' * 64}")


@contextmanager
def at(registry: str, certificates: Path) -> Iterator[Repository]:
    """A repository at a registry, with authorities of hosts in a directory."""
    directories = (certificates / "absent", certificates)
    transport = Transport(patience=PATIENCE, certificates=directories)
    try:
        yield Repository(transport, registry, "its/own")
    finally:
        transport.close()


def test_an_authority_of_one_host(
    secure: DebianRegistry, authority: Authority, tmp_path: Path, opened: Open
) -> None:
    descriptor, content = pushed_blob(opened(secure.name, "its/own", ca_file=authority.file), 1000)
    for host in ("127.0.0.1:1", "no host"):
        (tmp_path / host).mkdir()
        shutil.copy(authority.file, tmp_path / host / "ca.crt")
    with (
        at(secure.name, tmp_path) as repository,
        pytest.raises(RegistryError, match="not trusted"),
    ):
        repository.read_blob(descriptor, 1000)
    (tmp_path / secure.name).mkdir()
    (tmp_path / secure.name / "bad.crt").write_text("no certificate")
    shutil.copy(authority.file, tmp_path / secure.name / "good.crt")
    with at(secure.name, tmp_path) as repository:
        assert repository.read_blob(descriptor, 1000) == content


def test_a_ca_file_that_is_none(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    for name, words in (("ca.crt", "no certificate in PEM"), ("absent", "No such file")):
        with pytest.raises(UsageError, match=words):
            opened("127.0.0.1:5", ca_file=tmp_path / name)


def test_http_goes_to_loopback_only(front: Proxy, opened: Open) -> None:
    """By the name as it was given: nobody is asked what it stands for."""
    for away in ("localhost.localdomain:80", "example.invalid:80"):
        with pytest.raises(UnreachableError):
            blob_size(opened(away).session, f"sha256:{'0' * 64}")
    assert blob_size(opened(f"localhost:{front.port}").session, f"sha256:{'0' * 64}") is None
    assert blob_size(opened(front.name, plain_http=True).session, f"sha256:{'0' * 64}") is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_credential_goes_to_another_host(
    locked: DebianRegistry, elsewhere: Proxy, opened: Open, nobody: Path, status: int
) -> None:
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, content = pushed_blob(repository, 1000)
        store = f"http://{elsewhere.name}/store?signature=1"
        elsewhere.rules = [Rule("store", Answer(200, body=content))]
        front.rules = [Rule(GET, redirect(store, status))]
        assert repository.read_blob(descriptor, 1000) == content
        (seen,) = elsewhere.seen
        assert seen.header("authorization") is None
        assert seen.header("cookie") is None


def test_another_port_is_another_host(
    locked: DebianRegistry, front: Proxy, opened: Open, nobody: Path
) -> None:
    """Cookies would not mind ports."""
    with proxy((locked.host, locked.port)) as first:
        log_in(nobody, first.name)
        repository = opened(first.name)
        descriptor, content = pushed_blob(repository, 1000)
        front.rules = [Rule("store", Answer(200, body=content))]
        cookie = ("Set-Cookie", "session=secret; Path=/")
        answer = Answer(307, [("Location", f"http://{front.name}/store"), cookie])
        first.rules = [Rule(GET, answer)]
        assert repository.read_blob(descriptor, 1000) == content
        assert front.seen[0].header("authorization") is None
        assert front.seen[0].header("cookie") is None


def test_a_way_there_and_back_carries_no_credential(
    locked: DebianRegistry, elsewhere: Proxy, opened: Open, nobody: Path
) -> None:
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, _ = pushed_blob(repository, 1000)
        path = f"/v2/{repository.session.repository}/blobs/{descriptor.digest}"
        elsewhere.rules = [Rule("", redirect(f"http://{front.name}{path}?back"))]
        front.rules = [
            Rule("back", Answer(200, body=bytes(1000))),
            Rule(GET, redirect(f"http://{elsewhere.name}/there")),
        ]
        with pytest.raises(RegistryError):
            repository.read_blob(descriptor, 1000)
        (back,) = front.requests("back")
        assert back.header("authorization") is None


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "xn--a"])
def test_a_redirect_to_no_name_at_all(front: Proxy, opened: Open, host: str) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 1000)
    front.rules = [Rule(GET, redirect(f"https://{host}/there"))]
    with pytest.raises(RegistryError, match="no address"):
        repository.read_blob(descriptor, 1000)


def test_the_same_host_keeps_the_credential(
    locked: DebianRegistry, opened: Open, nobody: Path
) -> None:
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, content = pushed_blob(repository, 1000)

        def once(seen: Seen) -> Answer | None:
            return None if "again" in seen.target else redirect(f"{seen.target}?again=1")

        front.rules = [Rule(GET, once)]
        assert repository.read_blob(descriptor, 1000) == content


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_a_password_is_not_given_to_who_asks_elsewhere(
    locked: DebianRegistry, elsewhere: Proxy, opened: Open, nobody: Path, scheme: str
) -> None:
    """A store that a redirect led to may not ask for it, nor name a server that is to get it."""
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, _ = pushed_blob(repository, 1000)
        realm = f'{scheme} realm="http://{elsewhere.name}/token",service="x"'
        elsewhere.rules = [Rule("", Answer(401, [("WWW-Authenticate", realm)]))]
        front.rules = [Rule(GET, redirect(f"http://{elsewhere.name}/there"))]
        with pytest.raises(LoginError, match="at another host, which wants a login of its own"):
            repository.read_blob(descriptor, 1000)
        assert [s.target for s in elsewhere.seen] == ["/there"]
        assert elsewhere.seen[0].header("authorization") is None


def test_an_upload_that_goes_on_elsewhere(
    locked: DebianRegistry, elsewhere: Proxy, opened: Open, nobody: Path
) -> None:
    with proxy((locked.host, locked.port)) as front:
        log_in(nobody, front.name)
        repository = opened(front.name)
        descriptor, content = blob(1000, seed=72)
        assert not repository.has_blob(descriptor)  # with the login
        elsewhere.rules = [Rule("", Answer(201))]
        away = f"http://{elsewhere.name}/upload"
        front.rules = [Rule("POST", Answer(202, [("Location", away)]))]
        repository.upload_bytes(descriptor, content)
        assert [s.header("authorization") for s in elsewhere.seen] == [None]
        assert elsewhere.received == 1000


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://127.0.0.1:1/x", "from https to http"),
        ("ftp://127.0.0.1/x", "no address"),
        ("https://a:b@127.0.0.1/", "password"),
        ("https://[::1/", "Invalid URL"),  # httpx itself looks at it first
        ("https://127.0.0.1:99999/", "no address|127.0.0.1:99999"),
    ],
)
def test_redirects_that_will_not_do(
    secure_front: Proxy, authority: Authority, opened: Open, location: str, words: str
) -> None:
    secure_front.rules = [Rule(GET, redirect(location))]
    repository = opened(secure_front.name, ca_file=authority.file)
    descriptor, _ = pushed_blob(repository, 10)
    with pytest.raises(RegistryError, match=words):
        repository.read_blob(descriptor, 10)


def test_http_elsewhere_is_refused_from_loopback_too(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 10)
    front.rules = [Rule(GET, redirect("http://example.invalid/x"))]
    with pytest.raises(RegistryError, match=r"without TLS.*--plain-http"):
        repository.read_blob(descriptor, 10)


def test_redirects_in_a_circle(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 10)
    front.rules = [Rule(GET, lambda seen: redirect(seen.target))]
    with pytest.raises(RegistryError, match="more than 8 times"):
        repository.read_blob(descriptor, 10)
    assert len(front.requests(GET)) == 9


def test_a_redirect_that_would_lose_a_body(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = blob(10, seed=71)
    front.rules = [Rule("PUT", redirect("/elsewhere", 302))]
    with pytest.raises(RegistryError, match="redirects a PUT"):
        repository.upload_bytes(descriptor, content)


def test_retry_after_is_obeyed_within_reason(front: Proxy, opened: Open) -> None:
    """An hour is not: patience says how long is reasonable."""
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, 10)
    front.rules = [Rule(GET, Answer(429, [("Retry-After", "3600")]), times=2)]
    assert repository.read_blob(descriptor, 10) == content


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_later_is_too_late(front: Proxy, opened: Open, status: int) -> None:
    repository = opened(front.name)
    front.rules = [Rule("", Answer(status))]
    with pytest.raises(UnreachableError, match=f"answered {status}"):
        blob_size(repository.session, f"sha256:{'0' * 64}")
    assert len(front.seen) == 4
