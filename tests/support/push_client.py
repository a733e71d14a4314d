"""A client that pushes to a mirror of this process, step by step, as the conformance program and real clients do.

async with hosting_mirror(tmp_path) as mirror:
    client = PushClient(mirror, "corp/app")
    await client.push_blob(b"…")
    answer = await client.put(manifest, "v1")
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from yarl import URL

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.live_mirror import Got, LiveMirror, live_mirror

CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"

#: Everybody may do everything in the registry `corp`.
OPEN: Final = {
    "effect": "allow",
    "callers": ["*"],
    "actions": ["pull", "write", "delete"],
    "repositories": ["corp/**"],
}


@asynccontextmanager
async def hosting_mirror(
    root: Path, *, hosted: Mapping[str, Any] | None = None, rules: Sequence[Mapping[str, Any]] = (OPEN,), **more: Any
) -> AsyncIterator[LiveMirror]:
    """A mirror that hosts the registry `corp`, with these settings of its own; `more` as in `live_mirror`."""
    upstreams = more.pop("upstreams", {"docker.io": "http://127.0.0.1:9"})
    async with live_mirror(
        root / "store",
        upstreams,
        hosted=[{"name": "corp", **(hosted or {})}, *more.pop("more_hosted", [])],
        access={"rule": [dict(rule) for rule in rules], **more.pop("access", {})},
        **more,
    ) as mirror:
        yield mirror


class PushClient:
    """Pushes to one repository."""

    def __init__(self, mirror: LiveMirror, name: str = "corp/app") -> None:
        self.mirror = mirror
        self.name = name
        self.uploads = f"/v2/{name}/blobs/uploads/"

    async def ask(self, method: str, target: str, *, body: Any = None, headers: Mapping[str, str] | None = None) -> Got:
        """One request. `target` may be a Location. A body that is an iterator goes in chunks."""
        url = URL(f"http://127.0.0.1:{self.mirror.port}{target}", encoded=True)
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > 1 << 20 else body
        async with self.mirror.session.request(
            method, url, data=data, headers=headers, allow_redirects=False
        ) as response:
            return Got(response.status, response.headers, await response.read(), True)

    async def begin(self, query: str = "") -> str:
        """The location of a new session."""
        answer = await self.ask("POST", self.uploads + query)
        assert answer.status == 202, answer
        return answer.headers["Location"]

    async def finish(self, location: str, digest: Digest, body: bytes | None = None, **headers: str) -> Got:
        """The closing PUT."""
        target = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        return await self.ask("PUT", target, body=body, headers=headers)

    async def push_blob(self, content: bytes, algorithm: str = "sha256") -> Digest:
        """A blob by POST and PUT."""
        digest = Digest.of(content, algorithm)
        done = await self.finish(await self.begin(), digest, content)
        assert done.status == 201, done
        return digest

    async def blob(self, digest: Digest, *, method: str = "GET", **headers: str) -> Got:
        """A blob as it can be pulled."""
        return await self.ask(method, f"/v2/{self.name}/blobs/{digest}", headers=headers)

    async def put(
        self, content: bytes, reference: Digest | str, *, kind: str | None = None, tags: Sequence[str] = ()
    ) -> Got:
        """A manifest, with its own media type unless `kind` is another one."""
        query = "?" + "&".join(f"tag={tag}" for tag in tags) if tags else ""
        said = kind or str(json.loads(content).get("mediaType", OCI_MANIFEST))
        target = f"/v2/{self.name}/manifests/{reference}{query}"
        return await self.ask("PUT", target, body=content, headers={"Content-Type": said})

    async def manifest(self, reference: Digest | str, *, method: str = "GET") -> Got:
        """A manifest as it can be pulled."""
        return await self.ask(method, f"/v2/{self.name}/manifests/{reference}")

    async def push_image(self, tag: str, *layers: bytes, **more: Any) -> bytes:
        """An image of these layers under a tag; returns its manifest."""
        content = await self.make_image(*layers, **more)
        answer = await self.put(content, tag)
        assert answer.status == 201, answer
        return content

    async def make_image(self, *layers: bytes, algorithm: str = "sha256", **more: Any) -> bytes:
        """Push the blobs of an image; returns the manifest that names them."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "layers": len(layers)}).encode()
        for blob in (config, *layers):
            await self.push_blob(blob, algorithm)
        return image(config, *layers, algorithm=algorithm, **more)

    async def referrers(self, subject: Digest, query: str = "") -> Got:
        """The referrers of a subject."""
        return await self.ask("GET", f"/v2/{self.name}/referrers/{subject}{query}")


def descriptor(content: bytes, kind: str, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
    """The descriptor of some content."""
    return {"mediaType": kind, "digest": str(Digest.of(content, algorithm)), "size": len(content), **more}


def image(config: bytes, *layers: bytes, algorithm: str = "sha256", **more: Any) -> bytes:
    """An image manifest; `more` are further fields of it."""
    return document(
        OCI_MANIFEST,
        config=descriptor(config, CONFIG_TYPE, algorithm),
        layers=[descriptor(layer, LAYER_TYPE, algorithm) for layer in layers],
        **more,
    )


def index(*children: bytes, **more: Any) -> bytes:
    """An index of manifests."""
    return document(
        OCI_INDEX,
        manifests=[descriptor(child, str(json.loads(child)["mediaType"])) for child in children],
        **more,
    )


def document(kind: str, **fields: Any) -> bytes:
    """A manifest of any kind."""
    return json.dumps({"schemaVersion": 2, "mediaType": kind, **fields}).encode()
