"""A bucket that is slow, and not down: those who do not need it do not notice."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.ports import NotChanged, StoredObject, Version
from tests.support.bucket_mirror import bucket_mirror
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient

#: More requests than may wait.
_REQUESTS = 250


class StuckBucket(MemoryBucket):
    """A bucket that answers no read for as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        self.answers.wait()
        return super().read(key, limit, unless=unless)


async def test_114_cached_pulls_do_not_notice_how_many_wait_for_the_bucket(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    """Not those by tag either. Of those who need the bucket, some wait, and the rest is refused at once."""
    manifests = [registry.add_image("library/app", f"v{number}", [b"layer %d" % number]) for number in range(3)]
    bucket = StuckBucket()
    async with bucket_mirror(tmp_path, bucket, upstreams={"docker.io": registry.url}) as mirror:
        client = PushClient(mirror)
        pushed = await client.push_image("v1", b"content")
        for number in range(len(manifests)):
            assert (await mirror.ask(f"/v2/library/app/manifests/v{number}?ns=docker.io")).status == 200
        bucket.answers.clear()
        try:
            unknown = (Digest.of(b"nothing %d" % number) for number in range(_REQUESTS))
            asked = [asyncio.create_task(client.manifest(digest, method="HEAD")) for digest in unknown]
            refused = await until(lambda: [task.result() for task in asked if task.done()])
            assert {(got.status, got.headers["Retry-After"]) for got in refused} == {(503, "1")}
            mirror.app.shared.caches.tags.clear()
            mirror.app.shared.caches.manifests.clear()
            for number in range(len(manifests)):
                answer = await mirror.ask(f"/v2/library/app/manifests/v{number}?ns=docker.io")
                assert answer.status == 200
            assert sum(not task.done() for task in asked) >= 32
        finally:
            bucket.answers.set()
        assert {task.status for task in await asyncio.gather(*asked)} == {404, 503}
        assert (await client.manifest("v1")).body == pushed
