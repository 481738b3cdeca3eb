"""HTTP: one request, its redirects, one answer.  The only module that imports httpx.

Credentials go to the host that they are for and to no other, wherever a redirect leads, and nothing
goes from https to http.  An answer's body is read as it comes, at a least speed, never decoded.
Does not know registries, logins or repeated attempts.  For several threads, not across a fork.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import NamedTuple

import httpx

from cisfs.errors import RegistryError, UnreachableError
from cisfs.format.said import repeatable
from cisfs.registry.patience import Patience, Watch
from cisfs.registry.reference import is_loopback
from cisfs.registry.request import Request
from cisfs.registry.trust import DIRECTORIES, authorities, authorities_of_hosts

MAX_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
_SAME_METHOD = (307, 308)  # RFC 9110, 15.4: all others may make a GET of anything

# It logs the address of every request, and some addresses are credentials: signed ones, at stores
# that registries redirect to.
logging.getLogger("httpx").setLevel(logging.WARNING)


class Origin(NamedTuple):
    """What a credential is for (RFC 6454)."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


class Response:
    """An answer whose body has not been read yet."""

    def __init__(self, found: httpx.Response, patience: Patience) -> None:
        self._found = found
        self._patience = patience
        self.status = found.status_code
        self.url = str(found.url)

    def header(self, name: str) -> str | None:
        """Return a header's value, several joined by commas."""
        value: str | None = self._found.headers.get(name)
        return value

    @property
    def length(self) -> int | None:
        """The Content-Length, None if there is none that can be understood."""
        value = self.header("content-length")
        return int(value) if value and value.isascii() and value[:16].isdigit() else None

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes.  Raises UnreachableError when it breaks off or creeps."""
        pieces = self._found.iter_raw()
        watch = Watch(self._patience)
        while True:
            started = time.monotonic()
            with _failures(self._found.url):
                piece = next(pieces, b"")
            watch.saw(len(piece), time.monotonic() - started)
            if not piece:
                return
            yield piece

    def read(self, limit: int) -> bytes:
        """Return the whole body.  Raises RegistryError if it is longer than `limit` bytes."""
        found = bytearray()
        for piece in self.chunks():
            found += piece
            if len(found) > limit:
                raise RegistryError(f"{_host(self._found.url)} sends more than {limit} bytes")
        return bytes(found)


class Transport:
    """Connections to registries and to where they lead."""

    def __init__(
        self,
        *,
        ca_file: Path | None = None,
        plain_http: bool = False,
        patience: Patience | None = None,
        certificates: Sequence[Path] = DIRECTORIES,
    ) -> None:
        """`ca_file` holds further authorities, PEM; `plain_http` allows http to any host.

        `certificates` has authorities of single hosts: see `trust`.  Raises UsageError for a
        `ca_file` that will not do.
        """
        self.patience = patience or Patience()
        self._plain_http = plain_http
        wait = self.patience
        self._client = httpx.Client(
            verify=authorities(ca_file),
            timeout=httpx.Timeout(wait.idle, connect=wait.connect),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
            follow_redirects=False,
            # Proxies of the environment are for hosts elsewhere.
            mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
            | {
                f"https://{host}": httpx.HTTPTransport(verify=context)
                for host, context in authorities_of_hosts(ca_file, certificates).items()
            },
            headers={"User-Agent": "cisfs", "Accept-Encoding": "identity"},
        )
        # A cookie is a credential too, and a jar does not tell one port of a host from another.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    @contextmanager
    def open(self, request: Request) -> Iterator[Response]:
        """Send a request, follow where it leads, and yield the answer, whatever its status.

        Raises UnreachableError when there is none, RegistryError for a redirect that will not do.
        """
        url = self._url(request.url)
        method, authorization = request.method, request.authorization
        for _ in range(MAX_REDIRECTS + 1):
            found = self._send(request, method, url, authorization)
            try:
                if found.status_code not in _REDIRECTS or "location" not in found.headers:
                    yield Response(found, self.patience)
                    return
            finally:
                found.close()
            if method not in ("GET", "HEAD") and found.status_code not in _SAME_METHOD:
                raise RegistryError(f"{_host(url)} redirects a {method}, which would lose its body")
            onward = self._follow(url, found.headers["location"])
            if origin(onward) != origin(url):
                if request.is_secret:
                    raise RegistryError(
                        f"{_host(url)} redirects a login to {_host(onward)}: refused"
                    )
                authorization = None  # and it stays behind, should a redirect lead back
            url = onward
        raise RegistryError(f"{_host(url)} redirects more than {MAX_REDIRECTS} times")

    def base_url(self, host: str) -> str:
        """Return where a registry is: https, or http at our own machine if it speaks no TLS."""
        if self._plain_http:
            return f"http://{host}"
        url = f"https://{host}"
        if is_loopback(host):
            try:
                with self.open(Request("GET", f"{url}/v2/")):
                    pass
            except UnreachableError as error:
                if not isinstance(_reason(error), ssl.SSLError | ConnectionResetError):
                    raise
                return f"http://{host}"
        return url

    def join(self, url: str, location: str) -> str:
        """Return where an answer from `url` points with its Location.  Raises RegistryError."""
        return str(self._follow(self._url(url), location))

    def same_origin(self, one: str, other: str) -> bool:
        """Tell whether a credential for one URL may be sent to the other."""
        return origin(self._url(one)) == origin(self._url(other))

    def _send(
        self, request: Request, method: str, url: httpx.URL, authorization: str | None
    ) -> httpx.Response:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        content = None
        if request.body is not None:
            headers["Content-Length"] = str(request.body.size)
            content = request.body.pieces()
        with _failures(url):
            built = self._client.build_request(method, url, headers=headers, content=content)
            return self._client.send(built, stream=True)

    def _follow(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            onward = self._url(str(url.join(location)))
        except (httpx.InvalidURL, ValueError):
            raise RegistryError(f"{_host(url)} redirects to what is no address") from None
        if url.scheme == "https" and onward.scheme == "http":
            raise RegistryError(
                f"{_host(url)} leads from https to http, at {_host(onward)}: refused"
            )
        return onward

    def _url(self, text: str) -> httpx.URL:
        wrong = RegistryError(f"{repeatable(text)!r} is no address of a registry")
        try:
            url = httpx.URL(text)
            host = url.host
        except (httpx.InvalidURL, UnicodeError):  # of what RFC 5891 does not allow as a name
            raise wrong from None
        if url.scheme not in ("http", "https") or not host:
            raise wrong
        if url.userinfo:
            raise RegistryError(f"an address at {_host(url)} has a password in it: refused")
        if url.scheme == "http" and not self._plain_http and not is_loopback(url.host):
            raise RegistryError(
                f"{_host(url)} is to be reached without TLS, where all can listen: refused; "
                "--plain-http allows it"
            )
        return url


def origin(url: httpx.URL) -> Origin:
    """Return what a credential for `url` is for; default ports are None, as httpx has them."""
    return Origin(url.scheme, url.host, url.port)


def _host(url: httpx.URL) -> str:
    return str(origin(url))


@contextmanager
def _failures(url: httpx.URL) -> Iterator[None]:
    """Say in our own words that there was no answer."""
    try:
        yield
    except (httpx.InvalidURL, UnicodeError):
        raise RegistryError(f"{repeatable(str(url))!r} is no address of a registry") from None
    except httpx.TransportError as error:
        reason = _reason(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise RegistryError(
                f"{_host(url)} has a certificate that is not trusted "
                f"({reason.verify_message}); --ca-file names an authority to trust"
            ) from None
        raise UnreachableError(f"{_host(url)}: {_words(error, reason)}") from reason


def _words(error: httpx.TransportError, reason: BaseException | None) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError) and reason.strerror:
        return reason.strerror
    return repeatable(str(error)) or "the connection broke"


def _reason(error: BaseException) -> BaseException | None:
    """The operating system's or TLS's own exception behind one of httpx or of ours."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen
