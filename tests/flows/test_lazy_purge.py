"""A purge takes parts of blobs, too: what an operator has purged answers nobody."""

from __future__ import annotations

from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror, noise

_LAYER = noise(4_000_000, seed=31)
_AT = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"
_APP = Repo("docker.io", "library/app")


async def test_parts_are_purged_with_their_image(registry: FakeRegistry, tmp_path: Path) -> None:
    """The bytes that came out of turn and their notes are dropped; the next part is fetched again."""
    registry.add_image("library/app", "v1", [_LAYER])
    routes = [{"match": "docker.io/**", "ranges": "lazy", "lazy_share": 1.0}]
    ingests = tmp_path / "store" / "ingest"
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=routes) as mirror:
        for asked in (1, 2):
            assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
            part = await mirror.ask(_AT, headers={"Range": "bytes=3000000-3000999"})
            assert part.status == 206
            assert part.body == _LAYER[3_000_000:3_001_000]
            assert sorted(file.suffix for file in ingests.iterdir()) == [".map", ".served", ".spans"]
            assert len(registry.of_kind("blobs", "GET")) == asked
            purged = await mirror.app.admin.images.purge(Image(_APP, "v1"))
            assert purged["tags"] == ["v1"]
            assert not list(ingests.iterdir())
