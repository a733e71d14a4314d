"""What a registry has of an image that was pushed, read byte for byte, whoever pushed it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support.images import sha256
from tests.support.process import PATIENCE

_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class Pushed:
    """The manifest that a reference names, and sizes in bytes of all its blobs and of its children's."""

    digest: str
    media_type: str
    content: bytes
    blobs: dict[str, int]

    @property
    def manifest(self) -> dict[str, Any]:
        """Parsed."""
        parsed: dict[str, Any] = json.loads(self.content)
        return parsed


def read_pushed(
    url: str, repository: str, reference: str, *, account: tuple[str, str] | None = None, other_types: str = ""
) -> Pushed:
    """Read an image or index with everything that it names. Raises `AssertionError` if anything is missing or wrong."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    try:
        return _read(_Reader(connection, repository, account), reference, {"Accept": ", ".join([*_TYPES, other_types])})
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class _Reader:
    connection: http.client.HTTPConnection
    repository: str
    account: tuple[str, str] | None

    def get(self, what: str, headers: dict[str, str]) -> tuple[Any, bytes]:
        if self.account is not None:
            encoded = base64.b64encode(":".join(self.account).encode()).decode()
            headers = {**headers, "Authorization": f"Basic {encoded}"}
        target = f"/v2/{self.repository}/{what}"
        self.connection.request("GET", target, headers=headers)
        answer = self.connection.getresponse()
        body = answer.read()
        assert answer.status == 200, f"GET {target}: {answer.status} {body[:1000]!r}"
        return answer.headers, body


def _read(reader: _Reader, reference: str, accept: dict[str, str]) -> Pushed:
    headers, content = reader.get(f"manifests/{reference}", accept)
    digest = sha256(content)
    assert headers["Docker-Content-Digest"] == digest
    if reference.startswith("sha256:"):
        assert reference == digest
    manifest = json.loads(content)
    blobs: dict[str, int] = {}
    for child in manifest.get("manifests", []):
        blobs |= _read(reader, child["digest"], accept).blobs
    for blob in [manifest["config"], *manifest["layers"]] if "config" in manifest else []:
        _, body = reader.get(f"blobs/{blob['digest']}", {})
        algorithm, _, encoded = blob["digest"].partition(":")
        assert hashlib.new(algorithm, body).hexdigest() == encoded
        assert len(body) == blob["size"]
        blobs[blob["digest"]] = blob["size"]
    return Pushed(digest, headers["Content-Type"], content, blobs)
