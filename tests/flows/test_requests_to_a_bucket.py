"""How many requests to the store pushes and pulls cost: what docs/object-storage.md promises."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from mirror.oci.digest import Digest
from tests.support.bucket_mirror import bucket_mirror, evict
from tests.support.live_mirror import LiveMirror
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, image

_PAGE = (Path(__file__).resolve().parents[2] / "docs/object-storage.md").read_text()
_WRITES = ("write", "upload")
_READS = ("read", "head", "open")


def _promised(row: str) -> tuple[int, int]:
    """The writes and reads of a row of the table."""
    found = re.search(rf"^\| {re.escape(row)} \| (none|\d+)[^|]*\| (none|\d+)", _PAGE, re.MULTILINE)
    assert found is not None, row
    writes, reads = (0 if count == "none" else int(count) for count in found.groups())
    return writes, reads


class Meter:
    """Counts the requests to a bucket."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self._bucket = bucket
        self._seen = Counter(bucket.calls)

    def expect(self, row: str) -> None:
        """No more than promised since the last look, and no less than half of it: the table would be wrong."""
        made = Counter(self._bucket.calls) - self._seen
        self._seen = Counter(self._bucket.calls)
        for verbs, most in zip((_WRITES, _READS), _promised(row), strict=True):
            count = sum(made[verb] for verb in verbs)
            assert most / 2 <= count <= most, (row, made)


async def _push(client: PushClient, tag: str, layers: list[bytes], new: list[bytes]) -> None:
    """As clients do: they ask for each layer, and send what is not there."""
    for layer in layers:
        await client.blob(Digest.of(layer), method="HEAD")
    config = b'{"os": "linux", "architecture": "amd64", "of": "%s"}' % tag.encode()
    for content in (*new, config):
        await client.push_blob(content)
    answer = await client.put(image(config, *layers), tag)
    assert answer.status == 201, answer


async def _pull(mirror: LiveMirror, client: PushClient, layers: list[bytes]) -> None:
    mirror.clock.forward(60)
    assert (await client.manifest("v2")).status == 200
    for layer in layers:
        assert (await client.blob(Digest.of(layer))).body == layer


async def test_the_table_of_requests_is_right(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    # collection and sweeps ask as well, whenever they are due
    async with bucket_mirror(tmp_path, bucket, hosting={"collect_every": 0, "sweep_every": 0}) as mirror:
        client = PushClient(mirror)
        await client.push_image("v0", b"the first image of a repository costs a little more")
        layers = [os.urandom(1000) for _ in range(10)]
        meter = Meter(bucket)
        await _push(client, "v1", layers, layers)
        meter.expect("push, everything new")
        layers[0] = os.urandom(1000)
        await _push(client, "v2", layers, layers[:1])
        meter.expect("push, one new layer")
        await _pull(mirror, client, layers)
        meter.expect("pull of a hosted image, the disk has it")
        evict(mirror, *layers)
        await _pull(mirror, client, layers)
        meter.expect("pull, the disk lacks it")
