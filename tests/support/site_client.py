"""A client of mirrors that are processes: one request at a time, and images whose every byte is compared."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.images import sha256
from tests.support.process import PATIENCE
from tests.support.push_client import image


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of the mirror."""

    status: int
    headers: Any
    body: bytes

    @property
    def message(self) -> str:
        """Of an error."""
        [error] = json.loads(self.body)["errors"]
        return str(error["message"])


class SiteClient:
    """`_next_port` says which mirror is asked next."""

    def _next_port(self) -> int:
        raise NotImplementedError

    def ask(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Said:
        """One request on a connection of its own. Raises `OSError` if the answer breaks off."""
        connection = http.client.HTTPConnection("127.0.0.1", self._next_port(), timeout=PATIENCE)
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            return Said(answer.status, answer.headers, answer.read())
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()

    def push_blob(self, repository: str, content: bytes) -> Said:
        """In one request."""
        return self.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={sha256(content)}", content)

    def put_manifest(self, repository: str, reference: str, content: bytes) -> Said:
        """Its media type is the one that it names."""
        kind = str(json.loads(content)["mediaType"])
        return self.ask("PUT", f"/v2/{repository}/manifests/{reference}", content, {"Content-Type": kind})

    def push(self, repository: str, tag: str, *layers: bytes) -> bytes:
        """An image; returns its manifest. Everything must be acknowledged."""
        config = json.dumps({"os": "linux", "architecture": "amd64", "of": repository, "tag": tag}).encode()
        for content in (config, *layers):
            answer = self.push_blob(repository, content)
            assert answer.status == 201, answer
        manifest = image(config, *layers)
        answer = self.put_manifest(repository, tag, manifest)
        assert answer.status == 201, answer
        return manifest

    def manifest(self, repository: str, reference: str) -> Said:
        """As a client gets it."""
        return self.ask("GET", f"/v2/{repository}/manifests/{reference}")

    def blob(self, repository: str, content: bytes) -> Said:
        """As a client gets it; what it is must be known before."""
        return self.ask("GET", f"/v2/{repository}/blobs/{sha256(content)}")

    def pull(self, repository: str, tag: str) -> bytes:
        """A whole image, each part of which must be right; returns its manifest."""
        found = self.manifest(repository, tag)
        assert found.status == 200, found
        assert found.headers["Docker-Content-Digest"] == sha256(found.body)
        content = json.loads(found.body)
        for descriptor in (content["config"], *content["layers"]):
            answer = self.ask("GET", f"/v2/{repository}/blobs/{descriptor['digest']}")
            assert answer.status == 200, answer
            assert sha256(answer.body) == descriptor["digest"]
        return found.body
