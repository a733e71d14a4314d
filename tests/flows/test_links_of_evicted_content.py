"""Links of the index to content that is gone: the index stays as small as what is here, and nobody loses a right."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from mirror.app.housekeeping import open_forgetting
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.bucket_mirror import bucket_opened
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.scripted import Stall

_APP: Final = Repo("docker.io", "library/app")
_AT: Final = "/v2/library/app"


async def _walk(mirror: LiveMirror) -> None:
    await mirror.rebuilt()
    await open_forgetting(mirror.config, mirror.app.storage, mirror.app.shared.histories.clocks.earlier).walk()


async def _pull(mirror: LiveMirror, tag: str) -> list[Digest]:
    """The manifest and its blobs."""
    answer = await mirror.ask(f"{_AT}/manifests/{tag}")
    assert answer.status == 200
    blobs = [Digest.parse(blob["digest"]) for blob in (answer.json["config"], *answer.json["layers"])]
    for blob in blobs:
        assert (await mirror.ask(f"{_AT}/blobs/{blob}")).whole
    await mirror.idle()
    return [Digest.parse(answer.headers["Docker-Content-Digest"]), *blobs]


def _links(mirror: LiveMirror) -> set[str]:
    """The digests that have a link, in the embedded index."""
    with closing(sqlite3.connect(mirror.root / "index.sqlite")) as connection:
        return {digest for (digest,) in connection.execute("SELECT digest FROM links")}


async def test_the_index_has_links_of_what_is_here_alone(registry: FakeRegistry, tmp_path: Path) -> None:
    """After many more pulls than the store takes, and also with `forget_after = 0`. What is still here is then served
    while the upstream is away, by a process that remembers nothing; what is not here is fetched again.
    """
    store: dict[str, Any] = {"capacity": "1MB", "forget_after": 0}
    upstreams = {"docker.io": registry.url}
    for number in range(40):
        registry.add_image(_APP.name, f"v{number}", [noise(100_000, number)], config=b'{"n": %d}' % number)
    async with live_mirror(tmp_path / "store", upstreams, store=store) as mirror:
        await mirror.rebuilt()
        pulled = []
        for number in range(40):
            pulled.append(await _pull(mirror, f"v{number}"))
            mirror.clock.forward(1.0)
        await mirror.app.storage.eviction.write_behind.flush()
        assert {str(digest) for image in pulled for digest in image} <= _links(mirror)
        await _walk(mirror)
        here = {digest for image in pulled for digest in image if mirror.blob_file(digest).exists()}
        named = {digest for image in pulled for digest in image if image[0] in here}
        assert 0 < len(here) < 60
        assert _links(mirror) == {str(digest) for digest in here | named}
    registry.away()
    async with live_mirror(tmp_path / "store", upstreams, store=store) as mirror:
        await mirror.rebuilt()
        for digest in here - {image[0] for image in pulled}:
            assert (await mirror.ask(f"{_AT}/blobs/{digest}")).whole
        registry.back()
        assert pulled[0][0] not in here
        assert await _pull(mirror, "v0") == pulled[0]
        await mirror.app.storage.eviction.write_behind.flush()
        assert {str(digest) for digest in pulled[0]} <= _links(mirror)


async def test_what_is_being_fetched_keeps_its_link(registry: FakeRegistry, tmp_path: Path) -> None:
    """Of a blob that no manifest here names: its link is all that says that upstream has answered for it."""
    content, gate = noise(300_000), Stall()
    digest = registry.add_blob(_APP.name, content)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        await mirror.rebuilt()
        registry.fail("blobs", stall(gate, 200_000))
        async with mirror.open(f"{_AT}/blobs/{digest}") as answer:
            await answer.content.readexactly(1000)
            await until(lambda: str(digest) in _links(mirror))
            await _walk(mirror)
            assert _links(mirror) == {str(digest)}
            gate.release()
            await answer.content.read()
        await mirror.landed(digest)
        await _walk(mirror)
        assert _links(mirror) == {str(digest)}
        await mirror.app.storage.eviction.write_behind.flush()
        await mirror.app.storage.eviction.evictor.drop([digest])
        await _walk(mirror)
        assert _links(mirror) == set()
        assert (await mirror.ask(f"{_AT}/blobs/{digest}")).whole


async def test_what_the_bucket_has_keeps_its_link(registry: FakeRegistry, tmp_path: Path) -> None:
    """The whole image is evicted; its layer comes from the bucket while the upstream is away, also if no client asks
    for the manifest before. What has gone from the bucket as well has no link any more.
    """
    store = {"bucket": "s3://bucket", "cache_in_bucket": True}
    upstreams, bucket = {"docker.io": registry.url}, MemoryBucket()
    registry.add_image(_APP.name, "v1", [b"layer"])
    with bucket_opened(bucket):
        async with live_mirror(tmp_path / "store", upstreams, store=store, bucket={"region": "test"}) as mirror:
            cache = mirror.app.storage.bucket_cache
            assert cache is not None
            await until(lambda: cache.book.completed_at() is not None)
            image = await _pull(mirror, "v1")
            await until(lambda: not cache.uploads.waiting)
            await mirror.app.storage.eviction.write_behind.flush()
            await mirror.app.storage.eviction.evictor.drop(image)
            await _walk(mirror)
            assert _links(mirror) == {str(digest) for digest in image}
        registry.away()
        async with live_mirror(tmp_path / "store", upstreams, store=store, bucket={"region": "test"}) as mirror:
            restarted = mirror.app.storage.bucket_cache
            assert restarted is not None
            await mirror.rebuilt()
            answer = await mirror.ask(f"{_AT}/blobs/{image[-1]}")
            assert (answer.status, answer.body) == (200, b"layer")
            await mirror.landed(image[-1])
            await mirror.app.storage.eviction.write_behind.flush()
            await mirror.app.storage.eviction.evictor.drop([image[-1]])
            restarted.book.drop(image)
            await _walk(mirror)
            assert _links(mirror) == set()
