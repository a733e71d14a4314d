"""Small parts of a layer that is not here, on a route with `ranges = "lazy"`: fetched alone and sent at once."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from tests.support.fake_registry import (
    FakeRegistry,
    cut,
    ignore_range,
    refuse_ranges,
    silence,
    stall,
    status,
    throttle,
    wrong_bytes,
)
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, until
from tests.support.multipart import parts_of
from tests.support.scripted import Request, Stall

_LAYER = noise(24_000_000)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
#: The table of contents of a lazy format lies at the end, behind files.
_FOOTER = (_SIZE - 51, _SIZE - 1)
_LAST_BLOCK = _SIZE - (_SIZE - 1) // BLOCK * BLOCK
#: Nothing is fetched that nobody asks for.
_NEVER = {"lazy_share": 1.0, "lazy_pause": "0s"}
_SOON = {"lazy_share": 0.0, "lazy_pause": "0s"}


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry) -> None:
    registry.add_image("library/app", "v1", [_LAYER])


def _lazy(
    root: Path, registry: FakeRegistry, route: dict[str, Any] | None = None, **settings: Any
) -> AbstractAsyncContextManager[LiveMirror]:
    routes = [{"match": "docker.io/**", "ranges": "lazy", **(_NEVER if route is None else route)}]
    return live_mirror(root, {"docker.io": registry.url}, route=routes, **settings)


async def _know(mirror: LiveMirror) -> None:
    """The manifest says the size of the layer."""
    assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200


async def _part(mirror: LiveMirror, first: int, last: int, at: str = _AT) -> Got:
    got = await mirror.ask(at, headers={"Range": f"bytes={first}-{last}"})
    if got.whole:
        assert got.status == 206, got.body[:200]
        assert got.headers["Content-Range"] == f"bytes {first}-{last}/{_SIZE}"
        assert got.body == _LAYER[first : last + 1]
    return got


def is_unverified(got: Got) -> bool:
    """True if an answer says that its bytes are not verified; it says so in three ways, or in none."""
    marked = got.headers["Cache-Status"].endswith("; detail=unverified")
    assert marked == (got.headers["Cache-Control"] == "no-store") == ("ETag" not in got.headers)
    return marked


def of_blob(registry: FakeRegistry, digest: Digest) -> list[Request]:
    """The requests for a blob that upstream has got."""
    return [each for each in registry.of_kind("blobs", "GET") if str(digest) in each.target]


def asked(registry: FakeRegistry, digest: Digest, size: int) -> list[tuple[int, int]]:
    """What upstream was asked for of a blob, as half-open ranges."""
    ranges = []
    for request in of_blob(registry, digest):
        first, _, last = (request.header("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        ranges.append((int(first), int(last) + 1 if last else size))
    return sorted(ranges)


def _of_layer(registry: FakeRegistry) -> list[Request]:
    return of_blob(registry, _DIGEST)


def _asked(registry: FakeRegistry) -> list[tuple[int, int]]:
    return asked(registry, _DIGEST, _SIZE)


def each_byte_once(ranges: list[tuple[int, int]]) -> bool:
    """True if none of these ranges, in their order, overlaps the next."""
    return all(stop <= start for (_, stop), (start, _) in pairwise(ranges))


# ----------------------------------------------------------------------------------------------------- what comes


async def test_a_small_part_costs_its_blocks_alone(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        got = await _part(mirror, *_FOOTER)
        assert is_unverified(got)
        assert got.headers["Docker-Content-Digest"] == str(_DIGEST)
        assert _asked(registry) == [(_SIZE - _LAST_BLOCK, _SIZE)]
        # again, and another part of the same block: nothing is asked
        assert is_unverified(await _part(mirror, *_FOOTER))
        assert is_unverified(await _part(mirror, _SIZE - _LAST_BLOCK, _SIZE - 100))
        assert len(_of_layer(registry)) == 1
        # one of them or both
        lines = await mirror.logged("request", path=_AT, unverified=True, cache="hit")
        assert {line["status"] for line in lines} == {206}


async def test_the_default_waits_for_the_whole(tmp_path: Path, registry: FakeRegistry) -> None:
    """On any other route nothing is different: no further request, and no file."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        await _know(mirror)
        got = await _part(mirror, *_FOOTER)
        assert not is_unverified(got)
        assert "ETag" in got.headers
        assert _asked(registry) == [(0, _SIZE)]
        await mirror.landed(_DIGEST)
        assert not [*(tmp_path / "store" / "ingest").iterdir()]


async def test_clients_that_ask_at_once_share_the_bytes(tmp_path: Path, registry: FakeRegistry) -> None:
    gate = Stall()
    registry.fail("blobs", stall(gate, 1000))
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        first = asyncio.create_task(_part(mirror, 10 * BLOCK, 20 * BLOCK - 1))
        await asyncio.to_thread(gate.reached.wait, 60)
        others = [asyncio.create_task(_part(mirror, start * BLOCK + 9, 22 * BLOCK)) for start in range(8, 20)]
        gate.release()
        assert all(map(is_unverified, await asyncio.gather(first, *others)))
        assert each_byte_once(_asked(registry))
        assert sum(stop - start for start, stop in _asked(registry)) == 15 * BLOCK


async def test_a_part_that_waits_for_its_turn_keeps_no_fill_waiting(tmp_path: Path, registry: FakeRegistry) -> None:
    """One download at a time, and the fill has the turn: whoever waits for one has claimed nothing meanwhile."""
    layer = noise(40_000_000)
    registry.add_image("library/large", "v1", [layer])
    digest, gate = Digest.of(layer), Stall()
    registry.fail("blobs", stall(gate, 1000))
    upstreams = {"docker.io": {"url": registry.url, "max_concurrent_downloads": 1}}
    routes = [{"match": "**", "ranges": "lazy", **_NEVER}]
    async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
        assert (await mirror.ask("/v2/library/large/manifests/v1")).status == 200
        path = f"/v2/library/large/blobs/{digest}"
        whole = asyncio.create_task(mirror.ask(path))
        await asyncio.to_thread(gate.reached.wait, 60)
        starts = range(20_000_000, 40_000_000, 5_000_000)
        ranges = [f"bytes={start}-{start + 9}" for start in starts]
        parts = [asyncio.create_task(mirror.ask(path, headers={"Range": each})) for each in ranges]
        assert mirror.app.shared.lazy is not None
        blobs = mirror.app.shared.lazy._blobs
        await until(lambda: [len(blob._fetches.under_way) for blob in blobs.values()] == [len(starts)])
        gate.release()
        assert (await whole).body == layer
        for start, got in zip(starts, await asyncio.gather(*parts), strict=True):
            assert got.body == layer[start : start + 10]
        assert not mirror.events("claim not waited for")
        assert each_byte_once(asked(registry, digest, len(layer)))


async def test_a_fill_in_pieces_keeps_its_turn(tmp_path: Path, registry: FakeRegistry) -> None:
    """A blob that is asked for meanwhile comes after the last piece, however small the first one is."""
    other, gate = registry.add_image("library/other", "v1", [noise(9_000)]), Stall()
    layer = Digest.of(noise(9_000))
    registry.fail("blobs", stall(gate, 1000))
    upstreams = {"docker.io": {"url": registry.url, "max_concurrent_downloads": 1}}
    routes = [{"match": "**", "ranges": "lazy", **_NEVER}]
    async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
        await _know(mirror)
        assert (await mirror.ask(f"/v2/library/other/manifests/{other}")).status == 200
        whole = asyncio.create_task(mirror.ask(_AT))
        await asyncio.to_thread(gate.reached.wait, 60)
        small = asyncio.create_task(mirror.ask(f"/v2/library/other/blobs/{layer}"))
        await until(lambda: len(mirror.app.shared.flights.active()) == 2)
        gate.release()
        assert (await whole).body == _LAYER
        assert (await small).body == noise(9_000)
        assert len(_asked(registry)) > 1
        assert each_byte_once(_asked(registry))
        last = registry.of_kind("blobs", "GET")[-1]
        assert str(layer) in last.target


async def test_several_parts_in_one_answer(tmp_path: Path, registry: FakeRegistry) -> None:
    ranges = [(_SIZE - 100, _SIZE - 1), *((at, at + 99) for at in range(5_000_000, 5_000_000 + 1_000 * 1_023, 1_000))]
    header = "bytes=" + ",".join(f"{first}-{last}" for first, last in ranges)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        got = await mirror.ask(_AT, headers={"Range": header})
        assert got.status == 206
        assert is_unverified(got)
        parts = parts_of(got)
        assert [(part.first, part.last) for part in parts] == ranges
        assert all(part.content == _LAYER[part.first : part.last + 1] for part in parts)
        # near each other: one request for all, and one for the end
        assert len(_asked(registry)) == 2
        assert each_byte_once(_asked(registry))


async def test_a_get_of_the_whole_takes_what_is_here(tmp_path: Path, registry: FakeRegistry) -> None:
    """And holds its end back until the digest is verified."""
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        await _part(mirror, *_FOOTER)
        await _part(mirror, 9_000_000, 9_500_000)
        gate = Stall()
        registry.fail("blobs", stall(gate, 100_000))
        whole = asyncio.create_task(mirror.ask(_AT))
        await asyncio.to_thread(gate.reached.wait, 60)
        assert is_unverified(await _part(mirror, 15_000_000, 15_000_100))
        gate.release()
        got = await whole
        assert (got.status, got.body == _LAYER) == (200, True)
        assert not is_unverified(got)
        await mirror.landed(_DIGEST)
        assert each_byte_once(_asked(registry))
        assert sum(stop - start for start, stop in _asked(registry)) == _SIZE
        assert not is_unverified(await _part(mirror, *_FOOTER))


@pytest.mark.parametrize(
    "header",
    [
        "bytes=12000000-",  # no end
        "bytes=0-20000000",  # too large
        f"bytes={_SIZE}-{_SIZE + 9}",  # outside
        "bytes=9-3",
        "lines=1-2",
    ],
)
async def test_all_other_ranges_are_answered_as_ever(tmp_path: Path, registry: FakeRegistry, header: str) -> None:
    async with (
        _lazy(tmp_path / "lazy", registry) as lazy,
        live_mirror(tmp_path / "plain", {"docker.io": registry.url}) as plain,
    ):
        answers = []
        for mirror in (lazy, plain):
            await _know(mirror)
            answers.append(await mirror.ask(_AT, headers={"Range": header}))
        one, other = answers
        assert (one.status, one.body == other.body) == (other.status, True) if one.status < 400 else one.status == 416
        for name in ("Content-Range", "Content-Length", "Cache-Control", "ETag"):
            assert one.headers.get(name) == other.headers.get(name), name


async def test_conditions(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        part = {"Range": "bytes=9000000-9000009"}
        assert (await mirror.ask(_AT, method="HEAD", headers=part)).headers["Content-Length"] == str(_SIZE)
        assert (await mirror.ask(_AT, headers={**part, "If-None-Match": f'"{_DIGEST}"'})).status == 304
        await mirror.landed(_DIGEST)


async def test_if_range_of_other_content_gets_the_whole(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        got = await mirror.ask(_AT, headers={"Range": "bytes=9-19", "If-Range": '"other"'})
        assert (got.status, got.body == _LAYER) == (200, True)


# ------------------------------------------------------------------------------------------------------------ rights


async def test_a_repository_without_the_manifest_gets_no_part(tmp_path: Path, registry: FakeRegistry) -> None:
    """It asks upstream in its own name, and what is sent is verified."""
    registry.add_blob("library/other", _LAYER)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        await _part(mirror, *_FOOTER)
        got = await _part(mirror, *_FOOTER, at=f"/v2/library/other/blobs/{_DIGEST}")
        assert not is_unverified(got)
        refused = await mirror.ask(f"/v2/library/none/blobs/{_DIGEST}", headers={"Range": "bytes=0-9"})
        assert refused.status == 404


async def test_another_registry_gets_no_unverified_bytes(tmp_path: Path, registry: FakeRegistry) -> None:
    with FakeRegistry() as second:
        second.add_image("library/app", "v1", [_LAYER])
        second.fail("blobs", status(503), times=1000)
        registry.fail("blobs", wrong_bytes)
        routes = [{"match": "**", "ranges": "lazy", **_NEVER}]
        upstreams = {"docker.io": registry.url, "ghcr.io": second.url}
        async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
            await _know(mirror)
            wrong = await mirror.ask(_AT, headers={"Range": "bytes=9000000-9000009"})
            assert (wrong.status, wrong.body == _LAYER[9_000_000:9_000_010]) == (206, False)
            assert (await mirror.ask("/v2/ghcr.io/library/app/manifests/v1")).status == 200
            at = f"/v2/ghcr.io/library/app/blobs/{_DIGEST}"
            got = await mirror.ask(at, headers={"Range": "bytes=9000000-9000009"})
            assert got.status >= 500 or not got.whole


async def test_each_caller_is_confirmed_by_upstream(tmp_path: Path) -> None:
    """With `access = "verify"`: bytes that came for one are sent to another only with rights of the other's own."""
    users = {"alice": "alices-word", "bob": "bobs-word"}
    with FakeRegistry(tokens=True, users=users) as private:
        private.rights = {"alice": {"acme/secret"}, "bob": set()}
        private.add_image("acme/secret", "v1", [_LAYER])
        upstreams = {"reg.example": {"url": private.url, "access": "verify"}}
        routes = [{"match": "**", "ranges": "lazy", **_NEVER}]
        async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
            statuses = []
            for user in ("alice", "bob", "alice"):
                word = base64.b64encode(f"{user}:{users[user]}".encode()).decode()
                headers = {"Authorization": f"Basic {word}", "Range": "bytes=9000000-9000009"}
                await mirror.ask("/v2/acme/secret/manifests/v1", headers={"Authorization": f"Basic {word}"})
                got = await mirror.ask(f"/v2/acme/secret/blobs/{_DIGEST}", headers=headers)
                statuses.append(got.status)
            assert statuses == [206, 404, 206]
            assert len(of_blob(private, _DIGEST)) == 1


async def test_rules_about_content_hold_for_parts(tmp_path: Path, registry: FakeRegistry) -> None:
    denied = noise(24_000_002)
    registry.add_image("library/bad", "v1", [denied])
    content = {"deny": [f"docker.io/library/bad@{Digest.of(denied)}"]}
    async with _lazy(tmp_path / "store", registry, content=content) as mirror:
        await _know(mirror)
        assert is_unverified(await _part(mirror, *_FOOTER))
        await mirror.ask("/v2/library/bad/manifests/v1")
        at = f"/v2/library/bad/blobs/{Digest.of(denied)}"
        assert (await mirror.ask(at, headers={"Range": "bytes=9-19"})).status == 403
        assert not of_blob(registry, Digest.of(denied))


async def test_parts_under_a_virtual_name(tmp_path: Path, registry: FakeRegistry) -> None:
    virtual = [{"name": "all", "members": ["docker.io"]}]
    async with _lazy(tmp_path / "store", registry, virtual=virtual) as mirror:
        assert (await mirror.ask("/v2/all/library/app/manifests/v1")).status == 200
        assert is_unverified(await _part(mirror, *_FOOTER, at=f"/v2/all/library/app/blobs/{_DIGEST}"))
        assert len(_of_layer(registry)) == 1


# ------------------------------------------------------------------------------------------------------- completion


async def test_the_whole_follows(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry, _SOON) as mirror:
        await _know(mirror)
        await _part(mirror, *_FOOTER)
        await mirror.landed(_DIGEST)
        assert mirror.blob_file(_DIGEST).read_bytes() == _LAYER
        assert each_byte_once(_asked(registry))
        assert sum(stop - start for start, stop in _asked(registry)) == _SIZE
        assert not is_unverified(await _part(mirror, *_FOOTER))
        await until(lambda: not [*(tmp_path / "store" / "ingest").iterdir()])


async def test_below_the_share_nothing_follows(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry, {"lazy_share": 0.2, "lazy_pause": "0s"}) as mirror:
        await _know(mirror)
        await _part(mirror, 0, 3_000_000)
        lazy = mirror.app.shared.lazy
        assert lazy is not None
        await until(lambda: not lazy._blobs)
        assert not mirror.app.shared.flights.active()
        await _part(mirror, 10_000_000, 13_000_000)
        await mirror.landed(_DIGEST)


async def test_a_restart_keeps_what_is_here(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        await _part(mirror, *_FOOTER)
    async with _lazy(tmp_path / "store", registry) as mirror:
        assert is_unverified(await _part(mirror, *_FOOTER))
        assert len(_of_layer(registry)) == 1


# ------------------------------------------------------------------------------------------------------------ faults


async def test_wrong_bytes_are_reported_and_dropped(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.fail("blobs", wrong_bytes)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        wrong = await mirror.ask(_AT, headers={"Range": "bytes=9000000-9000009"})
        assert is_unverified(wrong)
        assert wrong.body != _LAYER[9_000_000:9_000_010]
        assert not (await mirror.ask(_AT)).whole
        await mirror.idle()
        [line] = mirror.events("unverified parts were wrong")
        assert (line["digest"], line["upstream"], line["answers"]) == (str(_DIGEST), "docker.io", 1)
        [served] = line["served"]
        assert (served["repository"], served["parts"], served["bytes"]) == (
            "docker.io/library/app",
            ["9000000-9000009"],
            10,
        )
        assert served["by"] == "127.0.0.1"
        assert (await mirror.ask(_AT)).body == _LAYER


async def test_22_upstream_that_ignores_ranges(tmp_path: Path, registry: FakeRegistry) -> None:
    """The whole is fetched in the ordinary way, and this upstream is not asked for parts again."""
    registry.fail("blobs", ignore_range, times=1000)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        assert not is_unverified(await _part(mirror, *_FOOTER))
        assert mirror.events("upstream ignores ranges")
        other = noise(24_000_001)
        registry.add_image("library/app", "v2", [other])
        assert (await mirror.ask("/v2/library/app/manifests/v2")).status == 200
        registry.forget()
        digest = Digest.of(other)
        got = await mirror.ask(f"/v2/library/app/blobs/{digest}", headers={"Range": "bytes=20000000-20000009"})
        assert got.body == other[20_000_000:20_000_010]
        assert not is_unverified(got)
        # one answer, which has all of it
        assert [request.start for request in registry.of_kind("blobs", "GET")] == [0]


@pytest.mark.parametrize("code", [403, 429])
async def test_22_upstream_that_refuses_ranges(tmp_path: Path, registry: FakeRegistry, code: int) -> None:
    """Like one that ignores them: parts wait for the whole, which is asked for at once."""
    registry.fail("blobs", refuse_ranges(code, {"Retry-After": "120"}), times=100)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        assert not is_unverified(await _part(mirror, 9_000_000, 9_000_100))
        await mirror.landed(_DIGEST)
        metrics = (await mirror.ask("/metrics")).body.decode()
        assert re.search(r'mirror_upstream_whole_answers_total\{upstream="docker.io"\} [1-9]', metrics)


async def test_1_8_a_part_that_breaks_off_is_resumed(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.fail("blobs", cut(100_000))
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        assert is_unverified(await _part(mirror, 9_000_000, 9_400_000))
        assert mirror.events("fetch of parts interrupted")
        first, second = (each.start for each in _of_layer(registry))
        assert second == first + 100_000 // BLOCK * BLOCK


@pytest.mark.parametrize("fault", [status(500), throttle(7), status(401), status(403)])
async def test_refusals_are_clean_errors(tmp_path: Path, registry: FakeRegistry, fault: Any) -> None:
    registry.fail("blobs", fault, times=1000)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        got = await mirror.ask(_AT, headers={"Range": "bytes=9000000-9000009"})
        assert got.status >= 400
        assert got.code
        registry.heal()
        mirror.clock.forward(100)
        assert is_unverified(await _part(mirror, 9_000_000, 9_000_009))


async def test_13_404_is_the_answer(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.fail("blobs", status(404), times=1000)
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        got = await mirror.ask(_AT, headers={"Range": "bytes=9000000-9000009"})
        assert (got.status, got.code) == (404, "BLOB_UNKNOWN")


async def test_23_24_clients_that_leave_end_no_fetch(tmp_path: Path, registry: FakeRegistry) -> None:
    gate = Stall()
    registry.fail("blobs", silence(gate))
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        leaving = asyncio.create_task(_part(mirror, 9_000_000, 9_400_000))
        await asyncio.to_thread(gate.reached.wait, 60)
        staying = asyncio.create_task(_part(mirror, 9_000_000, 9_400_000))
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        gate.release()
        assert is_unverified(await staying)
        assert len(_of_layer(registry)) == 1


async def test_a_wrong_size_in_the_manifest(tmp_path: Path, registry: FakeRegistry) -> None:
    """Upstream says another: the ordinary way decides, by the digest."""
    layer = noise(3_000_000)
    digest = registry.add_blob("library/odd", layer)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(digest), "size": 3_000_009},
        "layers": [],
    }
    registry.add_manifest("library/odd", json.dumps(manifest).encode(), manifest["mediaType"], "v1")
    async with _lazy(tmp_path / "store", registry) as mirror:
        assert (await mirror.ask("/v2/library/odd/manifests/v1")).status == 200
        got = await mirror.ask(f"/v2/library/odd/blobs/{digest}", headers={"Range": "bytes=2000000-2000009"})
        assert got.body == layer[2_000_000:2_000_010]
        assert not is_unverified(got)


async def test_7_a_part_that_stalls_is_resumed(tmp_path: Path, registry: FakeRegistry) -> None:
    gate = Stall()
    registry.fail("blobs", stall(gate, 100_000))
    upstreams = {"docker.io": {"url": registry.url, "read_timeout": "1s"}}
    routes = [{"match": "**", "ranges": "lazy", **_NEVER}]
    async with live_mirror(tmp_path / "store", upstreams, route=routes) as mirror:
        await _know(mirror)
        assert is_unverified(await _part(mirror, 9_000_000, 9_400_000))
        # on a busy machine what comes after it may stall as well
        first, *later = (each.start for each in _of_layer(registry))
        assert first + 100_000 // BLOCK * BLOCK in later
        gate.release()


async def test_25_a_client_that_does_not_read_stops_nobody(tmp_path: Path, registry: FakeRegistry) -> None:
    async with _lazy(tmp_path / "store", registry, _SOON) as mirror:
        await _know(mirror)
        _, writer = await mirror.connect()
        head = f"GET {_AT} HTTP/1.1\r\nHost: mirror\r\nRange: bytes=2000000-7000000\r\n\r\n"
        writer.write(head.encode())
        await until(lambda: bool(_of_layer(registry)))
        assert is_unverified(await _part(mirror, 2_000_000, 7_000_000))
        writer.close()
        await mirror.landed(_DIGEST)
        assert mirror.blob_file(_DIGEST).read_bytes() == _LAYER


async def test_60_a_part_is_sent_to_its_end_whatever_happens_to_the_blob(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    """The whole is published, and evicted, while a part is read."""
    async with _lazy(tmp_path / "store", registry) as mirror:
        await _know(mirror)
        async with mirror.open(_AT, headers={"Range": "bytes=2000000-7000000"}) as response:
            body = await response.content.readexactly(1000)
            assert (await mirror.ask(_AT)).whole
            await mirror.landed(_DIGEST)
            mirror.app.storage.store.delete(_DIGEST)
            body += await response.content.read()
        assert body == _LAYER[2_000_000:7_000_001]
