"""A key provider as a gRPC service, in a process of its own: gRPC's threads and forks do not mix.

python grpc_provider.py (loopback | unix PATH | tls CERTIFICATE KEY CLIENT_CA) prints its address
and serves until its standard input ends.  It turns bytes round; its parameters may make it fail.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

# On the wire this is what keyprovider.proto describes; no stubs are installed.
from google.protobuf.wrappers_pb2 import BytesValue  # type: ignore[import-untyped]


def wrap_key(data: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer as the parameters ask for."""
    request = json.loads(data)
    assert request["op"] == "keywrap"
    (parameter,) = request["keywrapparams"]["ec"]["Parameters"]["x"]
    match base64.b64decode(parameter).decode():
        case "refuse":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not attested\nat all")
        case "sleep":
            time.sleep(5)
        case "long":
            return bytes(3 << 20)
        case "raw":
            return b"raw"
    packet = base64.b64decode(request["keywrapparams"]["optsdata"])
    return answer("keywrapresults", "annotation", packet[::-1])


def unwrap_key(data: bytes, _: grpc.ServicerContext) -> bytes:
    """Turn the bytes back."""
    request = json.loads(data)
    assert request["op"] == "keyunwrap"
    annotation = base64.b64decode(request["keyunwrapparams"]["annotation"])
    return answer("keyunwrapresults", "optsdata", annotation[::-1])


def answer(outer: str, inner: str, value: bytes) -> bytes:
    return json.dumps({outer: {inner: base64.b64encode(value).decode()}}).encode()


def method(
    behave: Callable[[bytes, grpc.ServicerContext], bytes],
) -> grpc.RpcMethodHandler[BytesValue, bytes]:
    def serve(request: BytesValue, context: grpc.ServicerContext) -> bytes:
        return behave(request.value, context)

    def packed(value: bytes) -> bytes:
        return value if value == b"raw" else BytesValue(value=value).SerializeToString()

    return grpc.unary_unary_rpc_method_handler(serve, BytesValue.FromString, packed)


def main() -> None:
    """Serve."""
    how, *words = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(4))
    methods = {"WrapKey": method(wrap_key), "UnWrapKey": method(unwrap_key)}
    handler = grpc.method_handlers_generic_handler("keyprovider.KeyProviderService", methods)
    server.add_generic_rpc_handlers((handler,))
    if how == "unix":
        address = f"unix:{words[0]}"
        server.add_insecure_port(address)
    elif how == "tls":
        certificate, key, client_ca = (Path(word).read_bytes() for word in words)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], client_ca, require_client_auth=True
        )
        address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    else:
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    print(address, flush=True)
    sys.stdin.read()
    os._exit(0)  # whoever sleeps in a handler is not waited for


if __name__ == "__main__":
    main()
