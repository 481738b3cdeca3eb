"""Requests to one repository of one registry: with its login, repeated with patience, judged.

Every refusal becomes one line that names registry, repository, what was asked for and the next
step.  Does not know blobs or manifests.  For several threads, not across a fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cisfs.errors import (
    FormatError,
    LoginError,
    NotFoundError,
    RegistryError,
    UnreachableError,
)
from cisfs.format.said import repeatable
from cisfs.registry.authentication import Authenticator, Scopes
from cisfs.registry.documents import parse_object
from cisfs.registry.logins import Login, find_login
from cisfs.registry.patience import Patience, retry_after
from cisfs.registry.reference import DEFAULT_REGISTRY
from cisfs.registry.request import Body, Request
from cisfs.registry.transport import Response, Transport

T = TypeVar("T")

PULL, PUSH = "pull", "pull,push"
MAX_ANSWER = 4 << 20  # bytes of any document
_MAX_REFUSAL = 1 << 16  # bytes of the words that come with a refusal
_LATER = (408, 425, 429, 500, 502, 503, 504)
_HUB_HOST = "registry-1.docker.io"
_LOGINS = 3  # without one, with one, with a fresh one


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are reached.  `ca_file`: PEM; `plain_http`: http to any host is allowed."""

    ca_file: Path | None = None
    plain_http: bool = False
    patience: Patience = field(default_factory=Patience)

    def transport(self) -> Transport:
        """Open no connection yet.  Raises UsageError."""
        return Transport(ca_file=self.ca_file, plain_http=self.plain_http, patience=self.patience)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.  `path` is below the repository's URL, or a URL that the registry gave.

    `what` says in a message what it was about; `expected` are the statuses that are answers, all
    others are refusals.  One that is not `repeatable` is sent once, except after "not now".
    """

    method: str
    path: str
    what: str
    expected: Collection[int]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    scopes: Scopes | None = None  # None: what the method takes
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    url: str
    header: Callable[[str], str | None]
    body: bytes = field(repr=False)


class Session:
    """One repository.  The transport may be shared with other sessions."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        repository: str,
        *,
        login: Callable[[], Login | None] | None = None,
    ) -> None:
        """`login` is called when one is asked for (default: what `find_login` finds then)."""
        self.registry, self.repository = registry, repository
        self.transport = transport
        self.patience = transport.patience
        self._host = _HUB_HOST if registry == DEFAULT_REGISTRY else registry
        self._authenticator = Authenticator(
            registry, transport, login or (lambda: find_login(registry, repository))
        )
        self._base: str | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Registry and repository, for messages."""
        return f"{self.registry}/{self.repository}"

    def scope(self, actions: str, repository: str | None = None) -> str:
        """Return the scope that `actions` take, by default on this repository."""
        return f"repository:{repository or self.repository}:{actions}"

    def fetch(self, ask: Ask, limit: int = MAX_ANSWER) -> Reply:
        """Return an answer with its body of up to `limit` bytes.

        Raises UnreachableError when patience is at its end, LoginError, NotFoundError,
        RegistryError.
        """

        def whole() -> Reply:
            with self._once(ask) as response:
                # To its end, of a HEAD too: only then the connection can be used again.
                body = response.read(limit)
                return Reply(response.status, response.url, response.header, body)

        return self._patiently(ask, whole)

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Response]:
        """Yield an answer whose body is read by the caller.  Raises as `fetch` does, before."""
        with ExitStack() as stack:
            yield self._patiently(ask, lambda: stack.enter_context(self._once(ask)))

    def url(self, path: str) -> str:
        """Return the URL of a path below the repository; a whole URL stays what it is."""
        if path.startswith(("http://", "https://")):
            return path
        with self._lock:
            if self._base is None:
                self._base = self.transport.base_url(self._host)
        return f"{self._base}/v2/{self.repository}/{path}"

    def location(self, reply: Reply, what: str) -> str:
        """Return where an answer says that things go on.  Raises RegistryError."""
        location = reply.header("location")
        if not location:
            raise RegistryError(f"{self.name}: {what}: the registry does not say where to go on")
        return self.transport.join(reply.url, location)

    def _patiently(self, ask: Ask, act: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return act()
            except UnreachableError as error:
                failures += 1
                later = isinstance(error, _LaterError)
                if failures >= self.patience.attempts or not (ask.repeatable or later):
                    raise UnreachableError(f"{self.name}: {ask.what}: {error}") from error.__cause__
                asked = error.seconds if isinstance(error, _LaterError) else None
                time.sleep(self.patience.wait(failures, asked))

    @contextmanager
    def _once(self, ask: Ask) -> Iterator[Response]:
        """Send a request, logged in as far as that is asked for, and judge the answer's status."""
        url = self.url(ask.path)
        request = Request(ask.method, url, ask.headers, ask.body)
        scopes = ask.scopes if ask.scopes is not None else self._usual_scopes(ask.method)
        ours = self._is_ours(url)
        header = self._authenticator.header(scopes) if ours else None
        for _ in range(_LOGINS):
            with self.transport.open(replace(request, authorization=header)) as response:
                if response.status != 401 or not (ours and self._is_ours(response.url)):
                    self._judge(ask, response)
                    yield response
                    return
                challenge = response.header("www-authenticate")
            header = self._authenticator.answer(challenge, scopes, header)
            if header is None:
                break
        raise LoginError(f"{self.name}: {ask.what}: {self._login_needed()}")

    def _is_ours(self, url: str) -> bool:
        """Tell whether our login is for who is at `url`: nobody else may ask for it, either.

        A store that a redirect led to could name a token server of its own.
        """
        return self.transport.same_origin(url, self.url(""))

    def _usual_scopes(self, method: str) -> Scopes:
        return frozenset({self.scope(PULL if method in ("GET", "HEAD") else PUSH)})

    def _judge(self, ask: Ask, response: Response) -> None:
        """Raise what a status that is no answer means."""
        status = response.status
        if status in ask.expected:
            return
        if status == 429 or (status in _LATER and ask.repeatable):
            raise _LaterError(f"answered {status}", retry_after(response.header("retry-after")))
        if status in _LATER:
            raise UnreachableError(f"answered {status}")
        where, said = f"{self.name}: {ask.what}", _said(response)
        if status == 403:
            raise LoginError(f"{where}: forbidden to {self._authenticator.user or 'all'}{said}")
        if status == 401:  # no other 401 gets here
            raise LoginError(f"{where}: it is kept at another host, which wants a login of its own")
        if status == 404:
            raise NotFoundError(f"{where}: there is none{said}")
        raise RegistryError(f"{where}: the registry answered {status}{said}")

    def _login_needed(self) -> str:
        command = f"docker login {self.registry}"
        if self._authenticator.user is None:
            return f"a login is needed: {command}"
        return f"the login of {self._authenticator.user} is not accepted for this: {command}"


class _LaterError(UnreachableError):
    """The registry asks us to come again, after `seconds` if it says so."""

    def __init__(self, words: str, seconds: float | None) -> None:
        super().__init__(words)
        self.seconds = seconds


def _said(response: Response) -> str:
    """The registry's own words, if there are any (distribution-spec, "Error codes")."""
    try:
        errors = parse_object(response.read(_MAX_REFUSAL), "the refusal").get("errors")
    except (FormatError, RegistryError):
        return ""
    first = errors[0] if isinstance(errors, list) and errors else None
    words = first.get("message") or first.get("code") if isinstance(first, dict) else None
    return f" ({repeatable(words)})" if isinstance(words, str) and words else ""
