"""What a round of collection has done, and what it left."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, Moment

#: The most things that a report names as unread.
_MOST_NAMED: Final = 50
#: The most things that a report names as waiting.
_MOST_WAITING: Final = 100


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be read, and therefore kept everything that it may name."""

    what: str
    reason: str


@dataclass(slots=True, kw_only=True)
class UnreadNotes:
    """What a round could not read: how much, and the first of it."""

    unread_count: int = 0
    unread: list[Unread] = field(default_factory=list)

    def note_unread(self, what: str, reason: str) -> None:
        """Notes something that cannot be read, and so keeps what it may name."""
        self.unread_count += 1
        if len(self.unread) < _MOST_NAMED:
            self.unread.append(Unread(what, reason))


@dataclass(frozen=True, slots=True)
class WaitingContent:
    """Something that will be collected unless a client relies on it again: a `link`, the `bytes` of a blob, or a
    deleted `manifest` that can be undeleted until then. Times are in epoch seconds, `size` is in bytes.
    """

    __pydantic_config__ = CAMEL_CASE

    kind: str
    digest: DigestField
    size: int
    since: Moment
    why: str
    may_go_at: Moment
    repository: str | None = None


@dataclass(slots=True)
class CollectionReport(UnreadNotes):
    """One round. Times are in epoch seconds, sizes in bytes.

    `complete` is true if every repository was read, so that bytes could be judged. `more` is true if bytes that have
    waited long enough were left to the next round.
    """

    __pydantic_config__ = CAMEL_CASE

    begun_at: Moment
    ended_at: Moment | None = None
    complete: bool = False
    more: bool = False
    repositories: int = 0
    manifests: int = 0
    #: Links that began to wait, and links that are gone.
    links_queued: int = 0
    links: int = 0
    #: Blobs whose bytes began to wait, blobs whose bytes are gone, and how many bytes that was.
    blobs_queued: int = 0
    blobs: int = 0
    bytes: int = 0
    #: Deletions that can no longer be undone, and referrers whose subject was gone.
    deletions: int = 0
    referrers: int = 0
    #: What waits at the end of the round, and since when at the longest.
    waiting_links: int = 0
    waiting_blobs: int = 0
    waiting_bytes: int = 0
    waiting_since: Moment | None = None
    #: What of all that waits may go first.
    waiting: list[WaitingContent] = field(default_factory=list)

    def note_waiting(self, waiting: WaitingContent) -> None:
        """Notes something that waits. A deleted manifest does not count for `waiting_since`."""
        if waiting.kind != "manifest":
            self.waiting_since = min(waiting.since, waiting.since if self.waiting_since is None else self.waiting_since)
        insort(self.waiting, waiting, key=lambda each: each.may_go_at)
        del self.waiting[_MOST_WAITING:]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that is stored."""
        return _REPORT.to_json(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> CollectionReport | None:
        """Reads it back; None if there is none."""
        return _REPORT.from_json(stored)


_REPORT: Final = JsonForm(CollectionReport)
