"""Images that are not built like most: an index whose children are blobs, and blobs that a manifest embeds."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.app.building import build
from mirror.app.storage import make_purge
from mirror.config import load
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.batch import prefetch
from tests.support.command import Done
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.stocked import Stocked, write_settings

APP = Repo("docker.io", "library/app")
LAYERS = [b"a layer of the cache" * 500, b"another one" * 900]
CACHE_CONFIG = json.dumps({"layers": [], "records": []}).encode()
EMPTY = b"{}"
_AT = "/v2/library/app"


def descriptor(content: bytes, kind: str, **more: Any) -> dict[str, Any]:
    """Of these bytes."""
    return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content), **more}


def add_cache(registry: FakeRegistry, kind: str = OCI_INDEX) -> Digest:
    """As `docker buildx build --cache-to type=registry` writes it without `image-manifest=true`."""
    layer = "application/vnd.oci.image.layer.v1.tar+gzip"
    listed = [descriptor(one, layer) for one in LAYERS]
    listed.append(descriptor(CACHE_CONFIG, "application/vnd.buildkit.cacheconfig.v0"))
    for content in (*LAYERS, CACHE_CONFIG):
        registry.add_blob("library/app", content)
    body = {"schemaVersion": 2, "mediaType": kind, "manifests": listed}
    return registry.add_manifest("library/app", json.dumps(body).encode(), kind, "cache")


def add_artifact(registry: FakeRegistry, data: bytes = EMPTY) -> Digest:
    """An artifact whose config is embedded, and not in the registry."""
    encoded = base64.b64encode(data).decode()
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example",
        "config": descriptor(EMPTY, "application/vnd.oci.empty.v1+json", data=encoded),
        "layers": [descriptor(LAYERS[0], "application/vnd.example.thing")],
    }
    registry.add_blob("library/app", LAYERS[0])
    return registry.add_manifest("library/app", json.dumps(body).encode(), OCI_MANIFEST, "artifact")


async def bring(mirror: LiveMirror, tag: str) -> None:
    """By prefetch, all of it."""
    done = await prefetch(mirror.app.router.repository, [Image(APP, tag)])
    assert done.ok, done


async def run(*words: str | Path) -> Done:
    """A command, beside the loop."""
    done = await asyncio.to_thread(command, *words)
    assert done.status == 0, done
    return done


# -------------------------------------------------------------------------------------------------- children are blobs


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_LIST])
async def test_a_cache_of_buildkit(registry: FakeRegistry, tmp_path: Path, kind: str) -> None:
    """Brought in, complete for `ls`, known to `why`, and carried to a sealed site, which serves all of it."""
    add_cache(registry, kind)
    root = tmp_path / "store"
    config = write_settings(root)
    async with live_mirror(root, {"docker.io": registry.url}) as mirror:
        await bring(mirror, "cache")
        for content in (*LAYERS, CACHE_CONFIG):
            assert (await mirror.ask(f"{_AT}/blobs/{Digest.of(content)}")).body == content
        # nothing was asked for as if it were a manifest
        assert registry.count("manifests", "GET") == 1
    listed = json.loads((await run("ls", "--json", "-c", config)).out)
    assert (listed["image"], listed["complete"]) == ("docker.io/library/app:cache", True)
    why = (await run("why", str(Digest.of(LAYERS[1])), "-c", config)).out
    assert "library/app:cache" in why
    assert "manifest only" not in (await run("ls", "-c", config)).out
    bundle = tmp_path / "bundle.tar"
    await run("export", "library/app:cache", "-o", bundle, "-c", config)
    sealed = write_settings(tmp_path / "sealed", more='[[route]]\nmatch = "docker.io/**"\noffline = true')
    await run("import", bundle, "-c", sealed)
    async with build(load(sealed)) as app:
        await app.storage.index.clear()
        for content in (*LAYERS, CACHE_CONFIG):
            assert await app.router.repository(APP).read(Digest.of(content), 1 << 20) == content


@pytest.mark.parametrize("way", ["purge", "evict", "evict without an index"])
async def test_a_cache_of_buildkit_goes_as_a_whole(registry: FakeRegistry, tmp_path: Path, way: str) -> None:
    """Its layers are named by it: they are not loose while it is here, and go with it."""
    add_cache(registry)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        await bring(mirror, "cache")
        storage = mirror.app.storage
        await mirror.rebuilt()
        if way == "evict without an index":
            await storage.index.clear()
        assert len(list(storage.store.walk())) == 4
        if way == "purge":
            gone = await make_purge(mirror.config, storage)(Image(APP, "cache"))
            assert gone.blobs == 4
        else:
            storage.eviction.write_behind.touch(Digest.of(LAYERS[0]))
            await storage.eviction.space.make_room(1)
        assert list(storage.store.walk()) == []


async def test_a_cache_of_buildkit_does_not_grant_its_layers(registry: FakeRegistry, tmp_path: Path) -> None:
    """Few registries look at what an index names: upstream is asked about each blob, as it is without an index."""
    add_cache(registry)
    registry.add_image("team/private", "v1", [b"private" * 100])
    listed = [descriptor(b"private" * 100, "application/vnd.oci.image.layer.v1.tar")]
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    registry.add_manifest("library/app", json.dumps(body).encode(), OCI_INDEX, "evil")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        digest = Digest.of(b"private" * 100)
        assert (await mirror.ask(f"/v2/team/private/blobs/{digest}")).status == 200
        assert (await mirror.ask(f"{_AT}/manifests/evil")).status == 200
        assert (await mirror.ask(f"{_AT}/blobs/{digest}")).status == 404


# ------------------------------------------------------------------------------------------------------ embedded blobs


async def test_an_embedded_config_that_upstream_lacks(registry: FakeRegistry, tmp_path: Path) -> None:
    """The image is brought in and complete; the blob is had by GET and HEAD, again and again, and carried along."""
    manifest = add_artifact(registry)
    root, target = tmp_path / "store", f"{_AT}/blobs/{Digest.of(EMPTY)}"
    config = write_settings(root)
    async with live_mirror(root, {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(f"{_AT}/manifests/artifact")).status == 200
        assert (await mirror.ask(target)).body == EMPTY
        head = await mirror.ask(target, method="HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(EMPTY)))
        await bring(mirror, "artifact")
        assert registry.count("blobs") == 1
        # gone from the disk, it comes back out of the manifest
        mirror.blob_file(Digest.of(EMPTY)).unlink()
        assert (await mirror.ask(target)).body == EMPTY
    listed = json.loads((await run("ls", "--json", "-c", config)).out)
    assert listed["complete"]
    bundle = tmp_path / "bundle.tar"
    Stocked(root).store.delete(Digest.of(EMPTY))
    await run("export", "library/app:artifact", "-o", bundle, "-c", config)
    sealed = write_settings(tmp_path / "sealed", more='[[route]]\nmatch = "docker.io/**"\noffline = true')
    await run("import", bundle, "-c", sealed)
    async with build(load(sealed)) as app:
        assert await app.router.repository(APP).read(Digest.of(EMPTY), 100) == EMPTY
        assert (await app.router.repository(APP).manifest("artifact")).digest == manifest


@pytest.mark.parametrize("data", [b"[]", b"{}x", b""])
async def test_what_is_embedded_must_be_what_the_digest_names(
    registry: FakeRegistry, tmp_path: Path, data: bytes
) -> None:
    """Otherwise it is as good as none, and upstream is asked."""
    manifest = add_artifact(registry, data)
    content = registry.manifest("library/app", manifest)
    assert read_manifest(content, OCI_MANIFEST).blobs[0].data is None
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(f"{_AT}/manifests/artifact")).status == 200
        assert (await mirror.ask(f"{_AT}/blobs/{Digest.of(EMPTY)}")).status == 404
