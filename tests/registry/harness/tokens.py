"""A token server: who logs in there may pull and push, anybody else may pull.

Docker's token authentication (distribution.github.io/distribution/spec/auth), as Debian's registry
checks it.  Does not know the registry.  One thread for each connection.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]
from jwcrypto.jwt import JWT  # type: ignore[import-untyped]

from tests.registry.harness.certificates import Authority
from tests.registry.harness.debian import PASSWORD, USER, TokenServer

IDENTITY_TOKEN = "an identity token of the tests"
_ISSUER, _SERVICE = "tests", "registry of the tests"


@dataclass
class Tokens:
    """A running one, and what it was asked."""

    server: TokenServer
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)  # Authorization headers
    seconds: int = 300  # the life of a token
    status: int | None = None  # said instead of giving tokens


@contextlib.contextmanager
def token_server(directory: Path) -> Iterator[Tokens]:
    """One on a loopback port, until the end of the block."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority(directory, "signer")
    signer = authority.issue("tokens")
    key = JWK.from_pem(signer.key.read_bytes())
    certificate = x509.load_pem_x509_certificate(signer.certificate.read_bytes())
    chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            login = self.headers.get("Authorization")
            pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            self._give(query, login, known=login == f"Basic {pair}", refused=login is not None)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            known = form.get("refresh_token") == [IDENTITY_TOKEN]
            asked = {**form, "scope": form.get("scope", [""])[0].split(" ")}
            self._give(asked, self.headers.get("Authorization"), known=known, refused=True)

        def _give(
            self, asked: dict[str, list[str]], login: str | None, *, known: bool, refused: bool
        ) -> None:
            made.asked.append(asked)
            made.logins.append(login)
            if made.status is not None or (refused and not known):
                self.send_error(made.status or 401)
                return
            allowed = {"pull", "push", "delete"} if known else {"pull"}
            token = _token(key, chain, asked.get("scope", []), allowed, made.seconds)
            answer = json.dumps({"token": token, "expires_in": made.seconds}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    made = Tokens(TokenServer(realm, _SERVICE, _ISSUER, authority.file))
    with served(server):
        yield made


@contextlib.contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[None]:
    """Have a server answer until the end of the block."""
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(0.02))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _token(key: JWK, chain: list[str], scopes: list[str], allowed: set[str], seconds: int) -> str:
    access = []
    for scope in scopes:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        given = [each for each in actions.split(",") if each in allowed]
        access.append({"type": kind, "name": name, "actions": given})
    now = int(time.time())
    claims = {
        "iss": _ISSUER,
        "sub": "",
        "aud": _SERVICE,
        "exp": now + seconds,
        "nbf": now - 60,
        "iat": now,
        "jti": str(time.monotonic_ns()),
        "access": access,
    }
    made = JWT(header={"typ": "JWT", "alg": "ES256", "x5c": chain}, claims=claims)
    made.make_signed_token(key)
    return str(made.serialize())
