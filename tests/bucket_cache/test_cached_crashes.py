"""The process is killed, or gets no answer, at each request by which an image is written to the bucket, behind the
answer. The next process goes on: what it writes comes back to an empty disk, and what it purges is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from mirror.bucket_cache.cached_keys import CachedRecord
from mirror.errors import BucketUnavailable
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from tests.support.cache_world import REPO, CacheWorld
from tests.support.stepping_bucket import Killed, SteppingBucket

_LAYER: Final = b"a layer"
#: More requests than it takes.
_MANY: Final = 30


def _write(world: CacheWorld, image: Descriptor) -> None:
    """What one process writes behind the pull of an image."""
    work = (
        image.digest,
        Digest.of(_LAYER),
        CachedRecord.of_manifest(REPO, image.digest),
        CachedRecord.of_history(REPO, "v1"),
        CachedRecord.of_tag(REPO, "v1"),
    )
    for each in work:
        assert world.uploads.write_now(each)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Killed, lambda: BucketUnavailable("on purpose")], ids=["killed", "no answer"])
@pytest.mark.parametrize("purges", [False, True], ids=["goes on", "is purged"])
async def test_113_122_each_request_of_a_write_behind_goes_wrong(
    tmp_path: Path, error: Callable[[], BaseException], *, done: bool, purges: bool
) -> None:
    """Rows 113 and 122: see above."""
    for number in range(1, _MANY):
        bucket = SteppingBucket()
        world = CacheWorld(tmp_path / str(number), bucket)
        image = world.here.image([_LAYER], tag="v1")
        bucket.stop_at(number, error(), done=done)
        with suppress(Killed, BucketUnavailable):
            _write(world, image)
        was_reached = bucket.reached
        await world.aclose()
        world = CacheWorld(tmp_path / str(number), bucket)
        if purges:
            digests = [image.digest, Digest.of(_LAYER)]
            for digest in digests:
                world.here.store.delete(digest)
            world.here.catalog.drop_tag(REPO, "v1")
            world.here.catalog.drop_manifest(REPO, image.digest)
            world.purge.drop_records(REPO, ["v1"], [image.digest])
            world.purge.drop_blobs(digests)
            assert not bucket.content()
            assert not await world.restoring.tag(REPO, "v1")
        else:
            _write(world, image)
            world.wipe()
            await world.upkeep().tick()
            assert await world.restoring.tag(REPO, "v1")
            assert await world.restoring.manifest(REPO, image.digest)
            found = world.objects.source(Digest.of(_LAYER))
            assert found is not None
            assert bucket.content()[found.key] == _LAYER
        await world.aclose()
        if not was_reached:
            assert number > 4
            return
    pytest.fail("it has no end")
