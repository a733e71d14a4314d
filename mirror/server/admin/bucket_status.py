"""The bucket behind the mirror, as its workers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from typing_extensions import TypedDict

from mirror.ports import BucketHealth
from mirror.values.json_types import Timestamp, about
from mirror.values.timestamps import moment

BucketState = Literal["ok", "throttled", "refusing", "unfit", "down"]
#: From best to worst.
_STATES: Final[tuple[BucketState, ...]] = ("ok", "throttled", "refusing", "unfit", "down")


class BucketStatusJson(TypedDict):
    """The bucket, as the worker sees it that fares worst."""

    address: Annotated[str, about("As in store.bucket.")]
    state: Annotated[
        BucketState,
        about(
            "`throttled`: it asks for fewer requests; `refusing`: it refuses the credentials, or they lack a "
            "permission; `unfit`: it ignores the conditions of writes, so that nothing may be pushed; `down`: it does "
            "not answer."
        ),
    ]
    since: Annotated[Timestamp | None, about("Since when it does not answer.")]
    reason: Annotated[str | None, about("What is wrong; null: nothing.")]
    reads_only: Annotated[bool, about("Another mirror has taken the bucket over, so that this one writes nothing.")]
    records_complete: Annotated[
        bool, about("Whether this machine remembers all records; it lists the bucket until it does.")
    ]


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """The bucket of this process. `reads_only` and `records_complete` block briefly, and raise nothing."""

    address: str
    health: Callable[[], BucketHealth]
    reads_only: Callable[[], bool]
    records_complete: Callable[[], bool]

    async def status(self, others: Sequence[BucketHealth]) -> BucketStatusJson:
        """The status, together with what other workers see."""
        worst = max((self.health(), *others), key=lambda health: _STATES.index(state_of(health)))
        return {
            "address": self.address,
            "state": state_of(worst),
            "since": moment(worst.down_since) if worst.down_since is not None else None,
            "reason": worst.reason or None,
            "reads_only": await asyncio.to_thread(self.reads_only),
            "records_complete": await asyncio.to_thread(self.records_complete),
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
