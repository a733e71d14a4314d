"""What a tag has pointed to, and which of it may be served: a cooldown against releases that were tampered with.

    seen ── as long as the route's minimum age ──> old enough ──> served, until a newer one is old enough
     └── taken back by upstream before that ──> what it went back to is served all along

The age of a digest counts from when this mirror first saw it: dates within an image are written by whoever built it.
A clock that was wrong must not make anything older. What was seen "in the future" is not old; it is judged by the
earlier of two clocks, and written down by the later one (`repository/tag_history.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from mirror.oci.digest import Digest
from mirror.policy.records import Sighting, TagRecord

__all__ = [
    "MOST",
    "AgeRule",
    "Choice",
    "TagOverride",
    "choose",
    "has_moved",
    "learned",
    "pointed_to",
    "recalled",
    "trimmed",
]

#: Sightings of one tag that are kept.
MOST: Final = 200

#: A record from the future by more than this was written under another clock. Seconds.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class AgeRule:
    """Of one route. `minimum` in seconds, 0: whatever upstream says is served at once.

    `serve_new`: the first digest ever seen of a tag counts as old enough; otherwise a new tag is refused at first.
    """

    minimum: float = 0.0
    serve_new: bool = False


class TagOverride(Enum):
    """Why a tag answers another digest than upstream says."""

    FROZEN = "frozen"
    TOO_NEW = "minimum-age"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve; None: nothing is old enough. `newest_from` is when the newest will be, `any_from` when the first
    of all will be or was (epoch seconds).
    """

    serve: Sighting | None
    newest: Sighting
    newest_from: float
    any_from: float

    @property
    def held_back(self) -> bool:
        """Whether the newest is not what is served."""
        return self.serve is not self.newest


def recalled(history: Sequence[Sighting], record: TagRecord | None, now: float) -> tuple[Sighting, ...]:
    """The history with what the tag's record knows besides: how long the newest was confirmed, or one that it lacks,
    because it began later or could not be written. A record older than the newest sighting knows nothing.
    """
    last = history[-1] if history else None
    if record is None or (last and record.digest != last.digest and record.fetched_at <= last.first_seen):
        return tuple(history)
    if last and record.digest == last.digest:
        confirmed = record.fetched_at if record.fetched_at <= now + _CLOCK_SLACK else last.last_seen
        return (*history[:-1], replace(last, last_seen=max(last.last_seen, confirmed)))
    return (*history, Sighting(record.digest, record.media_type, record.size, record.fetched_at, record.fetched_at))


def learned(history: Sequence[Sighting], said: TagRecord) -> tuple[Sighting, ...]:
    """The history after this answer of upstream. One that is known already adds nothing."""
    last = history[-1] if history else None
    if last and last.digest == said.digest:
        return tuple(history)
    # nothing is older than what came before it, whatever the clock says
    at = max(said.fetched_at, last.last_seen) if last else said.fetched_at
    return (*history, Sighting(said.digest, said.media_type, said.size, at, at))


def has_moved(before: Sequence[Sighting], after: Sequence[Sighting]) -> bool:
    """Whether there is something to write: who was merely seen again is not."""
    return [one.digest for one in before] != [one.digest for one in after]


def trimmed(history: Sequence[Sighting], keep: Collection[Digest] = (), most: int = MOST) -> tuple[Sighting, ...]:
    """The newest `most`, and the first sighting of each digest in `keep`, however old: what is served is not forgotten.

    Else a tag could be moved so often that its last good digest is lost.
    """
    saved: dict[Digest, Sighting] = {}
    for one in history[:-most]:
        if one.digest in keep:
            saved.setdefault(one.digest, one)
    return (*saved.values(), *history[-most:])


def choose(
    history: Sequence[Sighting],
    rule: AgeRule,
    now: float,
    here_since: Callable[[Digest], float | None] = lambda _: None,
) -> Choice:
    """The newest sighting whose digest was first seen at least the minimum age ago. `history` is not empty.

    `here_since` tells since when the repository has a manifest by its digest, from whatever tag it came.
    """
    newest = history[-1]
    first_seen: dict[Digest, float] = {}
    for one in history:
        first_seen.setdefault(one.digest, one.first_seen)

    def old_from(digest: Digest) -> float:
        here = here_since(digest)
        return min(first_seen[digest], first_seen[digest] if here is None else here) + rule.minimum

    newest_from = old_from(newest.digest) if rule.minimum else newest.first_seen
    if not rule.minimum or newest_from <= now:
        return Choice(newest, newest, newest_from, newest_from)
    any_from = newest_from
    for one in reversed(history[:-1]):
        one_from = old_from(one.digest)
        if one_from <= now:
            return Choice(one, newest, newest_from, one_from)
        any_from = min(any_from, one_from)
    if not rule.serve_new:
        return Choice(None, newest, newest_from, any_from)
    oldest = history[0]
    return Choice(newest if oldest.digest == newest.digest else oldest, newest, newest_from, any_from)


def pointed_to(history: Sequence[Sighting], when: float) -> Sighting | None:
    """What the tag pointed to at a time (epoch seconds), as far as this mirror knew; None: it did not know it yet."""
    return next((one for one in reversed(history) if one.first_seen <= when), None)
