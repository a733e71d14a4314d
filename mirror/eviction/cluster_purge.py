"""A purge that all replicas of a cluster carry out, each on its own disk.

    purge here ── the order is written down ── notice to all others ──┬─ all have done it ──> purged here once more
                                                                      └─ some have not ─────> returned to the caller
                                                                                                    │
      a later round, every 2 s, for a week:  the others are asked again  <──────────────────────────┤
      a replica that was away reads the orders in the bucket, if there is one, and does what it has not done

A replica that has the image may give it to one that has purged it already, as long as it was not informed itself: hence
the second purge. Without a bucket, the order is on the disk of the replica that was asked, and is sent from there.

Each replica remembers which orders it has carried out, so that no order takes away what was pulled again since.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from mirror import telemetry
from mirror.errors import ImageProtected, ManifestUnknown, MirrorError, StoreError
from mirror.eviction.known_purges import OLD, ORDER, KnownPurges, PurgeOrder
from mirror.eviction.purge import Purged
from mirror.oci.digest import Digest
from mirror.policy.image_names import Image, name_of
from mirror.ports import Lease
from mirror.ports.peers import Notice, Notices, Purge
from mirror.rounds import KeptLock, run_rounds

#: Seconds until the command says who has not confirmed.
_PATIENCE: Final = 2.0
#: Seconds between two rounds.
_EVERY: Final = 2.0
#: Rounds for each look of a process that does not do the rounds.
_LOOKS: Final = 2
#: Manifests of an image that an order names at most.
_MOST_MANIFESTS: Final = 100


class ClusterPurge:
    """Purges in all replicas. `purge` does it here; `everywhere` returns once no worker of this replica answers with
    what was purged.
    """

    def __init__(
        self,
        purge: Callable[[Image], Awaitable[Purged]],
        everywhere: Callable[[], Awaitable[None]],
        notices: Notices,
        known: KnownPurges,
        *,
        is_shared: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """The orders of `known` are read by all replicas if `is_shared`, else they are this one's own. `now` is the
        clock in epoch seconds.
        """
        self._purge = purge
        self._everywhere = everywhere
        self._notices = notices
        self._known = known
        self._orders = known.orders
        self._is_shared = is_shared
        self._now = now
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ClusterPurge {'by the bucket' if self._is_shared else 'by notices'}>"

    async def __call__(self, image: Image) -> Purged:
        """Purges an image here and in all other replicas; `unconfirmed` are those that have not done it. An image that
        only others have counts as purged. Raises like `mirror.eviction.purge.Purge`, and changes nothing elsewhere
        then.
        """
        purged = await self._purged(image)
        key = secrets.token_hex(8)
        order = PurgeOrder(self._now(), image.repo, image.reference, manifests=purged.manifests[:_MOST_MANIFESTS])
        await asyncio.to_thread(self._known.note, key, order.at)
        await asyncio.to_thread(self._orders.put, key, ORDER.to_json(order))
        notice = Notice(purges=(_as_notice(key, order),))
        unconfirmed, _ = await asyncio.gather(self._notices.send(notice, patience=_PATIENCE), self._heeded_here())
        if unconfirmed:
            waiting = replace(order, waiting=tuple(unconfirmed))
            await asyncio.to_thread(self._orders.put, key, ORDER.to_json(waiting))
            await asyncio.to_thread(self._known.look)
            telemetry.log.warning("purge not confirmed", image=purged.image, members=list(unconfirmed))
        else:
            await self._finish(key, image)
        return replace(purged, unconfirmed=tuple(unconfirmed))

    async def _heeded_here(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._everywhere()
        except (StoreError, TimeoutError) as error:
            # it reads the notice on the disk when it goes on
            telemetry.log.warning("purge not heeded by worker", reason=str(error))

    async def _purged(self, image: Image) -> Purged:
        try:
            return await self._purge(image)
        except ManifestUnknown:
            return Purged(name_of(image.repo, image.reference), image.repo, (), (), 0, 0)

    async def _finish(self, key: str, image: Image) -> None:
        """All have confirmed."""
        await self._purged(image)
        if not self._is_shared:
            await asyncio.to_thread(self._orders.drop, key)

    async def effect(self, notice: Notice) -> None:
        """Carries out the purges of a notice, in all workers of this replica. Raises `StoreError`."""
        for order in notice.purges:
            references: list[Digest | str] = [*order.tags, *order.digests]
            for reference in references:
                await self._carry_out(order.id, _image(order, reference))

    async def run(self, try_hold: Callable[[], Awaitable[Lease | None]]) -> None:
        """Does what was ordered while this replica was away, and asks again those that have not confirmed; until
        cancelled. `try_hold` gets the lease of the one process of this replica that does it.
        """
        rounds = 0

        async def round_or_look() -> None:
            nonlocal rounds
            if await lock.taken() is not None:
                await self.round()
            elif rounds % _LOOKS == 0:
                await asyncio.to_thread(self._known.look)
            rounds += 1

        with KeptLock(try_hold) as lock:
            await run_rounds(
                round_or_look,
                _EVERY,
                failed="purge orders not read",
                crashed="purge orders crashed",
                expected=(MirrorError,),
                once=True,
            )

    async def round(self) -> None:
        """One round. An order that cannot be carried out does not hold up the others. Raises `StoreError`."""
        failed: MirrorError | None = None
        for key, order in (await asyncio.to_thread(self._known.look)).items():
            if order is None or self._now() - order.at > OLD:
                await asyncio.to_thread(self._orders.drop, key)
                continue
            image = _image(order, order.reference)
            try:
                if key not in await asyncio.to_thread(self._known.carried_out):
                    await self._carry_out(key, image)
                elif order.waiting:
                    await self._ask_again(key, order, image)
            except MirrorError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _ask_again(self, key: str, order: PurgeOrder, image: Image) -> None:
        notice = Notice(purges=(_as_notice(key, order),))
        left = await self._notices.send(notice, patience=_PATIENCE, to=order.waiting)
        if tuple(left) == order.waiting:
            return
        await asyncio.to_thread(self._orders.put, key, ORDER.to_json(replace(order, waiting=tuple(left))))
        if not left:
            telemetry.log.info("purge confirmed", image=str(image))
            await self._finish(key, image)

    async def _carry_out(self, key: str, image: Image) -> None:
        """Carries out an order of another replica, once. Raises `StoreError`."""
        async with self._turn:
            if key in await asyncio.to_thread(self._known.carried_out):
                return
            try:
                purged = await self._purged(image)
            except ImageProtected as error:
                # pins and freezes of this replica, if it has some of its own
                telemetry.log.warning("purge of another replica refused", image=str(image), reason=str(error))
            else:
                telemetry.log.info("purged for another replica", image=purged.image, bytes=purged.bytes)
            await self._everywhere()
            await asyncio.to_thread(self._known.note, key, self._now())


def _as_notice(key: str, order: PurgeOrder) -> Purge:
    if isinstance(order.reference, Digest):
        return Purge(key, order.repo, (), (order.reference,))
    return Purge(key, order.repo, (order.reference,), ())


def _image(order: Purge | PurgeOrder, reference: Digest | str) -> Image:
    if isinstance(reference, Digest):
        return Image(order.repo, digest=reference)
    return Image(order.repo, reference)
