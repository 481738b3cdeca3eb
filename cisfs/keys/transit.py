"""`cisfs-keyprovider-vault`: a key provider that lets HashiCorp Vault or OpenBao wrap keys.

Speaks ocicrypt's key-provider protocol, so it serves skopeo, podman, nerdctl and containerd too:
a request in JSON on standard input, the answer on standard output, a complaint on standard error.
The parameters of `provider:NAME:PARAMETERS` are a key of the transit engine, KEY or MOUNT/KEY;
which one it was is kept in the annotation, beside the ciphertext.

Does not know how Vault is spoken to (`cisfs.keys.vault_api`) nor what the bytes are.  One process
for each request.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Sequence

from cisfs.errors import CisfsError, FormatError, UsageError
from cisfs.format.config import b64, canonical, from_b64, load
from cisfs.keys import memory
from cisfs.keys.vault_api import TransitKey, Vault

USAGE = """\
usage: cisfs-keyprovider-vault [NAME]

A key provider (ocicrypt's protocol: JSON on standard input) for the transit engine of HashiCorp
Vault or OpenBao.  In the file that $OCICRYPT_KEYPROVIDER_CONFIG names, or
/etc/cisfs/keyproviders.json:

  {"key-providers": {"vault": {"cmd": {"path": "cisfs-keyprovider-vault"}}}}

and then: -r provider:vault:KEY or -r provider:vault:MOUNT/KEY (mount: transit), and to open:
-i provider:vault.  NAME is the provider's name in that file, if it is not "vault".

From the environment: VAULT_ADDR (https, or http to this machine), VAULT_TOKEN_FILE, VAULT_TOKEN or
~/.vault-token, VAULT_NAMESPACE, VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT, VAULT_CLIENT_KEY; or
BAO_ instead of VAULT_; VAULT_CLIENT_TIMEOUT, in seconds (20).  The token must be allowed to update
MOUNT/encrypt/KEY or MOUNT/decrypt/KEY.
"""
DEFAULT_NAME = "vault"
DEFAULT_MOUNT = "transit"
TIMEOUT = 20.0  # seconds, less than who asks us waits
_MAX_SECONDS = 3600.0
_MAX_REQUEST = 1 << 20  # bytes
_NO_PARAMETERS = b"Enabled"  # what ocicrypt passes for none

# What an annotation says becomes part of a URL.
_KEY = re.compile(r"(?:(?P<mount>\w[\w.-]*(?:/\w[\w.-]*)*)/)?(?P<name>\w[\w.-]*)", re.ASCII)
_CIPHERTEXT = re.compile(r"vault:v[0-9]+:[A-Za-z0-9+/=]+", re.ASCII)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the request on standard input; returns the exit code, 1 for any failure."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) > 1 or (given and given[0].startswith("-")):
        asked = given in (["--help"], ["-h"])
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 1
    memory.keep_private()
    memory.lock()
    try:
        request = sys.stdin.buffer.read(_MAX_REQUEST + 1)
        _limit_time()
        answer = _answer(request, (given or [DEFAULT_NAME])[0])
        sys.stdout.write(answer)
        sys.stdout.flush()
    except CisfsError as error:
        print(f"cisfs-keyprovider-vault: {error}", file=sys.stderr)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):  # nobody waits for it any more
        return 1
    return 0


def _limit_time() -> None:
    """Let whatever follows fail after a while: a server may accept and then say nothing."""
    said = os.environ.get("VAULT_CLIENT_TIMEOUT") or f"{TIMEOUT}s"
    try:
        seconds = float(said.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise UsageError("VAULT_CLIENT_TIMEOUT is not a number of seconds")

    def too_late(*_: object) -> None:
        raise CisfsError(f"the server does not answer within {seconds:g} s")

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer(data: bytes, name: str) -> str:
    try:
        request = load(data)
    except FormatError:  # whose words may quote what is in it
        raise FormatError("the request on standard input is not a JSON object") from None
    operation = request.get("op")
    if operation == "keywrap":
        wrapped = _wrap(_object(request, "keywrapparams"), name)
        return json.dumps({"keywrapresults": {"annotation": b64(wrapped)}})
    if operation == "keyunwrap":
        packet = _unwrap(_object(request, "keyunwrapparams"), name)
        return json.dumps({"keyunwrapresults": {"optsdata": packet}})
    raise FormatError("the request's op is neither keywrap nor keyunwrap")


def _wrap(request: dict[str, object], name: str) -> bytes:
    """Return the annotation: which key, and what it made of the packet."""
    key = _key_asked_for(_object(request, "ec"), name)
    if key is None:
        raise UsageError(f"which key? say provider:{name}:KEY or provider:{name}:MOUNT/KEY")
    plaintext = b64(from_b64(request.get("optsdata"), "the request's optsdata"))
    ciphertext = Vault.from_environment().encrypt(key, plaintext)
    if not _CIPHERTEXT.fullmatch(ciphertext):
        raise CisfsError("the server's ciphertext does not begin with vault:vN:")
    return canonical({"ciphertext": ciphertext, "key": key.name, "mount": key.mount})


def _unwrap(request: dict[str, object], name: str) -> str:
    """Return the packet, in base64, in the annotation that `_wrap` made."""
    annotation = _annotation(from_b64(request.get("annotation"), "the request's annotation"))
    key = _key(f"{annotation['mount']}/{annotation['key']}", "the annotation's key")
    asked_for = _key_asked_for(_object(request, "dc"), name)
    if asked_for is not None and asked_for != key:
        raise CisfsError(f"it was wrapped with the key {key}, not {asked_for}")
    if not _CIPHERTEXT.fullmatch(annotation["ciphertext"]):
        raise FormatError("the annotation's ciphertext does not begin with vault:vN:")
    return Vault.from_environment().decrypt(key, annotation["ciphertext"])


def _annotation(data: bytes) -> dict[str, str]:
    try:
        fields = load(data)
    except FormatError:
        fields = {}
    found = {key: value for key, value in fields.items() if isinstance(value, str)}
    if set(found) != {"ciphertext", "key", "mount"}:
        raise FormatError("the annotation was not made by cisfs-keyprovider-vault")
    return found


def _key_asked_for(config: dict[str, object], name: str) -> TransitKey | None:
    """Return the key in the parameters of the provider `name`, None if they name none.

    ocicrypt puts those of all kinds of recipients into the same object.
    """
    parameters = config.get("Parameters")
    values = parameters.get(name) if isinstance(parameters, dict) else None
    if not values:
        return None
    if not isinstance(values, list) or len(values) != 1:
        raise UsageError(f"name one key for each provider:{name}")
    said = from_b64(values[0], "the request's parameters")
    return None if said == _NO_PARAMETERS else _key(said.decode("utf-8", "replace"), "that")


def _key(said: str, what: str) -> TransitKey:
    match = _KEY.fullmatch(said)
    if match is None:
        raise UsageError(f"{what} is not KEY or MOUNT/KEY in letters, digits and . _ -")
    return TransitKey(match["mount"] or DEFAULT_MOUNT, match["name"])


def _object(fields: dict[str, object], name: str) -> dict[str, object]:
    """Return the object in a field; Go writes null for one that is not there."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
