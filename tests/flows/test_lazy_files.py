"""The files of blobs of which clients have read parts: synced, compared, purged."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mirror.app.storage import sweep_and_report
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.fills.span_blocks import SYNCED
from mirror.policy.image_names import Image
from mirror.store.local.recovery import sweep
from mirror.store.local.span_file import SpanFile
from tests.support.fake_registry import FakeRegistry, wrong_bytes
from tests.support.live_mirror import live_mirror, noise, until

_LAYER = noise(4_000_000, seed=31)
_AT = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"
_APP = Repo("docker.io", "library/app")
_ROUTES = [{"match": "docker.io/**", "ranges": "lazy", "lazy_share": 1.0, "lazy_pause": "0s"}]
_PART = {"Range": "bytes=3000000-3000999"}


def _wrong_blobs() -> float:
    return REGISTRY.get_sample_value("mirror_lazy_wrong_blobs_total", {"upstream": "docker.io"}) or 0.0


async def test_parts_are_purged_with_their_image(registry: FakeRegistry, tmp_path: Path) -> None:
    """The bytes that came out of turn and their notes are dropped; the next part is fetched again."""
    registry.add_image("library/app", "v1", [_LAYER])
    ingests = tmp_path / "store" / "ingest"
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        for asked in (1, 2):
            assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
            part = await mirror.ask(_AT, headers=_PART)
            assert part.status == 206
            assert part.body == _LAYER[3_000_000:3_001_000]
            assert sorted(file.suffix for file in ingests.iterdir()) == [".map", ".served", ".spans"]
            assert len(registry.of_kind("blobs", "GET")) == asked
            purged = await mirror.app.admin.images.purge(Image(_APP, "v1"))
            assert purged["tags"] == ["v1"]
            assert not list(ingests.iterdir())


async def test_parts_survive_a_power_cut_once_it_is_quiet(registry: FakeRegistry, tmp_path: Path) -> None:
    """As long as the share for the whole is not here, they may stay like this for long."""
    registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        assert (await mirror.ask(_AT, headers=_PART)).status == 206
        spans = mirror.app.storage.store.spans(Digest.of(_LAYER), "docker.io", None)
        assert isinstance(spans, SpanFile)
        await until(lambda: SYNCED in spans.states(range(61)))
        spans.close()


async def test_sent_parts_of_a_blob_that_came_otherwise_are_compared(registry: FakeRegistry, tmp_path: Path) -> None:
    """The upstream gave wrong bytes for a part, and another registry the right blob: the sweep says who got them."""
    registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        registry.fail("blobs", wrong_bytes)
        got = await mirror.ask(_AT, headers=_PART)
        assert got.body != _LAYER[3_000_000:3_001_000]
        mirror.app.storage.store.put(Digest.of(_LAYER), _LAYER)
        layout = mirror.app.storage.layout
        [wrong] = (await asyncio.to_thread(sweep, layout, keep=86400, now=time.time)).wrong
        assert wrong.digest == Digest.of(_LAYER)
        [line] = wrong.served
        assert line["upstream"] == "docker.io"
        assert not list((tmp_path / "store" / "ingest").iterdir())


@pytest.mark.parametrize("is_right", [False, True])
async def test_a_route_that_was_switched_back(registry: FakeRegistry, tmp_path: Path, is_right: bool) -> None:
    """Who was sent wrong parts is reported: at once if the whole is wrong as well, and by the sweep if it is right. The
    fill itself looks for no spans.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    before = _wrong_blobs()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        registry.fail("blobs", wrong_bytes)
        assert (await mirror.ask(_AT, headers=_PART)).body != _LAYER[3_000_000:3_001_000]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        if not is_right:
            registry.fail("blobs", wrong_bytes)
        assert (await mirror.ask(_AT)).whole == is_right
        await mirror.idle()
        if is_right:
            await mirror.landed(Digest.of(_LAYER))
            await asyncio.to_thread(sweep_and_report, mirror.config, mirror.app.storage.layout, keep=86400)
        [line] = mirror.events("unverified parts were wrong")
        assert (line["digest"], line["upstream"], line["answers"]) == (str(Digest.of(_LAYER)), "docker.io", 1)
        assert not [file.name for file in (tmp_path / "store" / "ingest").iterdir() if "." in file.name]
    assert _wrong_blobs() == before + 1


async def test_parts_that_nobody_can_check_are_reported(registry: FakeRegistry, tmp_path: Path) -> None:
    """The whole never came, and the parts are too old."""
    registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        assert (await mirror.ask(_AT, headers=_PART)).status == 206
        lazy = mirror.app.shared.lazy
        assert lazy is not None
        await until(lambda: not lazy._blobs)
        await asyncio.to_thread(sweep_and_report, mirror.config, mirror.app.storage.layout, keep=-60)
        [line] = mirror.events("unverified parts never checked")
        assert (line["digest"], line["upstream"], line["answers"]) == (str(Digest.of(_LAYER)), "docker.io", 1)
        assert [served["by"] for served in line["served"]] == ["127.0.0.1"]
        assert not list((tmp_path / "store" / "ingest").iterdir())
