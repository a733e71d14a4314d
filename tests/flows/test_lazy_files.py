"""The files of blobs of which clients have read parts: synced, compared, purged."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mirror.app.storage import sweep_and_report
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.fills.span_blocks import SYNCED
from mirror.policy.image_names import Image
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.recovery import sweep
from mirror.store.local.span_file import SpanFile
from tests.support.fake_registry import FakeRegistry, ignore_range, stall, wrong_bytes
from tests.support.live_mirror import live_mirror, noise, reached, until
from tests.support.scripted import Stall

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
        left = {file.suffix for file in (tmp_path / "store" / "ingest").iterdir()}
        assert left == (set() if is_right else {".avoid"})
    assert _wrong_blobs() == before + 1


async def test_what_was_found_wrong_is_known_to_every_worker(registry: FakeRegistry, tmp_path: Path) -> None:
    """No other worker begins lazy parts anew. After ten minutes they are tried again."""
    registry.add_image("library/app", "v1", [_LAYER])
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        registry.fail("blobs", wrong_bytes, times=2)
        assert (await mirror.ask(_AT, headers=_PART)).body != _LAYER[3_000_000:3_001_000]
        assert not (await mirror.ask(_AT)).whole
        await mirror.idle()
        assert mirror.events("unverified parts were wrong")
        # the second try was right
        await mirror.landed(Digest.of(_LAYER))
    await _expect_lazy(registry, tmp_path, f"{Layout(tmp_path / 'store').ingest(Digest.of(_LAYER), 'docker.io').name}")


async def test_an_upstream_that_ignores_ranges_is_known_to_every_worker(registry: FakeRegistry, tmp_path: Path) -> None:
    """Whichever blob it was that showed it."""
    registry.add_image("library/app", "v1", [_LAYER])
    other = noise(4_000_000, seed=32)
    registry.add_image("library/other", "v1", [other])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/other/manifests/v1")).status == 200
        registry.fail("blobs", ignore_range, times=1000)
        at = f"/v2/library/other/blobs/{Digest.of(other)}"
        assert (await mirror.ask(at, headers=_PART)).body == other[3_000_000:3_001_000]
        await mirror.landed(Digest.of(other))
        registry.heal()
    await _expect_lazy(
        registry, tmp_path, Layout(tmp_path / "store").ingest(Digest.of(other), "docker.io").name.partition("-")[0]
    )


async def _expect_lazy(registry: FakeRegistry, root: Path, name: str) -> None:
    """A worker that has found out nothing asks for parts only once the note of this name is old."""
    note = root / "store" / "ingest" / f"{name}.avoid"
    async with live_mirror(root / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        for age, is_lazy in ((0, False), (700, True)):
            mirror.app.storage.store.delete(Digest.of(_LAYER))
            os.utime(note, (0, time.time() - age))
            registry.forget()
            got = await mirror.ask(_AT, headers=_PART)
            assert got.body == _LAYER[3_000_000:3_001_000]
            assert got.headers["Cache-Status"].endswith("; detail=unverified") is is_lazy
            assert len(registry.of_kind("blobs", "GET")) == 1
            if not is_lazy:
                await mirror.landed(Digest.of(_LAYER))
        await asyncio.to_thread(sweep_and_report, mirror.config, mirror.app.storage.layout, keep=86400)
        assert note.exists()
        os.utime(note, (0, time.time() - 4000))
        await asyncio.to_thread(sweep_and_report, mirror.config, mirror.app.storage.layout, keep=86400)
        assert not note.exists()


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


async def test_a_purge_while_a_part_is_fetched(registry: FakeRegistry, tmp_path: Path) -> None:
    """The client gets its part, or an answer that breaks; never other bytes. Nothing is left that anybody believes."""
    registry.add_image("library/app", "v1", [_LAYER])
    gate = Stall()
    registry.fail("blobs", stall(gate, 100))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        asking = asyncio.create_task(mirror.ask(_AT, headers=_PART))
        await reached(gate)
        await mirror.app.admin.images.purge(Image(_APP, "v1"))
        gate.release()
        got = await asking
        assert got.status != 206 or not got.whole or got.body == _LAYER[3_000_000:3_001_000]
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        again = await mirror.ask(_AT, headers=_PART)
        assert (again.status, again.body) == (206, _LAYER[3_000_000:3_001_000])
        assert (await mirror.ask(_AT)).body == _LAYER
        await mirror.landed(Digest.of(_LAYER))
        await until(lambda: not list((tmp_path / "store" / "ingest").iterdir()))


async def test_room_is_made_while_a_part_is_fetched(registry: FakeRegistry, tmp_path: Path) -> None:
    """What is being fetched stays, whatever else goes; idle parts go, and are fetched again if they are wanted."""
    registry.add_image("library/app", "v1", [_LAYER])
    gate = Stall()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        layout = mirror.app.storage.layout
        for is_busy in (True, False):
            if is_busy:
                registry.fail("blobs", stall(gate, 100))
            asking = asyncio.create_task(mirror.ask(_AT, headers=_PART))
            if is_busy:
                await reached(gate)
            else:
                await asking
            swept = await asyncio.to_thread(sweep_and_report, mirror.config, layout, keep=-60)
            gate.release()
            assert (await asking).body == _LAYER[3_000_000:3_001_000]
            assert swept.partials == (0 if is_busy else 1)
            assert bool(list(layout.ingests.iterdir())) is is_busy
        assert (await mirror.ask(_AT, headers=_PART)).body == _LAYER[3_000_000:3_001_000]
        assert len(registry.of_kind("blobs", "GET")) == 2


async def test_room_is_made_while_a_part_is_read(registry: FakeRegistry, tmp_path: Path) -> None:
    """What a client reads slowly stays, unless nothing else makes room; so does what a fill will use."""
    registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=_ROUTES) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        layout = mirror.app.storage.layout

        async def swept(*, in_use: bool = False) -> int:
            """How many blobs the parts were dropped of."""
            found = await asyncio.to_thread(sweep_and_report, mirror.config, layout, keep=-60, in_use=in_use)
            return found.partials

        assert (await mirror.ask(_AT, headers=_PART)).status == 206
        digest = Digest.of(_LAYER)
        spans = LocalStore(layout).spans(digest, "docker.io", None)
        assert spans is not None
        # as another worker does
        spans.use(used=True)
        assert await swept() == 0
        spans.use(used=False)
        spans.close()
        ingest = LocalStore(layout).ingest(digest, "docker.io")
        assert ingest.try_lock()
        assert await swept() == 0
        assert await swept(in_use=True) == 1
        ingest.abort(keep=False)
        ingest.close()


async def test_two_registries_with_one_digest(registry: FakeRegistry, tmp_path: Path) -> None:
    """One gives wrong bytes in parts, and the other the right blob. No client of the other gets a wrong byte, and those
    who got some are reported once the wrong bytes are compared.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    with FakeRegistry() as lying:
        lying.add_image("library/app", "v1", [_LAYER])
        lying.fail("blobs", wrong_bytes, times=1000)
        upstreams = {"docker.io": registry.url, "ghcr.io": lying.url}
        routes = [{**_ROUTES[0], "match": "**"}]
        at = {"docker.io": _AT, "ghcr.io": f"/v2/ghcr.io/library/app/blobs/{Digest.of(_LAYER)}"}
        async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
            for name in ("", "ghcr.io/"):
                assert (await mirror.ask(f"/v2/{name}library/app/manifests/v1")).status == 200
            starts = [number * 300_000 for number in range(12)]
            parts = [
                (
                    name,
                    start,
                    asyncio.create_task(mirror.ask(at[name], headers={"Range": f"bytes={start}-{start + 99}"})),
                )
                for start in starts
                for name in at
            ]
            for name, start, asking in parts:
                got = await asking
                assert (got.status, got.headers["Cache-Status"].endswith("; detail=unverified")) == (206, True)
                assert (got.body == _LAYER[start : start + 100]) is (name == "docker.io")
            assert (await mirror.ask(at["docker.io"])).body == _LAYER
            await mirror.landed(Digest.of(_LAYER))
            # now it is verified, for the other as well
            assert (await mirror.ask(at["ghcr.io"], headers=_PART)).body == _LAYER[3_000_000:3_001_000]
            await asyncio.to_thread(sweep_and_report, mirror.config, mirror.app.storage.layout, keep=86400)
            [line] = mirror.events("unverified parts were wrong")
            assert (line["upstream"], line["answers"]) == ("ghcr.io", len(starts))
            await until(lambda: not list((tmp_path / "store" / "ingest").iterdir()))
