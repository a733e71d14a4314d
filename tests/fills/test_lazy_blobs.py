"""Small parts of one blob in one process: who brings which bytes, who waits for whom, and what becomes of the whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import (
    AskAgain,
    StoreError,
    StoreFull,
    UpstreamDenied,
    UpstreamError,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.fills.flight import InParts
from mirror.fills.lazy_blob import LazyBlob
from mirror.fills.lazy_content import FilePiece, LazyContent
from mirror.fills.lazy_pulls import LazyPulls
from mirror.fills.part_fetches import Asker
from mirror.fills.part_files import NotInParts
from mirror.fills.sources import BUCKET, BlobSources, FromUpstream
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.lazy_ranges import LazyParts, places_of
from mirror.policy.fills.span_blocks import BLOCK
from mirror.policy.rules import LazyRule
from mirror.ports import Body
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.recovery import sweep
from tests.support.cancelling import Baseline, cancelled_everywhere
from tests.support.hangar import CONTENT, DIGEST, HALF, SIZE, GatedUpstream, Hangar
from tests.support.live_mirror import until
from tests.support.ranged_upstream import RangedBody, put_spans
from tests.support.stepped_time import SteppedTime

_NEVER = LazyRule(share=1.0, pause=0.0)
_PART = Span(10 * BLOCK + 7, 12 * BLOCK + 9)


class _Site:
    """Lazy pulls over a store, and the flights of the same process. Time passes only if a test lets it."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.store = LocalStore(Layout(root))
        self.executor = executor
        self.hangar = Hangar(self.store, executor)
        self.upstream = GatedUpstream(is_open=True)
        self.time = SteppedTime()
        self.pulls = LazyPulls(self.store, self.hangar.room, executor, sleep=self.time.sleep, clock=self.time)
        #: Repositories that upstream refuses, once it is let answer.
        self.refused: dict[object, asyncio.Event] = {}
        #: Repositories whose next requests have to be made again later.
        self.later: dict[object, list[UpstreamError]] = {}
        self.failures: list[StoreError] = []
        #: Who wanted the whole.
        self.completed: list[object] = []

    def asker(self, repo: object = "library/app") -> Asker:
        async def whole() -> None:
            self.completed.append(repo)

        @asynccontextmanager
        async def pull(start: int, stop: int | None = None) -> AsyncIterator[Body]:
            if repo in self.refused:
                await self.refused[repo].wait()
            if self.later.get(repo):
                raise self.later[repo].pop(0)
            if repo in self.refused:
                raise UpstreamDenied("no", upstream="docker.io")
            async with self.upstream.pull(start, stop) as body:
                yield body

        return Asker(repo, lambda: BlobSources.of(pull), whole)

    async def content(self, *parts: Span, repo: object = "library/app", rule: LazyRule = _NEVER) -> LazyContent:
        """The answer to one request, once its first bytes are here."""
        asker = self.asker(repo)
        content = LazyContent(
            DIGEST,
            SIZE,
            "docker.io",
            LazyParts(parts, places_of(parts, SIZE, BLOCK)),
            asker,
            self.executor,
            lambda count: None,
            lambda error, digest: self.failures.append(error),
        )
        try:
            await content.open(self.pulls.open(DIGEST, "docker.io", SIZE, rule, asker), "user:alice")
        except BaseException:
            await content.aclose()
            raise
        return content

    async def get(self, *parts: Span, repo: object = "library/app", rule: LazyRule = _NEVER) -> list[bytes]:
        """The bytes of each part."""
        content = await self.content(*parts, repo=repo, rule=rule)
        try:
            return [await _read(content, part) for part in parts]
        finally:
            await content.aclose()


async def _read(content: LazyContent, part: Span) -> bytes:
    whole = b""
    async for piece in content.pieces(part):
        if isinstance(piece, FilePiece):
            whole += piece.reader.pread(piece.stop - piece.start, piece.start)
        else:
            whole += piece
    return whole


def _of(part: Span) -> bytes:
    return CONTENT[part.start : part.stop]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[_Site]:
    with ThreadPoolExecutor(16) as executor:
        site = _Site(tmp_path / "store", executor)
        yield site
        site.upstream.gate.set()
        await site.pulls.aclose()
        await site.hangar.flights.aclose()


@pytest.mark.parametrize("throttled", [120.0, None], ids=["throttled", "ignored"])
async def test_parts_are_asked_for_again_once_upstream_may_be_asked(
    site: _Site, monkeypatch: pytest.MonkeyPatch, throttled: float | None
) -> None:
    """An upstream that wanted fewer requests says for how long; one that ignores ranges is left for ten minutes."""
    body = RangedBody(CONTENT, Span(0, SIZE), lambda count: None)
    monkeypatch.setattr(body, "throttled", throttled, raising=False)

    @asynccontextmanager
    async def whole(start: int, stop: int | None = None) -> AsyncIterator[Body]:
        yield body

    with monkeypatch.context() as patches:
        patches.setattr(site.upstream, "pull", whole)
        with pytest.raises(NotInParts):
            await site.get(_PART)
    assert body.aborted
    site.time.now += 119.0
    with pytest.raises(NotInParts):
        await site.get(_PART)
    assert not site.upstream.starts
    site.time.now += 2.0
    if throttled is None:
        with pytest.raises(NotInParts):
            await site.get(_PART)
    else:
        assert await site.get(_PART) == [_of(_PART)]


async def test_whole_blocks_are_fetched_once(site: _Site) -> None:
    assert await site.get(_PART) == [_of(_PART)]
    assert await site.get(Span(11 * BLOCK, 11 * BLOCK + 1), _PART) == [
        _of(Span(11 * BLOCK, 11 * BLOCK + 1)),
        _of(_PART),
    ]
    assert (site.upstream.starts, site.upstream.stops) == ([10 * BLOCK], [13 * BLOCK])


async def test_who_is_sent_bytes_is_noted_before(site: _Site) -> None:
    content = await site.content(_PART)
    [note] = site.store.asked_in_parts()
    assert (note["repository"], note["by"], note["digest"]) == ("library/app", "user:alice", str(DIGEST))
    assert (note["parts"], note["bytes"]) == ([f"{_PART.start}-{_PART.stop - 1}"], _PART.length)
    await content.aclose()


async def test_a_blob_is_let_go_though_its_first_piece_ends_with_an_error(site: _Site) -> None:
    """Otherwise it would count as read for ever: never fetched whole, and never evicted."""
    content = await site.content(_PART)
    assert content._begun is not None

    async def breaks_off() -> AsyncGenerator[FilePiece | bytes]:
        try:
            yield b""
        finally:
            raise UpstreamUnavailable("broke off", upstream="docker.io")

    await content._begun[0].aclose()
    pieces = breaks_off()
    content._begun = pieces, await anext(pieces)
    [blob] = site.pulls._blobs.values()
    assert blob.users == 1
    with pytest.raises(UpstreamUnavailable):
        await content.aclose()
    assert not blob.users


class _Bucket:
    """A `BlobSource` that has every byte."""

    name = BUCKET
    member = ""
    gave = True

    def __init__(self, site: _Site, accused: list[str]) -> None:
        self.pull = site.upstream.pull
        self._accused = accused

    async def accuse(self, reason: str) -> bool:
        self._accused.append(reason)
        return False


async def test_a_source_is_accused_once_however_many_parts_it_gave(
    site: _Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To judge an object of a bucket, all of it is read; and what is remembered of parts has an end."""
    accused: list[str] = []
    plain = site.asker()
    upstream = FromUpstream(site.upstream.pull)

    def asker(repo: object) -> Asker:
        return Asker(repo, lambda: BlobSources(_Bucket(site, accused), upstream), plain.whole)

    monkeypatch.setattr(site, "asker", asker)
    for number in (2, 6, 10):
        part = Span(number * BLOCK, number * BLOCK + 9)
        assert await site.get(part) == [_of(part)]
    await site.pulls.found_wrong(DIGEST, "docker.io", "another digest")
    assert accused == ["another digest"]


async def test_bytes_that_a_fill_brings_soon_are_waited_for(site: _Site) -> None:
    filling = GatedUpstream()
    flight = await site.hangar.flights.join(DIGEST, filling.pull, upstream="docker.io", size=SIZE, in_parts=InParts.NO)
    await flight.wait_past(HALF - 2 * BLOCK)
    near = Span(HALF + BLOCK, HALF + BLOCK + 9)
    waiting = asyncio.create_task(site.get(near))
    await site.time.go_on(lambda: site.time.now > 1.0)
    assert not waiting.done()
    filling.gate.set()
    await flight.over.wait()
    await site.time.go_on(waiting.done)
    assert waiting.result() == [_of(near)]
    assert not site.upstream.starts
    flight.leave()


async def test_what_a_partial_has_is_not_fetched(site: _Site) -> None:
    broken = GatedUpstream(is_open=True)
    broken.troubles = [UpstreamUnavailable("gone", upstream="docker.io") for _ in range(9)]
    flight = await site.hangar.flights.join(DIGEST, broken.pull, upstream="docker.io", size=SIZE)
    await flight.over.wait()
    flight.leave()
    before, behind = Span(BLOCK, BLOCK + 9), Span(HALF - 9, HALF + 9)
    assert await site.get(before) == [_of(before)]
    assert site.upstream.starts == []
    assert await site.get(behind) == [_of(behind)]
    assert (site.upstream.starts, site.upstream.stops) == ([HALF], [HALF + BLOCK])


async def test_bytes_that_somebody_else_fetches_are_waited_for(site: _Site) -> None:
    spans = site.store.spans(DIGEST, "docker.io", SIZE)
    assert spans is not None
    claim = spans.claim(_PART)
    assert claim is not None
    waiting = asyncio.create_task(site.get(_PART))
    await site.time.go_on(lambda: site.time.now > 1.0)
    assert not waiting.done()
    # it ends without a byte: the waiting one goes on
    claim.release()
    spans.close()
    await site.time.go_on(waiting.done)
    assert waiting.result() == [_of(_PART)]


async def test_23_a_fetch_that_stands_still_is_not_waited_for(site: _Site) -> None:
    """The part comes past the store, for this client alone."""
    spans = site.store.spans(DIGEST, "docker.io", SIZE)
    assert spans is not None
    claim = spans.claim(_PART)
    assert claim is not None
    waiting = asyncio.create_task(site.content(_PART))
    await site.time.go_on(waiting.done)
    content = waiting.result()
    assert content.bypasses
    assert await _read(content, _PART) == _of(_PART)
    await content.aclose()
    assert (site.upstream.starts, site.upstream.stops) == ([_PART.start], [_PART.stop])
    assert "no progress" in str(site.failures[0])
    claim.release()
    spans.close()


async def test_34_a_store_without_room_is_passed_by(site: _Site) -> None:
    site.hangar.room.full = True
    content = await site.content(_PART)
    assert content.bypasses
    assert await _read(content, _PART) == _of(_PART)
    await content.aclose()
    assert isinstance(site.failures[0], StoreFull)


async def test_a_store_that_fails_is_passed_by(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(site.store, "spans", fail)
    content = await site.content(_PART)
    assert content.bypasses
    assert await _read(content, _PART) == _of(_PART)
    await content.aclose()


async def test_what_is_refused_to_one_is_not_refused_to_others(site: _Site) -> None:
    """The other one waits for the same fetch, and begins its own when that is refused."""
    site.refused["private/app"] = asyncio.Event()
    refused = asyncio.create_task(site.get(_PART, repo="private/app"))
    await until(lambda: any(blob.is_fetching for blob in site.pulls._blobs.values()))
    allowed = asyncio.create_task(site.get(_PART))
    await until(lambda: any(blob.users == 2 for blob in site.pulls._blobs.values()))
    site.refused["private/app"].set()
    with pytest.raises(UpstreamDenied):
        await refused
    assert await allowed == [_of(_PART)]


def _free(site: _Site) -> bool:
    """True if nobody has claimed anything of the blob, of which there are spans."""
    spans = site.store.spans(DIGEST, "docker.io", None)
    assert spans is not None
    try:
        return not spans.taken(Span(0, SIZE))
    finally:
        spans.close()


@pytest.mark.parametrize("kind", [AskAgain, UpstreamThrottled, UpstreamUnavailable])
async def test_nothing_is_claimed_during_a_pause(site: _Site, kind: type[UpstreamError]) -> None:
    """Another process brings the bytes meanwhile; the fetch finds nothing left to ask for."""
    await site.get(Span(0, 9))
    more: dict[str, Any] = {} if kind is UpstreamUnavailable else {"retry_after": 25.0}
    site.later["library/app"] = [kind("later", upstream="docker.io", **more)]
    waiting = asyncio.create_task(site.get(_PART))
    await until(lambda: any(fetch.pauses for blob in site.pulls._blobs.values() for fetch in blob._fetches.under_way))
    assert _free(site)
    assert not waiting.done()
    put_spans(site.store, CONTENT, [Span(10 * BLOCK, 13 * BLOCK)], registry="docker.io")
    await site.time.go_on(waiting.done)
    assert waiting.result() == [_of(_PART)]
    assert site.upstream.starts == [0]


async def test_a_pause_is_one_of_whose_rights_were_asked_by(site: _Site) -> None:
    """Others do not wait for it; whoever waits has the bytes when they do."""
    late = AskAgain("a pause is due", upstream="docker.io", retry_after=25.0)
    site.later["slow/app"] = [late, late]
    site.refused["slow/app"] = asyncio.Event()
    slow = asyncio.create_task(site.get(_PART, repo="slow/app"))
    await until(lambda: bool(site.pulls._blobs) and not _free(site))
    other = asyncio.create_task(site.get(_PART))
    # both wait for the one fetch: what the other one would fetch is claimed
    [blob] = site.pulls._blobs.values()
    await until(lambda: site.time.sleeping == 2 and len(blob._fetches.under_way) == 1)
    site.refused["slow/app"].set()
    assert await other == [_of(_PART)]
    assert await slow == [_of(_PART)]
    assert site.time.now == 0.0
    assert site.later["slow/app"] == [late]


async def test_after_a_break_whole_blocks_are_kept(site: _Site) -> None:
    site.upstream.gate_at = 11 * BLOCK + 5
    site.upstream.troubles = [UpstreamUnavailable("broke off", upstream="docker.io")]
    getting = asyncio.create_task(site.get(_PART))
    await site.time.go_on(getting.done)
    assert getting.result() == [_of(_PART)]
    assert site.upstream.starts == [10 * BLOCK, 11 * BLOCK]


async def test_room_is_made_while_a_client_reads(site: _Site) -> None:
    """What it has not read yet stays, however slow it is. Once it has left, it goes."""
    far = Span(2 * BLOCK, 2 * BLOCK + 9)
    content = await site.content(_PART, far)

    def swept() -> int:
        # everything is old enough
        return sweep(site.store.layout, keep=-60, now=time.time).partials

    for part in (_PART, far):
        assert await asyncio.to_thread(swept) == 0
        assert await _read(content, part) == _of(part)
    assert await asyncio.to_thread(swept) == 0
    await content.aclose()
    assert await asyncio.to_thread(swept) == 1
    assert await site.get(far) == [_of(far)]


@pytest.mark.parametrize("is_wrong", [False, True])
async def test_parts_that_are_dropped_while_a_client_reads(site: _Site, is_wrong: bool) -> None:
    """What it has not read yet comes past the store; unless the blob was found to be wrong."""
    far = Span(2 * BLOCK, 2 * BLOCK + 9)
    await site.get(_PART, far)
    content = await site.content(_PART, far)
    if is_wrong:
        site.store.avoid_parts("docker.io", DIGEST)
    await asyncio.to_thread(site.store.drop_growing, {DIGEST})
    assert await _read(content, _PART) == _of(_PART)
    if is_wrong:
        with pytest.raises(NotInParts):
            await _read(content, far)
    else:
        assert await _read(content, far) == _of(far)
        assert content.bypasses
    await content.aclose()


@pytest.mark.parametrize("is_avoided", [False, True])
async def test_parts_that_were_dropped_stay_open_for_who_looks_at_them(site: _Site, is_avoided: bool) -> None:
    """In a thread, while another client asks for parts: the descriptors of closed files become those of others."""
    asker = site.asker()
    async with site.pulls.open(DIGEST, "docker.io", SIZE, _NEVER, asker) as blob:
        looked_at = blob._files.opened()
        looked_at.drop()
        if is_avoided:
            site.store.avoid_parts("docker.io", DIGEST)
            with pytest.raises(NotInParts):
                async with site.pulls.open(DIGEST, "docker.io", SIZE, _NEVER, asker):
                    pass
        else:
            async with site.pulls.open(DIGEST, "docker.io", SIZE, _NEVER, asker):
                assert blob._files.opened() is not looked_at
        assert "closed" not in repr(looked_at)
    blob.close()
    assert "closed" in repr(looked_at)


async def test_a_manifest_with_another_size_drops_nothing(site: _Site) -> None:
    """Whoever may push such a manifest takes no parts away from others."""
    await site.get(_PART)
    asker = site.asker("evil/app")
    for _ in range(2):
        with pytest.raises(NotInParts):
            async with site.pulls.open(DIGEST, "docker.io", 2 * SIZE, _NEVER, asker):
                raise AssertionError
        assert await site.get(_PART) == [_of(_PART)]
        assert len(site.upstream.starts) == 1
        # and when nobody has it open
        await site.time.go_on(lambda: not site.pulls._blobs)


async def test_a_size_that_upstream_denies_leaves_nothing(site: _Site) -> None:
    site.upstream.says = SIZE + 1
    with pytest.raises(NotInParts):
        await site.get(_PART)
    assert site.pulls.avoids(DIGEST, "docker.io", SIZE)
    assert not site.pulls.avoids(DIGEST, "docker.io", SIZE + 1)
    assert site.store.spans(DIGEST, "docker.io", None) is None


# ------------------------------------------------------------------------------------------------------- the whole


async def test_the_whole_is_wanted_after_the_pause(site: _Site) -> None:
    rule = LazyRule(share=0.1, pause=12.0)
    await site.get(_PART, rule=rule)
    await until(lambda: site.time.sleeping == 1)
    await site.time.go_on(lambda: site.time.now >= 5.0)
    # one more in between: the pause begins anew
    await site.get(Span(0, 1), rule=rule)
    began = site.time.now
    await site.time.go_on(lambda: bool(site.completed))
    assert site.completed == ["library/app"]
    assert site.time.now >= began + 12.0
    await until(lambda: not site.pulls._blobs)


async def test_below_the_share_the_whole_is_not_wanted(site: _Site) -> None:
    await site.get(_PART, rule=LazyRule(share=0.9, pause=3.0))
    await site.time.go_on(lambda: not site.pulls._blobs)
    assert not site.completed
    assert await site.get(_PART) == [_of(_PART)]
    assert len(site.upstream.starts) == 1


async def test_files_that_are_being_synced_are_not_closed(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror stops only after that: the thread writes to descriptors that would be those of other files."""
    begun, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    def sync(blob: LazyBlob) -> None:
        spans = blob._files.opened()
        begun.set()
        go_on.wait(60)
        closed.append("closed" in repr(spans))

    monkeypatch.setattr(LazyBlob, "sync", sync)
    await site.get(_PART, rule=LazyRule(share=1.0, pause=0.0))
    await site.time.go_on(begun.is_set)
    stopping = asyncio.create_task(site.pulls.aclose())
    for _ in range(50):
        await asyncio.sleep(0)
    waits = not stopping.done()
    go_on.set()
    await stopping
    await until(lambda: bool(closed))
    assert (waits, closed) == (True, [False])


async def test_what_was_wrong_is_not_had_in_parts_for_a_while(site: _Site) -> None:
    other = Digest.of(b"another")
    await site.get(_PART)
    await site.pulls.found_wrong(DIGEST, "docker.io", "not what it should be")
    assert site.pulls.avoids(DIGEST, "docker.io", SIZE)
    with pytest.raises(NotInParts):
        await site.get(_PART)
    assert not site.pulls.avoids(other, "docker.io", SIZE)
    assert not site.pulls.avoids(DIGEST, "ghcr.io", SIZE)


# -------------------------------------------------------------------------------------------------------- cancelled


@pytest.mark.parametrize("name", ["PartFetches._run", "PartFetches._run.<locals>.work", "_request"])
async def test_63_cancelled_at_every_await(tmp_path: Path, name: str) -> None:
    """Nothing is left over, whatever is cancelled; who is not cancelled gets the bytes, or an error."""
    baseline = Baseline()
    rounds = 0

    async def scenario() -> None:
        nonlocal rounds
        rounds += 1
        with ThreadPoolExecutor(4) as executor:
            site = _Site(tmp_path / str(rounds), executor)
            site.time = SteppedTime()

            async def _request() -> None:
                try:
                    assert await site.get(_PART, Span(0, 9)) == [_of(_PART), _of(Span(0, 9))]
                except (UpstreamUnavailable, StoreError):
                    return

            tasks = [asyncio.create_task(_request()) for _ in range(2)]
            await asyncio.gather(*tasks, return_exceptions=True)
            errors = [task.exception() for task in tasks if not task.cancelled()]
            assert errors.count(None) == len(errors) >= 1
            await site.pulls.aclose()
            spans = site.store.spans(DIGEST, "docker.io", SIZE)
            assert spans is not None
            assert not spans.taken(Span(0, SIZE))
            spans.close()

    assert await cancelled_everywhere(name, scenario) >= 1
    await baseline.reached()
