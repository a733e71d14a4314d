"""The history of each tag: which digests it has pointed to, which of them may be served, and whether it is frozen.

    upstream says another digest ── put_tag() ──> one more sighting on the disk ── choose() ──> the digest to serve
    mirror freeze ──> frozen() ──> upstream is not asked, and no history is written, until mirror unfreeze

Writing is repeatable: two processes that learn of the same move write the same history. It happens under the tag's
lock, so that neither of two moves is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Final

from mirror import telemetry
from mirror.clock import steady_time
from mirror.errors import RecordDamaged, StoreError
from mirror.graph.manifests import here_since
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.history import MOST, AgeRule, Choice, choose, has_moved, learned, recalled, trimmed
from mirror.policy.records import Freeze, Sighting, TagRecord
from mirror.ports import Catalog, Freezes

#: Seconds by which the two clocks may differ before a warning is logged.
_CLOCK_SLACK: Final = 60.0


class TamperProofClock:
    """Epoch seconds by two clocks: the wall clock, and a steady clock that counts on from the wall clock's time at the
    start of this process.

    Ages are judged by the earlier of the two and recorded by the later, so a clock that is set forward or back makes
    nothing older. After a restart the wall clock is believed again.
    """

    def __init__(self, now: Callable[[], float], steady: Callable[[], float] = steady_time) -> None:
        self._now = now
        self._steady = steady
        self._began = now() - steady()
        self._warned = False

    def earlier(self) -> float:
        """Returns the earlier time, for judging an age."""
        return min(self._both())

    def later(self) -> float:
        """Returns the later time, for recording a moment."""
        return max(self._both())

    def _both(self) -> tuple[float, float]:
        wall, counted = self._now(), self._began + self._steady()
        if abs(wall - counted) > _CLOCK_SLACK and not self._warned:
            self._warned = True
            telemetry.log.warning("clock jumped", by=round(wall - counted))
        return wall, counted


@dataclass(slots=True)
class TagHistories:
    """The tag histories of all repositories. All calls block briefly."""

    catalog: Catalog
    freezes: Freezes
    clocks: TamperProofClock = field(default_factory=lambda: TamperProofClock(time.time))
    #: Where requests read freezes, if that may mean to wait for a bucket; None: in the threads of the event loop.
    threads: Executor | None = None

    def frozen(self, repo: Repo, tag: str) -> Freeze | None:
        """Returns the freeze of the tag; None if it is not frozen. Raises `StoreError` if that is not certain."""
        return self.freezes.get(repo, tag)

    def known_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """Returns the tag's last record; None if there is none. A damaged record counts as none: the next one replaces
        it.

        Raises `StoreError` if the record cannot be read: an unreadable tag is not an unknown one.
        """
        try:
            return self.catalog.get_tag(repo, tag)
        except RecordDamaged as error:
            telemetry.log.warning("tag record damaged", repository=str(repo), tag=tag, reason=str(error))
            return None

    def put_tag(self, repo: Repo, was: TagRecord | None, fresh: TagRecord, rule: AgeRule) -> Digest | None:
        """Writes upstream's new record; `was` is the previous one. Returns the digest that the tag pointed to before;
        None if the tag did not move. Raises `StoreError`.

        The history is written before the record, so that a crash in between does not lose the move.
        """
        before = self.record_move(repo, was, fresh, rule)
        self.catalog.put_tag(repo, fresh)
        return before

    def record_move(self, repo: Repo, was: TagRecord | None, fresh: TagRecord, rule: AgeRule) -> Digest | None:
        """Writes the history of a tag whose record becomes, or has become, `fresh`; otherwise like `put_tag`."""
        now = self.clocks.later()
        before = self.catalog.get_history(repo, fresh.tag)
        history = recalled(before, was, now)
        after = learned(history, replace(fresh, fetched_at=now))
        if has_moved(before, after):
            served = self._served(repo, fresh.tag, history, rule) if len(after) > MOST else ()
            self.catalog.put_history(repo, fresh.tag, trimmed(after, served))
        previous = was.digest if was else history[-1].digest if history else None
        return previous if previous != fresh.digest else None

    def choose(self, repo: Repo, record: TagRecord, rule: AgeRule) -> Choice:
        """Returns what to serve for a tag whose last known answer of upstream is `record`. Raises `StoreError`."""
        now = self.clocks.earlier()
        return self._choose(repo, recalled(self.catalog.get_history(repo, record.tag), record, now), rule, now)

    def answer(self, repo: Repo, tag: str, rule: AgeRule) -> Digest | None:
        """Returns the digest that the tag answers by what is known here, without asking upstream; None if there is none
        to serve. Raises `StoreError`.
        """
        if freeze := self.frozen(repo, tag):
            return freeze.digest
        record = self.catalog.get_tag(repo, tag)
        if record is None or not rule.minimum:
            return record.digest if record else None
        served = self.choose(repo, record, rule).serve
        return served.digest if served else None

    def _choose(self, repo: Repo, history: Sequence[Sighting], rule: AgeRule, now: float) -> Choice:
        return choose(history, rule, now, here_since(self.catalog, repo))

    def _served(self, repo: Repo, tag: str, history: Sequence[Sighting], rule: AgeRule) -> set[Digest]:
        """Returns the digests that must stay in the history, however long it gets: those now served or frozen."""
        served = set()
        if choice := self._choose(repo, history, rule, self.clocks.earlier()).serve:
            served.add(choice.digest)
        try:
            if freeze := self.freezes.get(repo, tag):
                served.add(freeze.digest)
        except StoreError as error:
            telemetry.log.warning("freeze cannot be read", repository=str(repo), tag=tag, reason=str(error))
            # the tag may be frozen at any of the digests
            served.update(sighting.digest for sighting in history)
        return served
