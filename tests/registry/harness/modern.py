"""A registry by the book of OCI distribution-spec 1.1, where Debian's is older: in memory.

It resumes uploads where a connection broke, minds Content-Range, has the referrers API with filters
and pages.  Does not know cisfs.  One thread for each connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.registry.harness.tokens import served

_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = r"/v2/(?P<name>[a-z0-9/_.-]+)"
_ROUTES = {
    "check": "/v2/",
    "upload": rf"{_NAME}/blobs/uploads/(?P<id>[0-9a-f-]*)",
    "blob": rf"{_NAME}/blobs/(?P<digest>sha256:[0-9a-f]{{64}})",
    "manifest": rf"{_NAME}/manifests/(?P<target>[^/]+)",
    "referrers": rf"{_NAME}/referrers/(?P<digest>sha256:[0-9a-f]{{64}})",
}


@dataclass
class ModernRegistry:
    """A running one, and everything that it has."""

    host: str
    port: int
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by repository and digest
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    page: int = 1000  # entries of a list at a time
    least_chunk: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """As a reference begins with it."""
        return f"{self.host}:{self.port}"


@contextlib.contextmanager
def modern_registry() -> Iterator[ModernRegistry]:
    """One on a loopback port, until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made = ModernRegistry("127.0.0.1", int(server.server_address[1]))
    server.RequestHandlerClass = type("Handler", (_Handler,), {"registry": made})
    with served(server):
        yield made


def digest_of(content: bytes | bytearray) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: ClassVar[ModernRegistry]

    def _dispatch(self) -> None:
        self.query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        for name, route in _ROUTES.items():
            match = re.fullmatch(route, urlsplit(self.path).path)
            act = getattr(self, f"{self.command.lower()}_{name}", None)
            if match is not None:
                if act is None:
                    self._say(405)
                else:
                    act(**match.groupdict())
                return
        self._say(404)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _dispatch  # noqa: N815 - its names

    def _say(self, status: int, content: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("content_length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def get_check(self) -> None:
        self._say(200)

    # Blobs

    def get_blob(self, name: str, digest: str) -> None:
        content = self.registry.blobs.get((name, digest))
        if content is None:
            self._say(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None:
            self._say(200, content)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        said = f"bytes {start}-{stop - 1}/{len(content)}"
        self._say(206, content[start:stop], content_range=said)

    head_blob = get_blob

    def post_upload(self, name: str, id: str) -> None:  # noqa: A002, ARG002 - the route's names
        digest, source = self.query.get("mount", ""), self.query.get("from", "")
        content = self.registry.blobs.get((source, digest))
        if content is not None:
            self.registry.blobs[name, digest] = content
            self._say(201, location=f"/v2/{name}/blobs/{digest}")
            return
        made = str(uuid.uuid4())
        self.registry.uploads[made] = bytearray()
        least = self.registry.least_chunk
        more = {} if least is None else {"oci_chunk_min_length": str(least)}
        self._say(202, location=f"/v2/{name}/blobs/uploads/{made}", **more)

    def patch_upload(self, name: str, id: str) -> None:  # noqa: A002 - the route's name
        upload = self.registry.uploads.get(id)
        if upload is None:
            self._say(404)
            return
        start = int((self.headers.get("Content-Range") or "0-").partition("-")[0])
        if start != len(upload):
            self.close_connection = True
            self._say(416, **self._status(name, id))
            return
        left = int(self.headers["Content-Length"])
        while left and (piece := self.rfile.read1(min(left, 1 << 16))):
            upload += piece
            left -= len(piece)
        if not left:
            self._say(202, **self._status(name, id))

    def get_upload(self, name: str, id: str) -> None:  # noqa: A002 - the route's name
        if id in self.registry.uploads:
            self._say(204, **self._status(name, id))
        else:
            self._say(404)

    def put_upload(self, name: str, id: str) -> None:  # noqa: A002 - the route's name
        upload = self.registry.uploads.get(id)
        if upload is None:
            self._say(404)
            return
        upload += self._body()
        digest = self.query["digest"]
        del self.registry.uploads[id]
        if digest_of(upload) != digest:
            self._say(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
            return
        self.registry.blobs[name, digest] = bytes(upload)
        self._say(201, location=f"/v2/{name}/blobs/{digest}")

    def delete_upload(self, name: str, id: str) -> None:  # noqa: A002, ARG002 - the route's names
        self.registry.uploads.pop(id, None)
        self._say(204)

    def _status(self, name: str, upload: str) -> dict[str, str]:
        size = len(self.registry.uploads[upload])
        where = f"/v2/{name}/blobs/uploads/{upload}"
        return {"location": where, "range": f"0-{max(size - 1, 0)}"}

    # Manifests

    def get_manifest(self, name: str, target: str) -> None:
        digest = self.registry.tags.get((name, target), target)
        found = self.registry.manifests.get((name, digest))
        if found is None:
            self._say(404)
        else:
            self._say(200, found[1], content_type=found[0], docker_content_digest=digest)

    head_manifest = get_manifest

    def put_manifest(self, name: str, target: str) -> None:
        body = self._body()
        digest = digest_of(body)
        self.registry.manifests[name, digest] = (self.headers["Content-Type"], body)
        if target != digest:
            self.registry.tags[name, target] = digest
        subject = json.loads(body).get("subject")
        more = {"oci_subject": subject["digest"]} if subject else {}
        self._say(201, location=f"/v2/{name}/manifests/{digest}", **more)

    # Lists

    def get_referrers(self, name: str, digest: str) -> None:
        kind = self.query.get("artifactType")
        listed = [each for each in self._referring(name, digest) if kind in (None, _kind(each))]
        page, more = self._page(f"/v2/{name}/referrers/{digest}", listed)
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": page}
        if kind is not None:
            more["oci_filters_applied"] = "artifactType"
        self._say(200, json.dumps(index).encode(), content_type=_INDEX, **more)

    def _referring(self, name: str, digest: str) -> list[dict[str, Any]]:
        found = []
        for (repository, own), (kind, body) in list(self.registry.manifests.items()):
            document = json.loads(body)
            if repository == name and (document.get("subject") or {}).get("digest") == digest:
                artifact = document.get("artifactType") or document["config"]["mediaType"]
                entry = {"mediaType": kind, "digest": own, "size": len(body)}
                found.append({**entry, "artifactType": artifact})
        return found

    def _page(self, path: str, listed: list[Any]) -> tuple[list[Any], dict[str, str]]:
        start = int(self.query.get("start", "0"))
        stop = start + self.registry.page
        kind = self.query.get("artifactType")
        query = f"start={stop}" + (f"&artifactType={kind}" if kind else "")
        more = {"link": f'<{path}?{query}>; rel="next"'} if stop < len(listed) else {}
        return listed[start:stop], more

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass


def _kind(entry: dict[str, Any]) -> object:
    return entry.get("artifactType")
