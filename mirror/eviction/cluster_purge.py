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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from mirror import telemetry
from mirror.errors import ImageProtected, ManifestUnknown, MirrorError, StoreError
from mirror.eviction.purge import Purged
from mirror.oci.digest import Digest
from mirror.policy.image_names import Image, name_of
from mirror.ports import Lease, Records
from mirror.ports.peers import Notice, Notices, Purge
from mirror.values.json_form import JsonForm, Moment, ReferenceField, RepoField

#: Seconds until the command says who has not confirmed.
_PATIENCE: Final = 2.0
#: Seconds between two rounds.
_EVERY: Final = 2.0
#: Seconds after which an order is given up, and forgotten as carried out.
_OLD: Final = 7 * 86400.0
_KEY: Final = "carried-out"


@dataclass(frozen=True, slots=True)
class PurgeOrder:
    """An image that all replicas drop; `at` is in epoch seconds, `waiting` are the members that had not confirmed."""

    at: Moment
    repo: RepoField
    reference: ReferenceField
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """The orders that this replica has carried out, with the times of the orders."""

    orders: dict[str, Moment]


_ORDER: Final = JsonForm(PurgeOrder)
_DONE: Final = JsonForm(CarriedOut)


class Orders(Protocol):
    """Orders by key. All calls block, and raise `StoreError`."""

    def all(self) -> Iterator[dict[str, Any]]:
        """Every order, each with its `key`."""

    def put(self, key: str, record: Mapping[str, Any]) -> object:
        """Write an order; durable on return."""

    def drop(self, key: str) -> bool:
        """Forget an order; True if there was one."""


class ClusterPurge:
    """Purges in all replicas. `purge` does it here; `everywhere` returns once no worker of this replica answers with
    what was purged.
    """

    def __init__(
        self,
        purge: Callable[[Image], Awaitable[Purged]],
        everywhere: Callable[[], Awaitable[None]],
        notices: Notices,
        orders: Orders,
        done: Records,
        *,
        is_shared: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`orders` are read by all replicas if `is_shared`, else this one's own; `done` are always its own. `now` is
        the clock in epoch seconds.
        """
        self._purge = purge
        self._everywhere = everywhere
        self._notices = notices
        self._orders = orders
        self._done = done
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
        order = PurgeOrder(self._now(), image.repo, image.reference)
        await asyncio.to_thread(self._note, key, order)
        await asyncio.to_thread(self._orders.put, key, _ORDER.to_json(order))
        notice = Notice(purges=(_as_notice(key, order),))
        unconfirmed, _ = await asyncio.gather(self._notices.send(notice, patience=_PATIENCE), self._heeded_here())
        if unconfirmed:
            waiting = replace(order, waiting=tuple(unconfirmed))
            await asyncio.to_thread(self._orders.put, key, _ORDER.to_json(waiting))
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
        lease: Lease | None = None
        reason = ""
        try:
            while True:
                try:
                    lease = lease or await try_hold()
                    if lease is not None:
                        await self.round()
                    reason = ""
                except MirrorError as error:
                    if str(error) != reason:
                        reason = str(error)
                        telemetry.log.warning("purge orders not read", reason=reason)
                except Exception:
                    telemetry.log.exception("purge orders crashed")
                await asyncio.sleep(_EVERY)
        finally:
            if lease is not None:
                lease.release()

    async def round(self) -> None:
        """One round. Raises `StoreError`."""
        for record in await asyncio.to_thread(lambda: list(self._orders.all())):
            key, order = record["key"], _ORDER.from_json(record)
            if order is None or self._now() - order.at > _OLD:
                await asyncio.to_thread(self._orders.drop, key)
                continue
            image = _image(order, order.reference)
            if key not in await asyncio.to_thread(self._carried_out):
                await self._carry_out(key, image)
            elif order.waiting:
                await self._ask_again(key, order, image)

    async def _ask_again(self, key: str, order: PurgeOrder, image: Image) -> None:
        notice = Notice(purges=(_as_notice(key, order),))
        left = await self._notices.send(notice, patience=_PATIENCE, to=order.waiting)
        if tuple(left) == order.waiting:
            return
        await asyncio.to_thread(self._orders.put, key, _ORDER.to_json(replace(order, waiting=tuple(left))))
        if not left:
            telemetry.log.info("purge confirmed", image=str(image))
            await self._finish(key, image)

    async def _carry_out(self, key: str, image: Image) -> None:
        """Carries out an order of another replica, once. Raises `StoreError`."""
        async with self._turn:
            if key in await asyncio.to_thread(self._carried_out):
                return
            try:
                purged = await self._purged(image)
            except ImageProtected as error:
                # pins and freezes of this replica, if it has some of its own
                telemetry.log.warning("purge of another replica refused", image=str(image), reason=str(error))
            else:
                telemetry.log.info("purged for another replica", image=purged.image, bytes=purged.bytes)
            await self._everywhere()
            await asyncio.to_thread(self._note, key, PurgeOrder(self._now(), image.repo, image.reference))

    def _carried_out(self) -> dict[str, float]:
        found = self._done.get(_KEY)
        read = _DONE.from_json(found) if found is not None else None
        return dict(read.orders) if read is not None else {}

    def _note(self, key: str, order: PurgeOrder) -> None:
        """Remember an order as carried out, and forget those that nobody sends any more."""
        since = self._now() - _OLD
        kept = {each: at for each, at in self._carried_out().items() if at > since}
        self._done.put(_KEY, _DONE.to_json(CarriedOut({**kept, key: order.at})))


def _as_notice(key: str, order: PurgeOrder) -> Purge:
    if isinstance(order.reference, Digest):
        return Purge(key, order.repo, (), (order.reference,))
    return Purge(key, order.repo, (order.reference,), ())


def _image(order: Purge | PurgeOrder, reference: Digest | str) -> Image:
    if isinstance(reference, Digest):
        return Image(order.repo, digest=reference)
    return Image(order.repo, reference)
