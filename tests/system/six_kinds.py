"""A key of every kind, as their owners have them: files, a token, a provider.

Makes everything below one directory, and names it as the command line does.  The token is SoftHSM 2
(https://github.com/softhsm/SoftHSMv2).  One test at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyrage  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cisfs.keys.pkcs8 import private_pem

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
# Wraps by exclusive or with a key of its own.
PROVIDER = """
import base64, itertools, json, pathlib, sys
key = pathlib.Path(sys.argv[1]).read_bytes()
def turned(text):
    pairs = zip(base64.b64decode(text), itertools.cycle(key))
    return base64.b64encode(bytes(one ^ other for one, other in pairs)).decode()
request = json.load(sys.stdin)
if request["op"] == "keywrap":
    result = {"keywrapresults": {"annotation": turned(request["keywrapparams"]["optsdata"])}}
else:
    result = {"keyunwrapresults": {"optsdata": turned(request["keyunwrapparams"]["annotation"])}}
json.dump(result, sys.stdout)
"""


@dataclass(frozen=True)
class Kind:
    """How one key is named: for whom, by whom, in a list of slots, and when it did not open."""

    recipient: str
    options: tuple[str, ...]
    listed: str
    tried: str


@dataclass
class Keys:
    """All of them; `hidden` are the bytes that nobody but their owners may see."""

    base: Path
    hidden: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the keys."""
        self.base.mkdir()
        self.kinds = {
            "passphrase": self._passphrase(),
            "rsa": self._pair("rsa", rsa.generate_private_key(65537, 2048), "jwe RSA key"),
            "ec": self._pair("ec", ec.generate_private_key(ec.SECP256R1()), "jwe P-256 key"),
            "age": self._age(),
            "pkcs11": self._token(),
            "provider": self._provider(),
        }

    @property
    def recipients(self) -> list[str]:
        """The options that make a slot for each."""
        return [word for kind in self.kinds.values() for word in ("-r", kind.recipient)]

    @property
    def environment(self) -> dict[str, str]:
        """Where the token and the provider are."""
        return {
            "SOFTHSM2_CONF": str(self.base / "softhsm2.conf"),
            "CISFS_PKCS11_MODULE": MODULE,
            "OCICRYPT_KEYPROVIDER_CONFIG": str(self.base / "providers.json"),
        }

    def private(self, name: str, content: bytes) -> Path:
        """Write a file that only we can read."""
        path = self.base / name
        path.touch(0o600)
        path.write_bytes(content)
        return path

    def _passphrase(self) -> Kind:
        words = secrets.token_urlsafe(24)
        self.hidden["passphrase"] = words.encode()
        path = self.private("passphrase", f"{words}\n".encode())
        return Kind(
            f"passphrase:{path}", ("--passphrase-file", str(path)), "passphrase", "passphrase"
        )

    def _pair(
        self, name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, listed: str
    ) -> Kind:
        """A private key under a password, and its public half."""
        password = secrets.token_urlsafe(24)
        numbers = key.private_numbers()
        number = numbers.d if isinstance(numbers, rsa.RSAPrivateNumbers) else numbers.private_value
        self.hidden[f"{name} password"] = password.encode()
        self.hidden[f"{name} key"] = number.to_bytes((number.bit_length() + 7) // 8, "big")
        path = self.private(f"{name}.key", private_pem(key, password.encode()))
        source = self.private(f"{name}.password", password.encode())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.base / f"{name}.pub").write_bytes(public)
        return Kind(str(self.base / f"{name}.pub"), ("-i", f"{path}:file={source}"), listed, name)

    def _age(self) -> Kind:
        identity = pyrage.x25519.Identity.generate()
        self.hidden["age identity"] = str(identity).encode()
        path = self.private("age.key", f"{identity}\n".encode())
        recipient = str(identity.to_public())
        return Kind(recipient, ("-i", str(path)), f"age {recipient}", "age")

    def _token(self) -> Kind:
        pin = secrets.token_hex(12)
        self.hidden["PIN"] = pin.encode()
        (self.base / "tokens").mkdir(mode=0o700)
        (self.base / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.base}/tokens\nobjectstore.backend = file\n"
        )
        key = self.private("imported.pem", private_pem(rsa.generate_private_key(65537, 2048)))
        environment = {**os.environ, **self.environment}
        for words in (
            ["--init-token", "--free", "--label", "team", "--so-pin", "so-secret"],
            ["--import", str(key), "--token", "team", "--label", "layers", "--id", "01"],
        ):
            command = ["softhsm2-util", *words, "--pin", pin]
            subprocess.run(command, check=True, capture_output=True, env=environment)
        key.unlink()
        source = self.private("pin", f"{pin}\n".encode())
        return Kind(
            "pkcs11:token=team;object=layers",
            ("-i", f"pkcs11:token=team?pin-source={source}"),
            "pkcs11 RSA key",
            "pkcs11:token=team",
        )

    def _provider(self) -> Kind:
        key = secrets.token_bytes(32)
        self.hidden["provider's key"] = key
        script, file = self.base / "turn.py", self.private("provider.key", key)
        script.write_text(PROVIDER)
        command = {"path": sys.executable, "args": [str(script), str(file)]}
        document = {"key-providers": {"turn": {"cmd": command}}}
        self.private("providers.json", json.dumps(document).encode())
        return Kind(
            "provider:turn:for us",
            ("-i", "provider:turn"),
            "provider:turn for us",
            "key provider turn",
        )
