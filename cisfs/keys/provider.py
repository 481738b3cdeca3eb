"""Key providers: whatever speaks ocicrypt's key-provider protocol wraps and unwraps master keys.

A KMS, an HSM, a TPM or an attestation service, reached as `cisfs.keys.provider_config` says: a
program that is run, or a gRPC service, which a child process of ours calls
(`cisfs.keys.provider_grpc`).  The messages are those of containers/ocicrypt,
keywrap/keyprovider/keyprovider.go: JSON, bytes in base64, both objects of parameters always there.

Does not know what a provider does.  Asks once for each packet; safe in any thread.
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from dataclasses import dataclass

from cisfs.errors import CisfsError, FormatError, NoMemoryError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64, from_b64, load
from cisfs.keys import child
from cisfs.keys.provider_config import Command, Service, find

TYPE_PREFIX = "provider:"
TIMEOUT_VARIABLE = "CISFS_KEYPROVIDER_TIMEOUT"
TIMEOUT = 30.0  # seconds
_MOST_SECONDS = 3600.0

# What ocicrypt passes as the parameters of a provider that was given none.
_NO_PARAMETERS = "Enabled"

_Message = dict[str, object]


@dataclass(frozen=True, slots=True)
class ProviderRecipient:
    """Whoever a provider unwraps for; the provider reads `parameters`, which may be empty."""

    name: str
    parameters: str = ""

    @property
    def type(self) -> str:
        """The type of the slots made for it."""
        return TYPE_PREFIX + self.name

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields.

        Raises UsageError if the provider is not configured, CisfsError if it fails.
        """
        answer = _ask(self.name, _wrap_request(self.name, self.parameters, packet))
        wrapped = _result(answer, "keywrapresults", "annotation", self.name)
        return {"recipient": self.parameters, "wrapped": b64(wrapped)}


@dataclass(frozen=True, slots=True)
class ProviderIdentity:
    """A provider as the way to what unwraps the slots it made."""

    provider: str
    parameters: str = ""

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return f"key provider {self.provider}"

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether a slot was made by a provider of this name."""
        return slot.get("type") == TYPE_PREFIX + self.provider

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot.

        Raises FormatError, UsageError if the provider is not configured, CisfsError if it fails.
        """
        annotation = from_b64(slot.get("wrapped"), "a key slot's wrapped key")
        request = _unwrap_request(self.provider, self.parameters, annotation)
        answer = _ask(self.provider, request)
        return _result(answer, "keyunwrapresults", "optsdata", self.provider)


def timeout() -> float:
    """Return for how many seconds a provider or token may take; UsageError if badly said."""
    said = os.environ.get(TIMEOUT_VARIABLE)
    if not said:
        return TIMEOUT
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(f"{TIMEOUT_VARIABLE} is not a number of seconds up to {_MOST_SECONDS:g}")
    return seconds


def ask_ours(what: str, module: str, words: tuple[str, ...], request: bytes) -> bytes:
    """Run a module of ours as a child; returns its answer.

    Raises an error of the class that its exit code is of, with what it wrote last.
    """
    # -P: the working directory is not where modules of ours come from.
    program = (sys.executable, "-P", "-m", module, *words)
    ended = child.ask(what, program, request, timeout())
    if ended.status == 0:
        return ended.answer
    kinds = (UsageError, WrongKeyError, FormatError, NoMemoryError)
    error = next((kind for kind in kinds if kind.exit_code == ended.status), CisfsError)
    raise error(f"{what}: {ended.why()}")


def _wrap_request(name: str, parameters: str, packet: bytes) -> bytes:
    chosen = {"Parameters": _parameters(name, parameters), "DecryptConfig": {"Parameters": {}}}
    return _request(
        "keywrap",
        {"ec": chosen, "optsdata": b64(packet)},
        {"dc": None, "annotation": None},
    )


def _unwrap_request(name: str, parameters: str, annotation: bytes) -> bytes:
    return _request(
        "keyunwrap",
        {"ec": None, "optsdata": None},
        {"dc": {"Parameters": _parameters(name, parameters)}, "annotation": b64(annotation)},
    )


def _request(operation: str, wrap: _Message, unwrap: _Message) -> bytes:
    """Spell a message as Go does: the fields in this order, no white space."""
    document = {"op": operation, "keywrapparams": wrap, "keyunwrapparams": unwrap}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _parameters(name: str, parameters: str) -> dict[str, list[str]]:
    return {name: [b64encode((parameters or _NO_PARAMETERS).encode()).decode("ascii")]}


def _ask(name: str, request: bytes) -> bytes:
    found, what = find(name), f"key provider {name}"
    if isinstance(found, Command):
        ended = child.ask(what, (found.path, *found.arguments), request, timeout())
        if ended.status:
            raise CisfsError(f"{what}: {ended.why()}")
        return ended.answer
    return _call(what, found, request)


def _call(what: str, service: Service, request: bytes) -> bytes:
    tls = service.tls
    options = (tls.root_ca_file, tls.cert_file, tls.key_file, tls.server_name) if tls else ()
    words = (f"{timeout():g}", service.address, *options)
    return ask_ours(what, "cisfs.keys.provider_grpc", words, request)


def _result(answer: bytes, outer: str, inner: str, name: str) -> bytes:
    """Return the bytes that an answer holds; CisfsError if there are none."""
    what = f"key provider {name}"
    try:
        results = load(answer).get(outer)
        found = _bytes(results.get(inner) if isinstance(results, dict) else None)
    except (FormatError, ValueError, TypeError):  # whose words may quote what is in it
        raise CisfsError(f"{what}: the answer has no {outer}.{inner} in JSON") from None
    if not found:
        raise CisfsError(f"{what}: the answer's {outer}.{inner} is empty")
    return found


def _bytes(value: object) -> bytes:
    """Read base64, or a list of numbers.

    Go reads the latter too, and the providers of Confidential Containers write it: Rust's Vec<u8>.
    """
    return bytes(value) if isinstance(value, list) else from_b64(value, "it")
