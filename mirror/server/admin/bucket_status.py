"""The bucket behind the mirror, as its workers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from typing_extensions import TypedDict

from mirror.ports import BucketHealth
from mirror.values.json_types import Bytes, Count, Timestamp, about
from mirror.values.timestamps import moment

BucketState = Literal["ok", "throttled", "refusing", "unfit", "down"]
#: From best to worst.
_STATES: Final[tuple[BucketState, ...]] = ("ok", "throttled", "refusing", "unfit", "down")


class BucketCacheJson(TypedDict):
    """The cached content that the bucket keeps."""

    blobs: Annotated[Count, about("Number of cached blobs and manifests in the bucket, as far as this machine knows.")]
    bytes: Annotated[Bytes, about("Their bytes.")]
    limit: Annotated[Bytes | None, about("`bucket_capacity`; null: there is none.")]
    listed_at: Annotated[Timestamp | None, about("When the bucket was last listed; null: not yet.")]
    waiting: Annotated[Count, about("Blobs and records that wait to be written to the bucket, over all workers.")]
    dropped: Annotated[Count, about("Those that were not written, since the mirror started.")]


class BucketStatusJson(TypedDict):
    """The bucket, as the worker sees it that fares worst."""

    address: Annotated[str, about("As in store.bucket.")]
    state: Annotated[
        BucketState,
        about(
            "`throttled`: it asks for fewer requests; `refusing`: it refuses the credentials, or they lack a "
            "permission; `unfit`: it ignores the conditions of writes, or is not the one that this disk belongs to, so "
            "that nothing may be pushed; `down`: it does not answer, or does not exist."
        ),
    ]
    since: Annotated[Timestamp | None, about("Since when it does not answer.")]
    reason: Annotated[str | None, about("What is wrong; null: nothing.")]
    reads_only: Annotated[bool, about("Another mirror has taken the bucket over, so that this one writes nothing.")]
    id: Annotated[str | None, about("Its id, which `mirror.json` in it has; null: it was not read yet.")]
    records_complete: Annotated[
        bool, about("Whether this machine remembers all records; it lists the bucket until it does.")
    ]
    records_listed: Annotated[Count | None, about("Records that the last listing has seen so far; null: none began.")]
    cache: Annotated[
        BucketCacheJson | None, about("Null: the bucket keeps no cached content, or what it keeps is not known now.")
    ]


@dataclass(frozen=True, slots=True)
class RememberedRecords:
    """What this machine remembers of the bucket with this `id` (empty: unknown): all records or not, and how many the
    last listing has seen (None: none began).
    """

    id: str
    is_complete: bool
    listed: int | None


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """The bucket of this process. `reads_only`, `records` and `cache` block briefly, and raise nothing."""

    address: str
    health: Callable[[], BucketHealth]
    reads_only: Callable[[], bool]
    records: Callable[[], RememberedRecords]
    cache: Callable[[], BucketCacheJson | None] = lambda: None
    #: Why this is not the right bucket; empty: it is, or that is not known yet.
    trouble: Callable[[], str] = lambda: ""

    async def status(self, others: Sequence[BucketHealth]) -> BucketStatusJson:
        """The status, together with what other workers see."""
        records = await asyncio.to_thread(self.records)
        worst = max((self.health(), *others), key=lambda health: _STATES.index(state_of(health)))
        if trouble := self.trouble():
            worst = max(worst, BucketHealth(is_unfit=True, reason=trouble), key=lambda h: _STATES.index(state_of(h)))
        return {
            "address": self.address,
            "state": state_of(worst),
            "since": moment(worst.down_since) if worst.down_since is not None else None,
            "reason": worst.reason or None,
            "reads_only": await asyncio.to_thread(self.reads_only),
            "id": records.id or None,
            "records_complete": records.is_complete,
            "records_listed": records.listed,
            "cache": await asyncio.to_thread(self.cache),
        }


def state_of(health: BucketHealth) -> BucketState:
    """The state in a word."""
    if health.down_since is not None:
        return "down"
    if health.is_unfit:
        return "unfit"
    if health.refuses:
        return "refusing"
    return "throttled" if health.throttles else "ok"
