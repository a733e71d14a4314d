"""A cached blob comes from another replica first, and at the first real trouble from the next source, from the same
byte on (row 125).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from mirror.errors import (
    DigestMismatch,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamUnavailable,
)
from mirror.fills.flight import Flight
from mirror.fills.peer_source import PeerReads
from mirror.fills.sources import BlobSources, FromUpstream
from mirror.fills.watched_body import WatchedBody
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_health import PeerHealth
from mirror.policy.cluster.ownership import by_weight
from mirror.repository.answers import UpstreamStream
from tests.support.following import read_to_end
from tests.support.hangar import CONTENT, DIGEST, HALF, SIZE, GatedUpstream, Hangar, reached
from tests.support.memory_store import MemoryStore
from tests.support.ordered_purges import FakePurges
from tests.support.scripted_peers import ScriptedPeers
from tests.support.stepped_time import SteppedTime

_REPO = Repo("docker.io", "library/app")
#: The owner of the blob, the one after it, and this replica.
_OWNER, _SECOND, _OWN = by_weight("docker.io", DIGEST, ["http://a:1", "http://b:1", "http://c:1"])


class Site:
    """Two other replicas that come before this one, an upstream that has the blob too, and flights."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.time = SteppedTime()
        self.peers = ScriptedPeers()
        self.health = PeerHealth(now=self.time)
        self.members = ClusterMembers(_OWN, [_OWNER, _SECOND], self.health)
        self.purges = FakePurges()
        self.reads = PeerReads(
            self.peers, self.members, self.health, purges=self.purges, sleep=self.time.sleep, clock=self.time
        )
        self.upstream = GatedUpstream(is_open=True)
        self.executor = executor
        self.store = MemoryStore()
        self.hangar = Hangar(self.store, executor)
        self.owner, self.second = self.peers[_OWNER], self.peers[_SECOND]

    def sources(self, size: int | None = SIZE, *, hops: int = 0) -> BlobSources:
        """The peers, then upstream."""
        peers = self.reads.sources(_REPO, DIGEST, size, hops=hops)
        return BlobSources(*peers, FromUpstream(self.upstream.pull))

    async def join(self, size: int | None = SIZE) -> Flight:
        """A follower."""
        return await self.hangar.flights.join(DIGEST, self.sources(size), upstream="docker.io", size=size)

    async def fetch(self, size: int | None = SIZE) -> Flight:
        """A flight that has ended well; the store does not have the blob afterwards."""
        flight = await self.join(size)
        assert await read_to_end(flight) == CONTENT
        await flight.over.wait()
        flight.leave()
        self.store.delete(DIGEST)
        return flight

    @property
    def asked(self) -> list[tuple[str, int]]:
        """Which members were asked for the blob, and from which byte on."""
        return [(asked.member, asked.start) for asked in self.peers.asked]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Closed at the end."""
    with ThreadPoolExecutor(8) as executor:
        made = Site(executor)
        try:
            yield made
        finally:
            for upstream in (made.upstream, made.owner.content, made.second.content):
                upstream.gate.set()
            await made.hangar.flights.aclose()


@pytest.mark.parametrize("size", [SIZE, None], ids=["with size", "without size"])
async def test_the_owner_is_asked_before_upstream(site: Site, size: int | None) -> None:
    """Upstream is not asked, and the flight says where the bytes came from."""
    flight = await site.fetch(size)
    assert flight.source == "peer"
    assert site.asked == [(_OWNER, 0)]
    assert [(asked.size, asked.hops) for asked in site.peers.asked] == [(size, 1)]
    assert site.upstream.starts == []


async def test_a_request_that_two_replicas_wait_for_goes_upstream(site: Site) -> None:
    """It is not passed on any more."""
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE, hops=1)] == [_OWNER, _SECOND]
    assert site.reads.sources(_REPO, DIGEST, SIZE, hops=2) == []
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE, besides=[_OWNER])] == [_SECOND]


def _one_at_once(site: Site, patience: float) -> PeerReads:
    return PeerReads(
        site.peers, site.members, site.health, sleep=site.time.sleep, clock=site.time, at_once=1, patience=patience
    )


async def test_a_blob_waits_for_its_turn_at_other_replicas(site: Site) -> None:
    """On the event loop: no thread waits."""
    site.reads = _one_at_once(site, 60.0)
    async with site.reads.turn():
        fetching = asyncio.create_task(site.fetch())
        await reached(lambda: site.reads.waiting == 1)
        assert site.asked == []
    assert (await fetching).source == "peer"
    assert site.asked == [(_OWNER, 0)]
    # the turn was given back
    assert (await site.fetch()).source == "peer"


async def test_a_blob_does_not_wait_for_its_turn_for_ever(site: Site) -> None:
    """No member counts as silent because of it."""
    site.reads = _one_at_once(site, 0.0)
    async with site.reads.turn():
        assert (await site.fetch()).source == ""
    assert site.asked == []
    assert site.members.is_up(_OWNER)
    assert (await site.fetch()).source == "peer"


async def test_125_a_peer_that_is_down_costs_one_try(site: Site) -> None:
    """Row 125: the next source is asked at once; then the peer is left alone, until its pause is over."""
    site.owner.refusal = UpstreamUnavailable("no connection", upstream="peer")
    assert (await site.fetch()).source == "peer"
    assert site.asked == [(_OWNER, 0), (_SECOND, 0)]
    await site.fetch()
    assert site.asked[2:] == [(_SECOND, 0)]
    assert not site.members.is_up(_OWNER)
    site.time.now += 1.5
    site.owner.refusal = None
    await site.fetch()
    assert site.asked[3:] == [(_OWNER, 0)]
    assert site.members.is_up(_OWNER)
    assert site.upstream.starts == []


@pytest.mark.parametrize(
    ("kind", "reason", "status", "is_up"),
    [
        (UpstreamNotFound, "no such blob", 404, True),
        (UpstreamUnavailable, "its upstream is down", 503, True),
        (UpstreamInvalid, "speaks version 2 of the protocol", 400, False),
    ],
)
async def test_125_a_peer_that_says_no_is_left_for_the_next(
    site: Site, kind: type[UpstreamError], reason: str, status: int, is_up: bool
) -> None:
    """Row 125: whatever its reason; one of another version is left alone for a while."""
    refusal = kind(reason, upstream="peer", status=status)
    site.owner.refusal = site.second.refusal = refusal
    assert (await site.fetch()).source == ""
    assert site.asked == [(_OWNER, 0), (_SECOND, 0)]
    assert site.upstream.starts == [0]
    assert site.members.is_up(_OWNER) is is_up


async def test_125_a_peer_that_hangs_is_left_when_it_does_not_say_how_far_it_is(site: Site) -> None:
    """Row 125: it accepts connections and says nothing, as a frozen process does. One question, and it is left; the
    next blobs do not wait.
    """
    site.owner.head.clear()
    site.owner.says = None
    joining = site.hangar.flights.join(DIGEST, site.sources(), upstream="docker.io", size=SIZE)
    task = asyncio.create_task(joining)
    await site.time.go_on(lambda: len(site.asked) == 2)
    assert (site.owner.looks, site.time.now) == (1, 2.0)
    flight = await task
    assert await read_to_end(flight) == CONTENT
    assert site.asked == [(_OWNER, 0), (_SECOND, 0)]
    await flight.over.wait()
    site.store.delete(DIGEST)
    assert not site.members.is_up(_OWNER)
    await site.fetch()
    assert site.asked[2:] == [(_SECOND, 0)]
    assert site.upstream.starts == []


async def test_125_a_peer_that_falls_silent_is_left_at_the_same_byte(site: Site) -> None:
    """Row 125: frozen, or cut off, in the middle of the blob."""
    site.owner.content.gate.clear()
    site.owner.says = None
    flight = await site.join()
    await reached(lambda: flight.received >= HALF)
    await site.time.go_on(lambda: len(site.asked) == 2)
    assert await read_to_end(flight) == CONTENT
    assert site.asked == [(_OWNER, 0), (_SECOND, HALF)]
    assert site.upstream.starts == []
    assert site.hangar.slept == []


async def test_125_a_slow_upstream_of_the_owner_is_waited_for(site: Site) -> None:
    """Row 125: the owner says that it has nothing more itself, and so nobody else asks upstream as well."""
    site.owner.content.gate.clear()
    site.owner.says = lambda: HALF
    flight = await site.join()
    await reached(lambda: flight.received >= HALF)
    await site.time.go_on(lambda: site.owner.looks >= 10)
    assert not flight.over.is_set()
    site.owner.content.gate.set()
    assert await read_to_end(flight) == CONTENT
    assert site.asked == [(_OWNER, 0)]
    assert site.upstream.starts == []


async def test_a_slow_upstream_is_not_waited_for_without_end(site: Site) -> None:
    """The member's own limits end that long before; if they do not, the next source is asked after ten minutes."""
    site.owner.content.gate.clear()
    site.owner.says = lambda: HALF
    flight = await site.join()
    await reached(lambda: flight.received >= HALF)
    await site.time.go_on(lambda: len(site.asked) == 2)
    assert site.asked == [(_OWNER, 0), (_SECOND, HALF)]
    assert site.time.now >= 599.0


@pytest.mark.parametrize("says", [SIZE, None], ids=["ahead", "lost"])
async def test_125_a_peer_that_has_the_bytes_and_sends_none_is_left(site: Site, says: int | None) -> None:
    """Row 125: it is alive, but this answer is stuck; so is one of which the peer knows nothing any more."""
    site.owner.content.gate.clear()
    site.owner.says = lambda: says
    flight = await site.join()
    await reached(lambda: flight.received >= HALF)
    await site.time.go_on(lambda: len(site.asked) == 2)
    assert await read_to_end(flight) == CONTENT
    assert site.asked == [(_OWNER, 0), (_SECOND, HALF)]
    assert site.owner.looks == 2
    # the peer itself is well
    assert site.members.is_up(_OWNER)


@pytest.mark.parametrize(("says", "is_left"), [(SIZE, True), (0, False)], ids=["ahead", "as slow"])
async def test_125_a_peer_that_drips_is_left_if_it_has_more(site: Site, says: int, is_left: bool) -> None:
    """Row 125: a byte now and then is no sign that a blob will ever be here; a slow upstream of the peer is waited for,
    however long.
    """
    site.owner.content.gate.clear()
    site.owner.says = lambda: says
    source, _ = site.reads.sources(_REPO, DIGEST, SIZE)
    async with source.pull(0) as body:
        assert isinstance(body, WatchedBody)
        body.is_awaited = True

        def drips() -> bool:
            body.received += 1
            return "left" in repr(body) or site.time.now > 2_000

        await site.time.go_on(drips)
        assert ("left" in repr(body)) is is_left
    assert site.members.is_up(_OWNER)


async def test_a_busy_peer_is_given_time(site: Site) -> None:
    """A head that comes late causes no second download as long as the peer says that it is there."""
    site.owner.head.clear()
    task = asyncio.create_task(site.hangar.flights.join(DIGEST, site.sources(), upstream="docker.io", size=SIZE))
    await site.time.go_on(lambda: site.owner.looks == 1)
    site.owner.head.set()
    flight = await task
    assert await read_to_end(flight) == CONTENT
    assert site.asked == [(_OWNER, 0)]
    assert site.upstream.starts == []


async def test_without_a_size_the_owner_s_upstream_is_waited_for(site: Site) -> None:
    """The head cannot come before upstream's; meanwhile the owner says that it is alive."""
    site.owner.head.clear()
    site.owner.says = lambda: 0
    task = asyncio.create_task(site.join(None))
    await site.time.go_on(lambda: site.owner.looks >= 5)
    assert not task.done()
    site.owner.head.set()
    assert await read_to_end(await task) == CONTENT
    assert site.asked == [(_OWNER, 0)]
    # such a time says nothing about the peer
    assert site.health.first_byte(_OWNER) is None


async def test_125_a_body_that_breaks_goes_on_at_the_next_source(site: Site) -> None:
    """Row 125: killed in the middle; then the next one is, too, and upstream gives the rest."""
    for peer, at in ((site.owner, HALF), (site.second, HALF + 100_000)):
        peer.content.gate_at = at
        peer.content.troubles = [UpstreamUnavailable("reset", upstream="peer")]
    flight = await site.fetch()
    assert site.asked == [(_OWNER, 0), (_SECOND, HALF)]
    assert site.upstream.starts == [HALF + 100_000]
    assert site.hangar.slept == []
    assert flight.source == ""


async def test_125_a_peer_that_lies_is_not_asked_for_that_blob_again(site: Site) -> None:
    """Row 125: wrong bytes are never served whole. The next source is asked at once, and the peer is left alone for
    this blob for ten minutes.
    """
    site.owner.content.content = CONTENT[:-1] + b"!"
    flight = await site.join()
    with pytest.raises(DigestMismatch):
        await read_to_end(flight)
    assert flight.successor is not None
    again = flight.successor
    assert await read_to_end(again) == CONTENT
    await again.over.wait()
    site.store.delete(DIGEST)
    assert site.asked == [(_OWNER, 0), (_SECOND, 0)]
    assert site.upstream.starts == []
    await site.fetch()
    assert site.asked[2:] == [(_SECOND, 0)]
    assert site.members.is_up(_OWNER)
    site.owner.content.content = CONTENT
    site.time.now += 601.0
    await site.fetch()
    assert site.asked[3:] == [(_OWNER, 0)]


async def test_125_a_peer_that_lies_again_and_again_is_asked_for_nothing(site: Site) -> None:
    """Row 125: its memory or its network is broken. After ten minutes it is tried again."""
    for number in range(3):
        assert _OWNER in [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)]
        site.reads.accuse(_OWNER, Digest.of(b"%d" % number), whole=False)
        site.reads.accuse(_OWNER, Digest.of(b"%d" % number), whole=True)
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)] == [_SECOND]
    site.time.now += 601.0
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)] == [_OWNER, _SECOND]


async def test_wrong_bytes_of_upstream_are_not_blamed_on_a_peer(site: Site) -> None:
    """A peer that gave the beginning may be right: it is only left alone for this blob."""
    site.second.refusal = UpstreamNotFound("no such blob", upstream="peer", status=404)
    site.owner.content.troubles = [UpstreamUnavailable("reset", upstream="peer")]
    site.upstream.content = CONTENT[:-1] + b"!"
    with capture_logs() as logs:
        flight = await site.join()
        with pytest.raises(DigestMismatch):
            await read_to_end(flight)
    assert "peer gave wrong bytes" not in [line["event"] for line in logs]
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)] == [_SECOND]


async def test_nothing_is_left_of_an_ended_pull(site: Site) -> None:
    """No watch goes on, and a pull that is given up says nothing about the peer."""
    await site.fetch()
    assert site.time.sleeping == 0
    site.owner.head.clear()
    flight = site.hangar.flights.join(DIGEST, site.sources(), upstream="docker.io", size=SIZE)
    task = asyncio.create_task(flight)
    await reached(lambda: site.time.sleeping == 1)
    await site.hangar.flights.aclose()
    await asyncio.gather(task, return_exceptions=True)
    assert site.time.sleeping == 0
    assert site.members.is_up(_OWNER)


async def test_a_stream_past_the_store_comes_from_peers_as_well(site: Site) -> None:
    """A disk that is full costs upstream nothing, and what a peer sends is verified as ever."""
    site.owner.content.gate_at = HALF
    site.owner.content.troubles = [UpstreamUnavailable("reset", upstream="peer")]
    stream = UpstreamStream(DIGEST, "docker.io", site.sources, site.executor)
    assert b"".join([piece async for piece in stream.read(None, SIZE)]) == CONTENT
    assert site.asked == [(_OWNER, 0), (_SECOND, HALF)]
    assert site.upstream.starts == []
    site.owner.content.content = CONTENT[:-1] + b"!"
    with pytest.raises(DigestMismatch):
        [piece async for piece in stream.read(None, SIZE)]
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)] == [_SECOND]


async def test_a_member_that_has_not_purged_yet_is_not_asked(site: Site) -> None:
    """In that repository: others are asked as ever."""
    other = Repo("docker.io", "library/other")
    site.purges.keeping = {(_OWNER, _REPO), (_SECOND, other)}
    assert [source.member for source in site.reads.sources(_REPO, DIGEST, SIZE)] == [_SECOND]
    assert [source.member for source in site.reads.sources(other, DIGEST, SIZE)] == [_OWNER]
