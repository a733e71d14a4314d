"""A replica that nothing needs is asked all the same: what is said of it is true in a quiet night."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from mirror.aio.singleflight import cancel_and_wait
from mirror.peers.member_looks import MemberLooks
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.ports.peers import Notice
from mirror.server.peers.notices import NoticeEffects
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLease, FileLocks
from tests.support.engines.ports import free_ports
from tests.support.hangar import reached
from tests.support.peer_listener import SENDER, PeerListener, peer_listener

_LONG = 60.0


def _down() -> float | None:
    return REGISTRY.get_sample_value("mirror_peers_down")


def _nobody() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@asynccontextmanager
async def _looking(
    folder: Path, sleep: Callable[[float], Awaitable[object]] | None = None
) -> AsyncIterator[tuple[PeerListener, ClusterMembers, PeerHealth, MemberLooks, list[Notice]]]:
    """A replica that answers and one that is not there, and who looks at them; the notices that took effect."""
    seen: list[Notice] = []

    async def effect(notice: Notice) -> None:
        seen.append(notice)

    effects = NoticeEffects()
    effects.add(effect)
    async with peer_listener(folder, [effects.verb()]) as listener:
        health = PeerHealth()
        client = PeerClient(listener.signer(), health)
        members = ClusterMembers(SENDER, [listener.address, _nobody()], health)
        looks = MemberLooks(members, client, patience=_LONG, sleep=sleep or asyncio.sleep)
        try:
            yield listener, members, health, looks, seen
        finally:
            await client.aclose()


def _absent(listener: PeerListener, members: ClusterMembers) -> str:
    [absent] = [peer for peer in members.peers() if peer != listener.address]
    return absent


async def test_a_member_is_up_once_it_has_answered(tmp_path: Path) -> None:
    """Before, nothing is known of it; one that was never there is down, and counted."""
    async with _looking(tmp_path) as (listener, members, health, looks, seen):
        absent = _absent(listener, members)
        assert [health.state(peer).up for peer in members.peers()] == [False, False]
        assert [health.state(peer).since for peer in members.peers()] == [None, None]
        # it may be asked all the same
        assert health.is_up(absent)
        await looks.look(everyone=True)
        there, gone = health.state(listener.address), health.state(absent)
        assert (there.up, there.version, there.reason) == (True, "1.2.3", "")
        assert not gone.up
        assert gone.since is not None
        assert gone.reason
        assert _down() == 1.0
        # who only looks changes nothing there
        assert seen == []
        # nobody misses a member that has left
        members.replace([listener.address])
        assert _down() == 0.0


async def test_a_member_that_is_back_is_noticed_by_each_process(tmp_path: Path) -> None:
    """Also while it is left alone; a process that does not ask all asks those of which it thinks that they are down."""
    async with _looking(tmp_path) as (listener, members, health, looks, _):
        ticket = health.admit(listener.address)
        health.failed(listener.address, ticket, "no answer in time")
        assert health.admit(listener.address) is None
        await looks.look(everyone=False)
        assert health.state(listener.address).up
        # the other one was not asked
        assert health.state(_absent(listener, members)).since is None


async def test_one_process_asks_all(tmp_path: Path) -> None:
    """As long as it runs; the others try to get its lease before each look."""
    locks = FileLocks(LocalStore(Layout(tmp_path / "store")).layout)
    rounds = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        assert 8.0 <= seconds <= 12.0
        rounds.release()
        await asyncio.sleep(0)

    async def asked(lease: FileLease) -> bool:
        """Whether a process asks while another one has the lease; it does once that is free."""
        async with _looking(tmp_path, sleep) as (listener, _members, health, looks, _):
            running = asyncio.create_task(looks.run(lambda: locks.try_hold("looks")))
            try:
                await _times(3, rounds)
                before = health.state(listener.address).up
                lease.release()
                await reached(lambda: health.state(listener.address).up)
                return before
            finally:
                await cancel_and_wait(running)

    lease = await locks.try_hold("looks")
    assert lease is not None
    assert not await asked(lease)
    # it has given the lease back
    lease = await locks.try_hold("looks")
    assert lease is not None
    lease.release()


async def _times(number: int, rounds: asyncio.Semaphore) -> None:
    async with asyncio.timeout(_LONG):
        for _ in range(number):
            await rounds.acquire()
