"""A child process that calls a key provider's gRPC service: JSON in, JSON out.

    python -P -m cisfs.keys.provider_grpc SECONDS ADDRESS [CA CERTIFICATE KEY SERVER_NAME]

In a process of its own, because gRPC starts threads, which the forks of `cisfs mount` would lose,
and writes to standard error as it likes.  The messages have one field of bytes each and are coded
here: containers/ocicrypt, utils/keyprovider/keyprovider.proto.

Does not know what is in them, but which of the two methods is asked for.  One thread of ours.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import CisfsError, UsageError
from cisfs.keys import memory
from cisfs.keys.child import MAX_ANSWER
from cisfs.keys.loopback import is_loopback

if TYPE_CHECKING:
    import grpc

_METHODS = {"keywrap": "WrapKey", "keyunwrap": "UnWrapKey"}
_SERVICE = "/keyprovider.KeyProviderService/"
_FIELD = b"\x0a"  # number 1, wire type 2: bytes (protobuf.dev, "Encoding")
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # key services are near; and localhost is never behind a proxy
    ("grpc.max_receive_message_length", 2 * MAX_ANSWER),
    ("grpc.max_send_message_length", 2 * MAX_ANSWER),
]


def encode(value: bytes) -> bytes:
    """Return a message whose only field is `value`."""
    size, length = len(value), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return _FIELD + bytes([*length, size]) + value


def decode(message: bytes) -> bytes:
    """Return the only field of a message, empty if it has none; ValueError for any other."""
    if not message:
        return b""
    if not message.startswith(_FIELD):
        raise ValueError("another field than the first")
    size = shift = 0
    for at in range(1, min(len(message), 6)):
        size |= (message[at] & 0x7F) << shift
        shift += 7
        if message[at] < 0x80:
            if size != len(message) - at - 1:
                raise ValueError("another size than the message's")
            return message[at + 1 :]
    raise ValueError("a size without end")


def main() -> int:
    """Call the service that argv names with the request on standard input."""
    memory.keep_private()
    memory.lock()
    os.environ["GRPC_VERBOSITY"] = "NONE"  # its own words would come after ours
    try:
        seconds, address, *options = sys.argv[1:]
        answer = _call(float(seconds), address, options, sys.stdin.buffer.read())
    except CisfsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(answer)
    return 0


def _call(seconds: float, address: str, options: Sequence[str], request: bytes) -> bytes:
    try:
        import grpc  # here: an extra, and 0.2 s
    except ImportError:
        raise UsageError(
            "gRPC is not installed; install it with: pip install 'cisfs[grpc]'"
        ) from None
    method = _SERVICE + _METHODS[json.loads(request)["op"]]
    with _channel(address, options) as channel:
        call = channel.unary_unary(method, encode, _decoded)
        try:
            answer = call(request, timeout=seconds)
        except grpc.RpcError as error:
            raise CisfsError(_in_words(address, error)) from None
    if isinstance(answer, ValueError):
        raise CisfsError(f"{address} answers with {answer}")
    return bytes(answer)


def _decoded(message: bytes) -> bytes | ValueError:
    """Decode without raising: gRPC would log it and say nothing of it."""
    try:
        return decode(message)
    except ValueError as error:
        return error


def _in_words(address: str, error: grpc.RpcError) -> str:
    code, details = error.code().name.lower().replace("_", " "), error.details()
    return f"{address}: {code}: {' '.join((details or '').split())}"


def _channel(address: str, options: Sequence[str]) -> grpc.Channel:
    import grpc

    if not options:
        if not _is_local(address):
            raise UsageError(f"{address} is another machine and has no grpc-tls: keys go in clear")
        return grpc.insecure_channel(address, options=_OPTIONS)
    ca, certificate, key, server_name = options
    if bool(certificate) != bool(key):
        raise UsageError("grpc-tls needs cert-file and key-file or neither")
    credentials = grpc.ssl_channel_credentials(
        _read(ca or _system_ca()),
        _read(key) if key else None,
        _read(certificate) if certificate else None,
    )
    named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.secure_channel(address, credentials, options=[*_OPTIONS, *named])


def _is_local(address: str) -> bool:
    """Tell whether gRPC (doc/naming.md) takes an address for one of this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host, _, _ = address.rpartition(":")
    return is_loopback(host.strip("[]"))


def _system_ca() -> str:
    paths = ssl.get_default_verify_paths()  # gRPC would use a list of its own
    return paths.cafile or "/etc/ssl/certs/ca-certificates.crt"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"grpc-tls: cannot read {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
