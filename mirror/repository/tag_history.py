"""What the tags of all repositories have pointed to: learnt, judged by the minimum age, or frozen.

    upstream says another digest ── put_tag() ──> a sighting more, on the disk ── choose() ──> what is served now
    mirror freeze ──> frozen() ──> upstream is not asked, and nothing is learnt, until mirror unfreeze

Learning is repeatable: two processes that hear of the same move write the same history. It takes place under the tag's
lock, so that of two moves none is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mirror import telemetry
from mirror.errors import RecordDamaged, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.history import MOST, AgeRule, Choice, choose, has_moved, learned, recalled, trimmed
from mirror.policy.records import Freeze, Sighting, TagRecord
from mirror.ports import Catalog, Freezes

__all__ = ["TagHistories", "TamperProofClock", "steady_time"]

#: Seconds by which the two clocks may differ before it is said.
_CLOCK_SLACK: Final = 60.0


def steady_time() -> float:
    """Seconds that nobody can set; they go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TamperProofClock:
    """Epoch seconds by the wall clock, and by counting on from what it said when this process began.

    Who judges an age takes the earlier, who writes one down the later: a clock that is set, forward or back, makes
    nothing older. A restart believes the wall clock again.
    """

    def __init__(self, now: Callable[[], float], steady: Callable[[], float] = steady_time) -> None:
        self._now = now
        self._steady = steady
        self._began = now() - steady()
        self._told = False

    def earlier(self) -> float:
        """For judging."""
        return min(self._both())

    def later(self) -> float:
        """For writing down."""
        return max(self._both())

    def _both(self) -> tuple[float, float]:
        wall, counted = self._now(), self._began + self._steady()
        if abs(wall - counted) > _CLOCK_SLACK and not self._told:
            self._told = True
            telemetry.log.warning("the clock was set; minimum ages are counted without that", by=round(wall - counted))
        return wall, counted


@dataclass(slots=True)
class TagHistories:
    """All calls block shortly."""

    catalog: Catalog
    freezes: Freezes
    clocks: TamperProofClock = field(default_factory=lambda: TamperProofClock(time.time))

    def frozen(self, repo: Repo, tag: str) -> Freeze | None:
        """Raises `StoreError` where that cannot be told."""
        return self.freezes.get(repo, tag)

    def known_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """What the tag was last seen to point to. A damaged record counts as none: the next one replaces it.

        Raises `StoreError` if that cannot be told: a tag that cannot be read is not one that nobody has asked for.
        """
        try:
            return self.catalog.get_tag(repo, tag)
        except RecordDamaged as error:
            telemetry.log.warning("a tag's record is damaged", repository=str(repo), tag=tag, reason=str(error))
            return None

    def put_tag(self, repo: Repo, was: TagRecord | None, said: TagRecord, rule: AgeRule) -> Digest | None:
        """Upstream has `said` what the tag points to; `was` is what was known. The other digest that it pointed to
        before; None: it did not move. Raises `StoreError`.

        The history comes first: after a crash in between, the next answer finds it written.
        """
        before = self._learn(repo, was, said, rule)
        self.catalog.put_tag(repo, said)
        return before

    def _learn(self, repo: Repo, was: TagRecord | None, said: TagRecord, rule: AgeRule) -> Digest | None:
        now = self.clocks.later()
        before = self.catalog.get_history(repo, said.tag)
        known = recalled(before, was, now)
        after = learned(known, replace(said, fetched_at=now))
        if has_moved(before, after):
            keep = self._served(repo, said.tag, known, rule) if len(after) > MOST else ()
            self.catalog.put_history(repo, said.tag, trimmed(after, keep))
        previous = was.digest if was else known[-1].digest if known else None
        return previous if previous != said.digest else None

    def choose(self, repo: Repo, record: TagRecord, rule: AgeRule) -> Choice:
        """What to serve of a tag whose last known answer of upstream is `record`."""
        now = self.clocks.earlier()
        return self._choose(repo, recalled(self.catalog.get_history(repo, record.tag), record, now), rule, now)

    def answer(self, repo: Repo, tag: str, rule: AgeRule) -> Digest | None:
        """What the tag answers as far as it is known here, without asking upstream. Raises like `frozen`."""
        if freeze := self.frozen(repo, tag):
            return freeze.digest
        record = self.catalog.get_tag(repo, tag)
        if record is None or not rule.minimum:
            return record.digest if record else None
        served = self.choose(repo, record, rule).serve
        return served.digest if served else None

    def _choose(self, repo: Repo, history: Sequence[Sighting], rule: AgeRule, now: float) -> Choice:
        return choose(history, rule, now, lambda digest: self._here_since(repo, digest))

    def _here_since(self, repo: Repo, digest: Digest) -> float | None:
        try:
            record = self.catalog.get_manifest(repo, digest)
        except RecordDamaged:
            # since when is lost; then its first sighting counts, which is no earlier
            return None
        return None if record is None else record.fetched_at

    def _served(self, repo: Repo, tag: str, history: Sequence[Sighting], rule: AgeRule) -> set[Digest]:
        """What must stay in the history however long that gets."""
        served = set()
        if choice := self._choose(repo, history, rule, self.clocks.earlier()).serve:
            served.add(choice.digest)
        try:
            if freeze := self.freezes.get(repo, tag):
                served.add(freeze.digest)
        except StoreError as error:
            telemetry.log.warning("a freeze cannot be read", repository=str(repo), tag=tag, reason=str(error))
            # it may be at any of them
            served.update(one.digest for one in history)
        return served
