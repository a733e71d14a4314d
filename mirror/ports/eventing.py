"""Events of changes: written down with the change, delivered later. All calls block for a short time unless said.

The life cycle of a change, as whoever makes it goes through it:

    begin() ── durable ──> prepared ── turn(): the change becomes visible ── flush ── done() ── durable ──> events wait
                              └── an error, or the process dies ──> the records say what is there, and that is reported

`begin` comes before the first write that anybody can see, and `done` before the client is answered. So no change that
was acknowledged lacks its events, and no event reports what is not there. Events of one repository are delivered in
the order of their turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, Event, HostedChange


class Announcement(Protocol):
    """The events of one change that is being made. Whoever has begun it calls `end`, whatever happens."""

    def turn(self) -> AbstractContextManager[None]:
        """Excludes the turns of other changes of the repository, in all processes: inside, what is changed becomes
        visible. For a few writes only.
        """

    def done(self, before: Mapping[str, Digest] | None = None, tags: Sequence[str] | None = None) -> None:
        """To be called when all is durable: from now on the events are delivered. `before` has what the tags that moved
        pointed to; `tags` are those that were written, if they are not all. Never raises: if the events cannot be
        confirmed now, they are confirmed later.
        """

    def end(self) -> None:
        """Without `done`, reports what the records show of the change. Repeatable, never raises."""


class Announcer(Protocol):
    """Reports changes of hosted repositories to those who have subscribed to them."""

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        """Writes down that a change is about to be made. Durable on return. `describe` is called if anybody has
        subscribed to such changes; it may raise. Raises `StoreError`: then the change must not be made.
        """


class _Silence:
    """An announcement, and an announcer, of changes that nobody has subscribed to."""

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        return self

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def done(self, before: Mapping[str, Digest] | None = None, tags: Sequence[str] | None = None) -> None:
        pass

    def end(self) -> None:
        pass

    def __repr__(self) -> str:
        return "<_Silence>"


#: Reports nothing, and costs nothing.
SILENCE: Final = _Silence()


class Notices(Protocol):
    """Reports what is no change of a hosted repository, such as damage. Best effort: a crash may lose it."""

    def note(self, event: Event) -> None:
        """Never blocks, never raises. From any thread."""
