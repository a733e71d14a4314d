"""What garbage collection decides about hosted content. Pure; all times are in epoch seconds.

A link that no manifest of its repository names, and bytes that no repository has, wait twice before they go:

    needed ── not needed for the grace time ──> queued ── not needed for the grace time ──> gone
      ^                                           │
      └────── a client relies on it again ────────┘

Ages are judged by the earlier of two clocks and recorded by the later (`ClockReading`), so that nothing goes early when
a clock jumps. A time that lies in the future comes from a clock that was wrong: the wait begins anew, so that nothing
waits for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mirror.policy.hosted_records import BlobLink, LinkState

#: Who has deleted a manifest that collection took away.
COLLECTOR: Final = "collection"


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The time now, which is not certain: ages are judged by `earlier`, moments are recorded as `later`."""

    earlier: float
    later: float


class Waited(Enum):
    """How long something has waited."""

    TOO_SHORT = "too short"
    LONG_ENOUGH = "long enough"
    #: It cannot be known: the beginning lies in the future.
    UNKNOWN = "unknown"


def waited(since: float, now: ClockReading, least: float) -> Waited:
    """Whether `least` seconds have passed since a moment."""
    if since > now.later:
        return Waited.UNKNOWN
    return Waited.LONG_ENOUGH if now.earlier - since >= least else Waited.TOO_SHORT


class LinkStep(Enum):
    """What collection does next with a link that no manifest of its repository names."""

    STAY = "stay"
    #: Let it wait from now on.
    QUEUE = "queue"
    #: It was dated by a wrong clock: its life begins now.
    BEGIN_ANEW = "begin anew"
    #: It may go if the manifests, looked at once more, still do not name it.
    DROP = "drop"


def next_step(link: BlobLink, now: ClockReading, grace: float) -> LinkStep:
    """What happens to a link that a walk of its repository did not meet. A mark of a removal (`REMOVED`) goes without a
    queue: the caller asks only once there is nothing left that it could forbid.
    """
    age = waited(link.since, now, grace)
    if age is Waited.UNKNOWN:
        return LinkStep.BEGIN_ANEW
    if age is Waited.TOO_SHORT:
        return LinkStep.STAY
    if link.state is LinkState.REMOVED:
        return LinkStep.DROP
    if link.queued_at is None:
        return LinkStep.QUEUE
    queue = waited(link.queued_at, now, grace)
    if queue is Waited.UNKNOWN:
        return LinkStep.QUEUE
    return LinkStep.DROP if queue is Waited.LONG_ENOUGH else LinkStep.STAY


def link_may_go_at(link: BlobLink, grace: float) -> float:
    """When a link that no manifest names may go, at the earliest."""
    queued_at = link.since + grace if link.queued_at is None else link.queued_at
    return max(queued_at, link.since) + grace


@dataclass(frozen=True, slots=True)
class RegistryRules:
    """What the settings say about one hosted registry: how many seconds what was deleted is kept, and whether untagged
    referrers whose subject is gone are collected.
    """

    keep_deleted: float
    collect_dangling: bool = False


@dataclass(frozen=True, slots=True)
class CollectionRules:
    """What the settings say about collection. Times are in seconds.

    `upstreams` are the registries that are mirrored: they have no hosted content. Any other registry that has content
    on the disk, configured or not, keeps what it names; only those in `registries` lose anything.
    """

    grace: float
    registries: dict[str, RegistryRules]
    upstreams: Collection[str] = ()
