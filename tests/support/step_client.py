"""A client that makes one change of a repository, step by step, and may get no answer."""

from __future__ import annotations

import http.client
import json
from typing import Final

from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import PATIENCE

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = b"{}"


class StepClient:
    """Changes one repository, number by number a new one, and gets no answer when the worker ends."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        #: The repository's name within its registry.
        self.name = f"app-{number}"
        self._path = f"/v2/corp/{self.name}/"
        self.first_layer, self.second_layer = (noise(size, seed=2 * number) for size in (30_000, 300_000))
        self.first, self.second = (image_of(layer) for layer in (self.first_layer, self.second_layer))

    def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status 0: no whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request(method, self._path + target, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, http.client.HTTPMessage(), b""
        finally:
            connection.close()

    def put_blob(self, content: bytes) -> bool:
        """POST, PATCH, and the closing PUT. False if one of them is not answered as it should be."""
        status, headers, _ = self.ask("POST", "blobs/uploads/")
        if status != 202:
            return False
        place = headers["Location"].removeprefix(self._path)
        if self.ask("PATCH", place, content)[0] != 202:
            return False
        return self.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={sha256(content)}")[0] == 201

    def put_manifest(self, tag: str, content: bytes) -> bool:
        """Whether it was acknowledged."""
        return self.ask("PUT", f"manifests/{tag}", content, {"Content-Type": MANIFEST})[0] == 201

    def delete(self, reference: str) -> bool:
        """Whether it was acknowledged."""
        return self.ask("DELETE", f"manifests/{reference}")[0] == 202

    def push_both(self) -> None:
        """The first image is tagged `v1` and `stable`; the second one's blobs are here."""
        assert all(self.put_blob(content) for content in (CONFIG, self.first_layer, self.second_layer))
        assert self.put_manifest("v1", self.first)
        assert self.put_manifest("stable", self.first)

    def digest_of(self, reference: str) -> str | None:
        """What a reference names now, read whole with every blob; None if it is unknown."""
        status, headers, body = self.ask("GET", f"manifests/{reference}")
        assert status in (200, 404), (reference, status, body)
        if status == 404:
            return None
        manifest = json.loads(body)
        assert headers["Docker-Content-Digest"] == sha256(body)
        for blob in [manifest["config"], *manifest["layers"]]:
            status, _, content = self.ask("GET", f"blobs/{blob['digest']}")
            assert (status, sha256(content)) == (200, blob["digest"])
        return sha256(body)


def image_of(layer: bytes) -> bytes:
    config, described = (
        {"mediaType": f"application/vnd.oci.image.{kind}", "digest": sha256(content), "size": len(content)}
        for kind, content in (("config.v1+json", CONFIG), ("layer.v1.tar", layer))
    )
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [described]}).encode()
