"""What one process knows of the purges that were ordered in a cluster.

    a start, or 10 s without a look ──> not known: nothing is uploaded to the cache in the bucket, or restored from it
         ^                                 │ a look
         │                                 ├─ some are not carried out here ──> uploads wait, restores go on
         └──────────── 10 s ───────────────┴─ all are ────────────────────────> both go on

A replica that was frozen may have what was purged meanwhile on its disk, and in the queue of what it writes to the
bucket. What is ordered, and not confirmed by all yet, is not restored from the bucket, and not taken from a member that
may still have it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mirror.clock import steady_time
from mirror.errors import BucketUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.ports import Records
from mirror.values.json_form import DigestField, JsonForm, Moment, ReferenceField, RepoField

#: Seconds after which an order is given up, and forgotten as carried out.
OLD: Final = 7 * 86400.0
#: Seconds for which a look at the orders counts.
_FRESH: Final = 10.0
_RETRY_AFTER: Final = 1.0
_KEY: Final = "carried-out"


@dataclass(frozen=True, slots=True)
class PurgeOrder:
    """An image that all replicas drop; `at` is in epoch seconds, `waiting` are the members that had not confirmed, and
    `manifests` those that the image had at the replica that was asked.
    """

    at: Moment
    repo: RepoField
    reference: ReferenceField
    waiting: tuple[str, ...] = ()
    manifests: tuple[DigestField, ...] = ()


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """The orders that this replica has carried out, with the times of the orders."""

    orders: dict[str, Moment]


ORDER: Final = JsonForm(PurgeOrder)
_DONE: Final = JsonForm(CarriedOut)


class Orders(Protocol):
    """Orders by key. All calls block, and raise `StoreError`."""

    def all(self) -> Iterator[dict[str, Any]]:
        """Every order, each with its `key`."""

    def put(self, key: str, record: Mapping[str, Any]) -> object:
        """Write an order; durable on return."""

    def drop(self, key: str) -> bool:
        """Forget an order; True if there was one."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last look has shown; `at` is when it began, in seconds of the steady clock."""

    at: float = float("-inf")
    #: An order that this replica has not carried out; empty if there is none.
    left: str = ""
    withheld: frozenset[tuple[Repo, Reference]] = frozenset()
    keeping: frozenset[tuple[str, Repo]] = frozenset()


class KnownPurges:
    """`OrderedPurges` of one process. May be used from any thread."""

    def __init__(
        self,
        orders: Orders,
        done: Records,
        *,
        now: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_time,
    ) -> None:
        """`done` is what this replica has carried out, on its own disk. `now` is in epoch seconds; `steady` counts
        seconds also while the machine sleeps.
        """
        self.orders: Final = orders
        self._done = done
        self._now = now
        self._steady = steady
        self._lock = threading.Lock()
        self._seen = _Seen()

    def __repr__(self) -> str:
        return f"<KnownPurges {len(self._seen.withheld)} withheld>"

    def look(self) -> dict[str, PurgeOrder | None]:
        """Blocking: reads the orders, by key; None for one that cannot be understood. Raises `StoreError`."""
        began = self._steady()
        orders = {record["key"]: ORDER.from_json(record) for record in self.orders.all()}
        done, since = self.carried_out(), self._now() - OLD
        left = ""
        withheld, keeping = set[tuple[Repo, Reference]](), set[tuple[str, Repo]]()
        for key, order in orders.items():
            if order is None or order.at < since:
                continue
            if key not in done:
                left = f"{order.repo} {order.reference}"
            if key not in done or order.waiting:
                withheld.update((order.repo, reference) for reference in (order.reference, *order.manifests))
            keeping.update((member, order.repo) for member in order.waiting)
        self._seen = _Seen(began, left, frozenset(withheld), frozenset(keeping))
        return orders

    def carried_out(self) -> dict[str, float]:
        """Blocking: the orders that this replica has carried out, with their times. Raises `StoreError`."""
        found = self._done.get(_KEY)
        read = _DONE.from_json(found) if found is not None else None
        return dict(read.orders) if read is not None else {}

    def note(self, key: str, at: float) -> None:
        """Blocking: remember an order as carried out, and forget those that nobody sends any more. Raises
        `StoreError`.
        """
        since = self._now() - OLD
        kept = {each: moment for each, moment in self.carried_out().items() if moment > since}
        self._done.put(_KEY, _DONE.to_json(CarriedOut({**kept, key: at})))

    def require(self) -> None:
        """See `OrderedPurges`."""
        if not self._is_fresh():
            with self._lock:
                # another thread may have looked meanwhile
                if not self._is_fresh():
                    self.look()

    def _is_fresh(self) -> bool:
        return 0 <= self._steady() - self._seen.at <= _FRESH

    def require_heeded(self) -> None:
        """See `OrderedPurges`."""
        self.require()
        if self._seen.left:
            with self._lock:
                self.look()
        if left := self._seen.left:
            raise BucketUnavailable(f"the purge of {left} is not carried out here yet", retry_after=_RETRY_AFTER)

    def is_withheld(self, repo: Repo, reference: Digest | str) -> bool:
        """See `OrderedPurges`."""
        return (repo, reference) in self._seen.withheld

    def may_keep(self, member: str, repo: Repo) -> bool:
        """See `OrderedPurges`."""
        return (member, repo) in self._seen.keeping
