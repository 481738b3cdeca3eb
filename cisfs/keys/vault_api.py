"""The transit engine of HashiCorp Vault or OpenBao: two calls of their HTTP API.

Where it is and who we are comes from the variables and the file that their own command line uses:
`VAULT_ADDR`, `VAULT_CACERT`, `VAULT_NAMESPACE` and so on, or `BAO_...`, which goes first.  The
token is sent to that address and nowhere else: no redirect is followed, no proxy used, and no
machine but this one is spoken to without TLS.

Does not know what is encrypted, nor how long it may take.  Each call is a connection of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from cisfs.errors import CisfsError, FormatError, UsageError
from cisfs.format.config import load
from cisfs.keys.loopback import is_loopback

if TYPE_CHECKING:
    import ssl

_MAX_ANSWER = 1 << 20  # bytes
_MAX_TOKEN = 1 << 16
_MAX_ERROR = 200  # characters of the server's words that are quoted
_MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class TransitKey:
    """A key in a transit engine, which is mounted at a path."""

    mount: str
    name: str

    def __str__(self) -> str:
        return f"{self.mount}/{self.name}"


@dataclass(frozen=True, slots=True)
class Vault:
    """A server, and the token that it knows us by."""

    address: SplitResult
    token: str = field(repr=False)
    namespace: str

    @classmethod
    def from_environment(cls) -> Vault:
        """Return the one that the environment names; UsageError if it does not say enough."""
        return cls(_address(), _token(), _setting("NAMESPACE"))

    def encrypt(self, key: TransitKey, plaintext: str) -> str:
        """Return the ciphertext, "vault:vN:...", of a plaintext in base64.

        Raises CisfsError, which says what to do about it.
        """
        return self._transit("encrypt", key, {"plaintext": plaintext}, "ciphertext")

    def decrypt(self, key: TransitKey, ciphertext: str) -> str:
        """Return in base64 the plaintext of a ciphertext; raises as `encrypt`."""
        return self._transit("decrypt", key, {"ciphertext": ciphertext}, "plaintext")

    def _transit(self, call: str, key: TransitKey, body: dict[str, str], wanted: str) -> str:
        path = f"{key.mount}/{call}/{key.name}"
        status, answer = self._post(f"/v1/{path}", json.dumps(body).encode())
        if status != 200:
            raise CisfsError(_why(status, self._where(), path, _errors(answer)))
        data = answer.get("data")
        value = data.get(wanted) if isinstance(data, dict) else None
        if not isinstance(value, str) or not value:
            raise CisfsError(f"{self._where()} answered without a {wanted}")
        return value

    def _post(self, path: str, body: bytes) -> tuple[int, dict[str, object]]:
        try:
            status, location, answer = self._exchange(path, body)
        except http.client.HTTPException as error:
            raise CisfsError(f"{self._where()} speaks no HTTP ({type(error).__name__})") from None
        except OSError as error:
            raise CisfsError(f"{self._where()}: {_in_words(error)}") from None
        if status in _MOVED:
            raise CisfsError(
                f"{self._where()} passes us on to {_host(location)}; "
                "if that is right, set VAULT_ADDR to it"
            )
        try:
            return status, load(answer)
        except FormatError:
            if status != 200:  # a proxy's page
                return status, {}
            raise CisfsError(f"{self._where()} answered with something else than JSON") from None

    def _exchange(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Return the answer's status, where it says to go instead, and its bytes."""
        headers = {
            "Content-Type": "application/json",
            "X-Vault-Request": "true",  # an agent in between may insist on it
            "X-Vault-Token": self.token,
        }
        if self.namespace:
            headers["X-Vault-Namespace"] = self.namespace
        with closing(self._connection()) as connection:
            connection.request("POST", self.address.path.rstrip("/") + path, body, headers)
            with connection.getresponse() as response:
                location = response.getheader("Location", "")
                return response.status, location, response.read(_MAX_ANSWER + 1)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.hostname or "", self.address.port
        if self.address.scheme == "http":
            return http.client.HTTPConnection(host, port)
        return http.client.HTTPSConnection(host, port, context=_tls())

    def _where(self) -> str:
        return f"{self.address.scheme}://{self.address.netloc}"


def _setting(name: str) -> str:
    return os.environ.get(f"BAO_{name}") or os.environ.get(f"VAULT_{name}") or ""


def _address() -> SplitResult:
    said = _setting("ADDR")
    if not said:
        raise UsageError("VAULT_ADDR is not set, as in: VAULT_ADDR=https://vault.example:8200")
    try:
        address = urlsplit(said)
        host, _ = address.hostname, address.port  # ValueError if it is none
    except ValueError:
        raise UsageError("VAULT_ADDR is not https://HOST:PORT") from None
    if not host or address.scheme not in ("http", "https") or "@" in address.netloc:
        raise UsageError("VAULT_ADDR is not https://HOST:PORT")
    if address.scheme == "http" and not is_loopback(host):
        raise UsageError(f"VAULT_ADDR is http://{host}: the token and keys would go in clear")
    return address


def _token() -> str:
    """Return the token: the file that is named, or else what Vault's command line would use."""
    if named := _setting("TOKEN_FILE"):
        return _token_in(Path(named))
    if given := _setting("TOKEN"):
        return _checked(given, "VAULT_TOKEN")
    path = Path("~/.vault-token").expanduser()
    if path.exists():
        return _token_in(path)
    raise UsageError("no token: log in with `vault login`, or set VAULT_TOKEN_FILE")


def _token_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            # The group may read it: Vault's own agent makes its token files 0640.
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError(f"others can read or alter the token file {path}; chmod 600 it")
            data = file.read(_MAX_TOKEN)
    except OSError as error:
        raise UsageError(f"cannot read the token file {path}: {error.strerror}") from None
    return _checked(data.decode("ascii", "replace"), str(path))


def _checked(token: str, where: str) -> str:
    """Refuse what http.client would refuse with the token in its words."""
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where} holds no token")
    return token


def _tls() -> ssl.SSLContext:
    import ssl  # here: not needed for an agent on this machine, and slow to load

    try:
        context = ssl.create_default_context(
            cafile=_setting("CACERT") or None, capath=_setting("CAPATH") or None
        )
        if certificate := _setting("CLIENT_CERT"):
            # A passphrase would be asked for at a terminal that there is not.
            context.load_cert_chain(certificate, _setting("CLIENT_KEY") or None, password="")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT or VAULT_CLIENT_KEY: {_in_words(error)}"
        ) from None
    return context


def _in_words(error: Exception) -> str:
    verification = getattr(error, "verify_message", "")
    if verification:
        return f"its certificate is not to be trusted ({verification}); see VAULT_CACERT"
    return getattr(error, "strerror", None) or type(error).__name__


def _errors(answer: dict[str, object]) -> str:
    errors = answer.get("errors")
    said = [each for each in errors if isinstance(each, str)] if isinstance(errors, list) else []
    return " ".join(" ".join(said).split())[:_MAX_ERROR]


def _host(location: str) -> str:
    try:
        return urlsplit(location).netloc.rpartition("@")[2] or "nowhere"
    except ValueError:
        return "nowhere"


def _why(status: int, where: str, path: str, said: str) -> str:
    reason = {
        400: f"{where} refuses {path}",
        403: f"the token may not use {path} at {where}, or has expired",
        404: f"no transit engine answers to {path} at {where}, in this namespace",
        429: f"{where} is a standby or asks to be called less often",
        503: f"{where} is sealed or down for maintenance",
    }.get(status, f"{where} answers with status {status}")
    return f"{reason}: {said}" if said else reason
