"""Tags: how long an answer is believed, what it costs to ask again, and what is said while upstream is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from pathlib import Path
from typing import TypeVar

import pytest

from mirror.aio.singleflight import SingleFlight
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.repository import tag_answers
from tests.support.fake_registry import FakeRegistry, silence, stall, status, throttle
from tests.support.live_mirror import Clock, Got, LiveMirror, live_mirror, reached, until
from tests.support.scripted import Stall

T = TypeVar("T")

_TAG = "/v2/library/app/manifests/v1"
_REPO = Repo("docker.io", "library/app")
#: Seconds, as configured below.
_TTL, _STALE = 100, 1000


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """Believes a tag for 100 s, and for 1,000 s while upstream is down; of `library/fixed` otherwise."""
    route = [
        {"match": "docker.io/library/fixed", "tag_ttl": 10_000},
        {"match": "docker.io/**", "tag_ttl": _TTL, "stale_while_down": _STALE},
    ]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as running:
        yield running


@pytest.fixture
def image(registry: FakeRegistry) -> Digest:
    """What v1 points to at first."""
    return registry.add_image("library/app", "v1", [b"first"])


def _methods(registry: FakeRegistry) -> list[str]:
    return [request.method for request in registry.of_kind("manifests")]


def _digest(answer: Got) -> str:
    assert answer.status == 200, answer
    return answer.headers["Docker-Content-Digest"]


async def test_head_first(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """A cold tag costs one HEAD, and one GET by digest; its HEAD alone costs no GET, which Docker Hub counts."""
    await mirror.ask(_TAG, method="HEAD")
    assert _methods(registry) == ["HEAD"]
    await mirror.ask(_TAG)
    await mirror.ask(f"/v2/library/app/manifests/{image}")
    assert [(request.method, request.path.rpartition("/")[2]) for request in registry.of_kind("manifests")] == [
        ("HEAD", "v1"),
        ("GET", str(image)),
    ]


async def test_a_fresh_tag_is_answered_without_upstream(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest
) -> None:
    """A fresh tag is answered without upstream, also when it has moved there meanwhile."""
    await mirror.ask(_TAG)
    registry.forget()
    registry.add_image("library/app", "v1", [b"second"])
    mirror.clock.forward(_TTL - 1)
    for method in ("GET", "HEAD"):
        assert _digest(await mirror.ask(_TAG, method=method)) == str(image)
    assert not registry.requests


async def test_after_its_time_one_head(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """A tag that has not moved costs one HEAD and no GET, and is then believed anew."""
    await mirror.ask(_TAG)
    for _ in range(3):
        registry.forget()
        mirror.clock.forward(_TTL + 1)
        for _ in range(3):
            assert _digest(await mirror.ask(_TAG)) == str(image)
        assert _methods(registry) == ["HEAD"]


async def test_moved(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """A tag that has moved is followed at once; what it was stays to be had by digest."""
    await mirror.ask(_TAG)
    registry.forget()
    second = registry.add_image("library/app", "v1", [b"second"])
    mirror.clock.forward(_TTL + 1)
    assert _digest(await mirror.ask(_TAG, method="HEAD")) == str(second)
    assert _methods(registry) == ["HEAD"]
    assert _digest(await mirror.ask(_TAG)) == str(second)
    assert _methods(registry) == ["HEAD", "GET"]
    assert _digest(await mirror.ask(f"/v2/library/app/manifests/{image}")) == str(image)
    assert _methods(registry) == ["HEAD", "GET"]
    assert mirror.events("tag moved")[0]["now"] == str(second)


async def test_moved_back(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """When it moves back, the bytes are here already."""
    await mirror.ask(_TAG)
    registry.add_image("library/app", "v1", [b"second"])
    mirror.clock.forward(_TTL + 1)
    await mirror.ask(_TAG)
    registry.add_image("library/app", "v1", [b"first"])
    registry.forget()
    mirror.clock.forward(_TTL + 1)
    assert _digest(await mirror.ask(_TAG)) == str(image)
    assert _methods(registry) == ["HEAD"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_64_stampede(registry: FakeRegistry, mirror: LiveMirror, image: Digest, known: bool, method: str) -> None:
    """Row 64: however many ask at once for a tag that is unknown or out of time, upstream gets one HEAD."""
    if known:
        await mirror.ask(_TAG)
        mirror.clock.forward(_TTL + 1)
        registry.forget()
    gate = Stall()
    registry.fail("manifests", silence(gate))
    asking = [asyncio.create_task(mirror.ask(_TAG, method=method)) for _ in range(300)]
    await reached(gate)
    gate.release()
    assert {_digest(answer) for answer in await asyncio.gather(*asking)} == {str(image)}
    assert _methods(registry) == ["HEAD"] + (["GET"] if method == "GET" and not known else [])


async def test_64_stampede_by_digest(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """Row 64: the same for HEAD of a digest, which containerd begins with."""
    gate, waiting, once = Stall(), [], SingleFlight()

    class Counted(SingleFlight):
        async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
            # before upstream is asked, the disk is: of that nothing is counted
            if isinstance(key, tuple) and key[0] == "resolve":
                waiting.append(key)
            return await once.run(key, work)

    mirror.app.shared.caches.once = Counted()
    registry.fail("manifests", silence(gate))
    target = f"/v2/library/app/manifests/{image}"
    asking = [asyncio.create_task(mirror.ask(target, method="HEAD")) for _ in range(100)]
    await reached(gate)
    await until(lambda: len(waiting) == 100)
    gate.release()
    assert {_digest(answer) for answer in await asyncio.gather(*asking)} == {str(image)}
    assert _methods(registry) == ["HEAD"]


async def test_the_first_client_leaves(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """The first of many leaves while upstream is asked: the others get their answer."""
    gate = Stall()
    registry.fail("manifests", silence(gate))
    first = asyncio.create_task(mirror.ask(_TAG))
    await reached(gate)
    others = [asyncio.create_task(mirror.ask(_TAG)) for _ in range(3)]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.release()
    assert {_digest(answer) for answer in await asyncio.gather(*others)} == {str(image)}


async def test_bound_at_head(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """A tag is bound by HEAD as by GET: containerd never asks for it otherwise. HEAD, GET by digest, upstream gone:
    the tag still works.
    """
    await mirror.ask(_TAG, method="HEAD")
    await mirror.ask(f"/v2/library/app/manifests/{image}")
    registry.stop()
    mirror.clock.forward(_TTL + 1)
    for method in ("HEAD", "GET"):
        answer = await mirror.ask(_TAG, method=method)
        assert _digest(answer) == str(image)
        assert answer.headers["Warning"].startswith("299 ")


def _stop(registry: FakeRegistry) -> None:
    registry.stop()


def _refuse(registry: FakeRegistry) -> None:
    registry.fail("manifests", status(503), times=1000)


def _throttle(registry: FakeRegistry) -> None:
    registry.fail("manifests", throttle(5), times=1000)


@pytest.mark.parametrize("trouble", [_stop, _refuse, _throttle], ids=["down", "503", "429"])
async def test_stale_while_down(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, trouble: Callable[[FakeRegistry], None]
) -> None:
    """Rows 10, 12, 21: while upstream gives no answer the old one is given, with a `Warning`; but not for ever."""
    await mirror.ask(_TAG)
    trouble(registry)
    mirror.clock.forward(_TTL + 1)
    for _ in range(3):
        for method in ("GET", "HEAD"):
            answer = await mirror.ask(_TAG, method=method)
            assert _digest(answer) == str(image)
            assert answer.headers["Warning"].startswith("299 - ")
            assert answer.cache == "hit; detail=upstream-unavailable"
        mirror.clock.forward(_STALE / 5)
    mirror.clock.forward(_STALE)
    answer = await mirror.ask(_TAG)
    assert answer.status == (429 if trouble is _throttle else 503)
    assert answer.headers["Retry-After"]
    # what never changes is served for ever
    answer = await mirror.ask(f"/v2/library/app/manifests/{image}")
    assert _digest(answer) == str(image)
    assert "Warning" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_upstream_that_hangs(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """While upstream takes its time the old answer is given, marked stale; the new one is for those who come later."""
    await mirror.ask(_TAG)
    second = registry.add_image("library/app", "v1", [b"second"])
    mirror.clock.forward(_TTL + 1)
    monkeypatch.setattr(tag_answers, "_SLOW_AFTER", 0.0)
    gate = Stall()
    registry.fail("manifests", silence(gate))
    answer = await mirror.ask(_TAG, method=method)
    assert _digest(answer) == str(image)
    assert answer.headers["Warning"].startswith("299 - ")
    assert answer.cache == "hit; detail=upstream-unavailable"
    await reached(gate)
    gate.release()
    # it takes the place of the stale one as soon as it is there
    await until(lambda: (hot := mirror.app.shared.caches.tags.get((_REPO, "v1"))) and hot.record.digest == second)
    answer = await mirror.ask(_TAG)
    assert _digest(answer) == str(second)
    assert "Warning" not in answer.headers


async def test_cold_tag_of_an_upstream_that_hangs(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no old answer, or it is too old, upstream's is waited for."""
    monkeypatch.setattr(tag_answers, "_SLOW_AFTER", 0.0)
    for _ in range(2):
        gate = Stall()
        registry.fail("manifests", silence(gate))
        asking = asyncio.create_task(mirror.ask(_TAG))
        await reached(gate)
        gate.release()
        answer = await asking
        assert _digest(answer) == str(image)
        assert "Warning" not in answer.headers
        mirror.clock.forward(_STALE + 1)


async def test_an_upstream_that_is_down_is_not_asked_again(
    registry: FakeRegistry, mirror: LiveMirror, image: Digest
) -> None:
    """A stale answer is given again for some seconds without a new try: a pull is not made of time-outs."""
    await mirror.ask(_TAG)
    mirror.clock.forward(_TTL + 1)
    registry.fail("manifests", status(500), times=1000)
    await mirror.ask(_TAG)
    registry.forget()
    for _ in range(10):
        await mirror.ask(_TAG)
    assert not registry.requests


async def test_back_again(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """Once upstream answers again, so does the mirror, without a warning."""
    await mirror.ask(_TAG)
    mirror.clock.forward(_TTL + 1)
    registry.fail("manifests", status(500), times=3)
    assert "Warning" in (await mirror.ask(_TAG)).headers
    second = registry.add_image("library/app", "v1", [b"second"])
    mirror.clock.forward(60)
    answer = await mirror.ask(_TAG)
    assert _digest(answer) == str(second)
    assert "Warning" not in answer.headers


async def test_cold_tag_while_down(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """What was never seen cannot be served: an error that says to come back."""
    registry.stop()
    answer = await mirror.ask(_TAG)
    assert (answer.status, answer.code) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"]


async def test_deleted_upstream(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """A tag that upstream has deleted is gone here too, for as long as upstream says so: 404 is an answer."""
    await mirror.ask(_TAG)
    registry.drop_tag("library/app", "v1")
    mirror.clock.forward(_TTL + 1)
    for _ in range(2):
        for method in ("GET", "HEAD"):
            assert (await mirror.ask(_TAG, method=method)).status == 404
    registry.stop()
    mirror.clock.forward(60)
    assert (await mirror.ask(_TAG)).status == 503
    assert (await mirror.ask(f"/v2/library/app/manifests/{image}")).status == 200


async def test_dropped_manifest_behind_a_fresh_tag(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """The tag was bound by HEAD, then moved, and the old manifest is gone upstream: the tag is asked for again."""
    await mirror.ask(_TAG, method="HEAD")
    registry.fail("manifests", status(404))
    second = registry.add_image("library/app", "v1", [b"second"])
    assert _digest(await mirror.ask(_TAG)) == str(second)


async def test_routes_have_their_own_times(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """The first route whose pattern fits tells how long a tag is believed."""
    registry.add_image("library/fixed", "v1", [b"layer"])
    await mirror.ask("/v2/fixed/manifests/v1")
    await mirror.ask(_TAG)
    registry.forget()
    mirror.clock.forward(_TTL + 1)
    await mirror.ask("/v2/fixed/manifests/v1")
    assert not registry.requests
    await mirror.ask(_TAG)
    assert _methods(registry) == ["HEAD"]


async def test_43_clock_that_jumps(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """Row 43: a record from the future is not believed for ever, and a year's jump loses nothing but freshness."""
    await mirror.ask(_TAG)
    registry.forget()
    for jump in (-365 * 86400, 365 * 86400):
        mirror.clock.forward(jump)
        assert _digest(await mirror.ask(_TAG)) == str(image)
    assert "GET" not in _methods(registry)


async def test_tags_outlive_the_process(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """What a tag pointed to is on the disk: the next process asks nobody while it is fresh, and has it while down."""
    clock = Clock()
    for _ in range(2):
        async with live_mirror(tmp_path / "next", {"docker.io": registry.url}, clock=clock) as mirror:
            assert _digest(await mirror.ask(_TAG)) == str(image)
    assert _methods(registry) == ["HEAD", "GET"]
    registry.stop()
    clock.forward(301)
    async with live_mirror(tmp_path / "next", {"docker.io": registry.url}, clock=clock) as mirror:
        answer = await mirror.ask(_TAG)
        assert _digest(answer) == str(image)
        assert "Warning" in answer.headers


async def test_two_processes_ask_once(registry: FakeRegistry, tmp_path: Path, image: Digest) -> None:
    """Two mirrors on one store share the answer of one HEAD, also when they ask at the same time."""
    clock = Clock()
    upstreams = {"docker.io": registry.url}
    async with (
        live_mirror(tmp_path / "shared", upstreams, clock=clock) as one,
        live_mirror(tmp_path / "shared", upstreams, clock=clock) as two,
    ):
        gate = Stall()
        registry.fail("manifests", silence(gate))
        asking = [asyncio.create_task(mirror.ask(_TAG)) for mirror in (one, two, one, two)]
        await reached(gate)
        gate.release()
        assert {_digest(answer) for answer in await asyncio.gather(*asking)} == {str(image)}
    assert _methods(registry).count("HEAD") == 1


async def test_a_stalled_upstream_delays_no_other(registry: FakeRegistry, mirror: LiveMirror, image: Digest) -> None:
    """While one tag's answer is waited for, everything else goes on."""
    await mirror.ask(_TAG)
    registry.add_image("library/slow", "v1", [b"layer"])
    gate = Stall()
    registry.fail("manifests", stall(gate))
    slow = asyncio.create_task(mirror.ask("/v2/slow/manifests/v1"))
    await reached(gate)
    assert _digest(await mirror.ask(_TAG)) == str(image)
    gate.release()
    assert (await slow).status == 200
