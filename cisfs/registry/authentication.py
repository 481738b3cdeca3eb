"""Proving who we are to one registry: Basic, or Bearer with tokens from the server it names.

A token is for one set of scopes and is kept until the registry refuses it or its time is over.
Does not know requests other than its own.  For several threads: one fetches a token, the others
wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from cisfs.errors import FormatError, LoginError, UnreachableError
from cisfs.registry.challenge import Challenge, find, parse_challenges
from cisfs.registry.documents import Json, parse_object
from cisfs.registry.logins import Login
from cisfs.registry.request import Body, Request
from cisfs.registry.transport import Transport

MAX_ANSWER = 1 << 18  # bytes; tokens of some registries have tens of thousands
_DEFAULT_SECONDS = 60  # a token's life where nothing is said
_MOST_SECONDS = 24 * 3600  # of a life that is believed
_EARLY = 10  # seconds before its end in which a token is used no more
_CLIENT = "cisfs"

Scopes = frozenset[str]


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    until: float  # time.monotonic()


class Authenticator:
    """Headers for requests to one registry."""

    def __init__(
        self, registry: str, transport: Transport, login: Callable[[], Login | None]
    ) -> None:
        """`login` is called once, when the registry asks for the first time."""
        self._registry = registry
        self._transport = transport
        self._find_login = login
        self._login: Login | None = None
        self._asked = False
        self._basic: str | None = None
        self._bearer: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._lock = threading.Lock()

    @property
    def user(self) -> str | None:
        """Who we say we are, None for nobody."""
        return None if self._login is None else self._login.username or "the token's owner"

    def header(self, scopes: Scopes) -> str | None:
        """Return what the registry is known to want, None if it has asked for nothing so far."""
        with self._lock:
            return self._header(scopes)

    def answer(self, challenge: str | None, scopes: Scopes, refused: str | None) -> str | None:
        """Return what to answer a 401 with, None if there is nothing better than what was refused.

        Raises LoginError where there is no way to log in, UnreachableError.
        """
        with self._lock:
            token = self._tokens.get(scopes)
            if token is not None and refused != token.header:
                return token.header  # another thread was faster
            self._tokens.pop(scopes, None)
            self._take(challenge)
            header = self._header(scopes)
            return header if header != refused else None

    def _take(self, header: str | None) -> None:
        """Find out from a challenge what is wanted from now on."""
        challenges = parse_challenges(header)
        if not self._asked:
            self._login = self._find_login()
            self._asked = True
        bearer = find(challenges, "bearer")
        if bearer is not None:
            self._bearer, self._basic = bearer, None
        elif find(challenges, "basic") is None:
            raise LoginError(f"{self._registry} asks for a login of a kind that cisfs cannot do")
        elif self._login is not None:
            self._bearer, self._basic = None, self._login.basic

    def _header(self, scopes: Scopes) -> str | None:
        if self._bearer is None:
            return self._basic
        token = self._tokens.get(scopes)
        if token is None or token.until <= time.monotonic():
            token = self._fetch(self._bearer, scopes)
            self._tokens[scopes] = token
        return token.header

    def _fetch(self, challenge: Challenge, scopes: Scopes) -> _Token:
        request = self._token_request(challenge, scopes)
        with self._transport.open(request) as response:
            if response.status in (400, 401, 403):
                raise LoginError(self._refusal())
            if response.status != 200:
                raise UnreachableError(
                    f"the token server of {self._registry} answers {response.status}"
                )
            body = response.read(MAX_ANSWER)
        try:
            return _token(parse_object(body, "the token"))
        except FormatError as error:
            raise LoginError(f"the token server of {self._registry}: {error}") from None

    def _refusal(self) -> str:
        if self._login is None:
            return f"{self._registry} gives nothing without a login: docker login {self._registry}"
        return (
            f"{self._registry} does not accept the login of {self.user}: "
            f"docker login {self._registry}"
        )

    def _token_request(self, challenge: Challenge, scopes: Scopes) -> Request:
        """GET with name and password, or POST where there is an identity token."""
        realm = challenge.parameters.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise LoginError(f"{self._registry} names no token server")
        service = challenge.parameters.get("service", "")
        asked = sorted(scopes) or [challenge.parameters.get("scope", "")]
        login = self._login
        if login is not None and login.identity_token is not None:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(asked),
                "refresh_token": login.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = Body.of(urlencode(form).encode())
            return Request("POST", realm, headers, body, is_secret=True)
        query = [("service", service), *(("scope", each) for each in asked)]
        url = realm + ("&" if "?" in realm else "?") + urlencode([q for q in query if q[1]])
        return Request("GET", url, authorization=login.basic if login is not None else None)


def _token(document: dict[str, Json]) -> _Token:
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise FormatError("the answer has no token")
    seconds = document.get("expires_in")
    if not isinstance(seconds, int) or seconds < _DEFAULT_SECONDS:
        seconds = _DEFAULT_SECONDS
    return _Token(f"Bearer {token}", time.monotonic() + min(seconds, _MOST_SECONDS) - _EARLY)
