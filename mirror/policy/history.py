"""The digests that a tag has pointed to, and which of them may be served: a cooldown against tampered releases.

    digest seen ── the route's minimum age passes ──> old enough ──> served, until a newer digest is old enough
     └── upstream moves the tag back before that ──> the earlier digest is served all the time

The age of a digest counts from the time when this mirror first saw it, because the dates in an image are written by its
builder. A wrong clock must not make a digest seem older. A digest that was first seen "in the future" is not old. Ages
are judged by the earlier of two clocks, and sightings are dated by the later one (`intake/tag_history.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from mirror.oci.digest import Digest
from mirror.policy.records import Sighting, TagRecord

#: The number of sightings that are kept for one tag.
MOST: Final = 200

#: Seconds. A record dated further in the future was written under a wrong clock.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class AgeRule:
    """The minimum age of one route. `minimum` is in seconds; with 0 every digest is served at once.

    With `serve_new` the first digest ever seen of a tag counts as old enough. Without it a new tag is refused until its
    digest has reached the minimum age.
    """

    minimum: float = 0.0
    serve_new: bool = False


class TagOverride(Enum):
    """Why a tag is answered with another digest than upstream's."""

    FROZEN = "frozen"
    TOO_NEW = "minimum-age"


@dataclass(frozen=True, slots=True)
class Choice:
    """The sighting to serve; None if no digest is old enough.

    `newest_from` is when the newest digest is old enough. `any_from` is when the first of all digests is, or the served
    one was (epoch seconds).
    """

    serve: Sighting | None
    newest: Sighting
    newest_from: float
    any_from: float

    @property
    def held_back(self) -> bool:
        """Whether the newest sighting is not the one that is served."""
        return self.serve is not self.newest


def recalled(history: Sequence[Sighting], record: TagRecord | None, now: float) -> tuple[Sighting, ...]:
    """The history, completed from the tag's record.

    If the record has the newest digest, that sighting's `last_seen` is advanced to the record's time. If the record has
    another digest and is newer, a sighting is added: the history began later, or could not be written. A record that is
    older than the newest sighting adds nothing.
    """
    last = history[-1] if history else None
    if record is None or (last and record.digest != last.digest and record.fetched_at <= last.first_seen):
        return tuple(history)
    if last and record.digest == last.digest:
        confirmed = record.fetched_at if record.fetched_at <= now + _CLOCK_SLACK else last.last_seen
        return (*history[:-1], replace(last, last_seen=max(last.last_seen, confirmed)))
    return (*history, Sighting(record.digest, record.media_type, record.size, record.fetched_at, record.fetched_at))


def learned(history: Sequence[Sighting], answer: TagRecord) -> tuple[Sighting, ...]:
    """The history after this answer of upstream. It grows only if the digest differs from the newest sighting's."""
    last = history[-1] if history else None
    if last and last.digest == answer.digest:
        return tuple(history)
    # a sighting is never older than the one before it, whatever the clock says
    at = max(answer.fetched_at, last.last_seen) if last else answer.fetched_at
    return (*history, Sighting(answer.digest, answer.media_type, answer.size, at, at))


def has_moved(before: Sequence[Sighting], after: Sequence[Sighting]) -> bool:
    """True if the digests changed; a repeated sighting of the newest digest is not written."""
    return [sighting.digest for sighting in before] != [sighting.digest for sighting in after]


def trimmed(history: Sequence[Sighting], keep: Collection[Digest] = (), most: int = MOST) -> tuple[Sighting, ...]:
    """The newest `most` sightings, and the first sighting of each digest in `keep`, however old.

    `keep` protects the digest that is served. Otherwise upstream could move a tag so often that its last good digest is
    lost.
    """
    saved: dict[Digest, Sighting] = {}
    for sighting in history[:-most]:
        if sighting.digest in keep:
            saved.setdefault(sighting.digest, sighting)
    return (*saved.values(), *history[-most:])


def choose(
    history: Sequence[Sighting],
    rule: AgeRule,
    now: float,
    here_since: Callable[[Digest], float | None] = lambda _: None,
) -> Choice:
    """Choose the newest sighting whose digest was first seen at least the minimum age ago. `history` is not empty.

    `here_since` gives the time since which the repository has had a manifest, under any tag; None if it has not.
    """
    newest = history[-1]
    first_seen: dict[Digest, float] = {}
    for sighting in history:
        first_seen.setdefault(sighting.digest, sighting.first_seen)

    def old_from(digest: Digest) -> float:
        here = here_since(digest)
        return min(first_seen[digest], first_seen[digest] if here is None else here) + rule.minimum

    newest_from = old_from(newest.digest) if rule.minimum else newest.first_seen
    if not rule.minimum or newest_from <= now:
        return Choice(newest, newest, newest_from, newest_from)
    any_from = newest_from
    for sighting in reversed(history[:-1]):
        old_since = old_from(sighting.digest)
        if old_since <= now:
            return Choice(sighting, newest, newest_from, old_since)
        any_from = min(any_from, old_since)
    if not rule.serve_new:
        return Choice(None, newest, newest_from, any_from)
    oldest = history[0]
    return Choice(newest if oldest.digest == newest.digest else oldest, newest, newest_from, any_from)


def pointed_to(history: Sequence[Sighting], when: float) -> Sighting | None:
    """What the tag pointed to at `when` (epoch seconds), as this mirror saw it; None if it did not know the tag yet."""
    return next((sighting for sighting in reversed(history) if sighting.first_seen <= when), None)
