"""The part of Vault's HTTP API that `cisfs-keyprovider-vault` uses, on a port of this machine.

Behaves as OpenBao 2.7 does: AES-256-GCM keys with versions, ciphertexts vault:vN:base64 of a
12-byte nonce, the bytes and the tag; policies, namespaces, a seal; the same statuses and errors.
"""

from __future__ import annotations

import json
import secrets
import ssl
import threading
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DENIED = (403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})
Answer = tuple[int, object]


@dataclass
class VaultServer:
    """Its state, which a test sets as an operator would."""

    keys: dict[str, list[bytes]] = field(default_factory=dict)  # MOUNT/KEY: the versions
    policies: dict[str, set[str]] = field(default_factory=dict)  # a token's paths
    mounts: set[str] = field(default_factory=lambda: {"transit"})
    namespace: str = ""
    sealed: bool = False
    oldest: int = 1  # min_decryption_version
    instead: bytes | None = None  # what it sends instead of HTTP
    endless: bool = False  # and does not end it
    stalling: bool = False
    redirect: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def create(self, path: str) -> None:
        """Make a key, or a new version of it."""
        self.keys.setdefault(path, []).append(secrets.token_bytes(32))

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Return a status and a JSON document."""
        self.seen.append((path, headers))
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if headers.get("x-vault-namespace", "") != self.namespace:
            return 404, {"errors": ["namespace not found"]}
        path = path.removeprefix("/v1/")
        mount, call, name = path.rsplit("/", 2)
        if mount not in self.mounts:
            return 404, {"errors": [f'no handler for route "{path}". route entry not found.']}
        token = headers.get("x-vault-token", "")
        if token not in self.policies:
            return 403, {"errors": ["permission denied"]}
        if path not in self.policies[token]:
            return DENIED
        versions = self.keys.get(f"{mount}/{name}")
        if versions is None and call == "encrypt":
            return DENIED  # it would be made by a token that may create it
        if versions is None:
            return 400, {"errors": ["encryption key not found"]}
        request = json.loads(body)
        if call == "encrypt":
            return self._encrypt(versions, request["plaintext"])
        return self._decrypt(versions, request["ciphertext"])

    def _encrypt(self, versions: list[bytes], plaintext: str) -> Answer:
        nonce = secrets.token_bytes(12)
        sealed = AESGCM(versions[-1]).encrypt(nonce, b64decode(plaintext, validate=True), None)
        text = f"vault:v{len(versions)}:{b64encode(nonce + sealed).decode()}"
        return 200, wrapped({"ciphertext": text, "key_version": len(versions)})

    def _decrypt(self, versions: list[bytes], ciphertext: str) -> Answer:
        prefix, version, text = ciphertext.split(":")
        assert prefix == "vault"
        number = int(version.removeprefix("v"))
        if number < self.oldest:
            error = "ciphertext or signature version is disallowed by policy (too old)"
            return 400, {"errors": [error]}
        if number > len(versions):
            return 400, {"errors": ["invalid ciphertext: version is too new"]}
        sealed = b64decode(text, validate=True)
        try:
            plaintext = AESGCM(versions[number - 1]).decrypt(sealed[:12], sealed[12:], None)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, wrapped({"plaintext": b64encode(plaintext).decode()})


def wrapped(data: dict[str, object]) -> dict[str, object]:
    """Return data in the envelope of every answer."""
    return {
        "request_id": "6a3a4a5e-0000-0000-0000-000000000000",
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "wrap_info": None,
        "warnings": None,
        "auth": None,
    }


class Listener(ThreadingHTTPServer):
    """Serves a `VaultServer` on 127.0.0.1 in threads of its own until it is closed."""

    daemon_threads = False

    def __init__(self, vault: VaultServer, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.vault = vault
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.scheme = "http" if certificate is None else "https"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.vault.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Whoever does not trust us hangs up: not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Listener

    def do_POST(self) -> None:
        vault = self.server.vault
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        self.close_connection = True
        if vault.stalling:
            vault.stopping.wait(60)
            return
        status, document = vault.answer(self.path, headers, body)
        if vault.instead is not None:
            self.wfile.write(vault.instead)
            if vault.endless:
                vault.stopping.wait(60)
            return
        if vault.redirect:
            self.send_response(307)
            self.send_header("Location", vault.redirect + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Not to standard error."""
