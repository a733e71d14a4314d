"""What this process remembers of the records of hosted repositories, for as long as they do not change.

Each change of a repository raises a counter, for every process. A record is remembered with the count that was read
before the record. So a deletion is seen by the next request, in whichever worker, and costs a hit one `stat`. What is
remembered is also forgotten after some seconds: a process may die between a change and the count.

In a cluster other replicas change repositories, too: whoever asks has looked at the journal before, which raises the
counter, or says that nothing counts that is remembered now.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from mirror.aio.bounded_threads import in_thread
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.oci.reference import Repo
from mirror.ports import Look

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: Seconds for which a record is believed without a change of its repository.
_BELIEVED: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Read(Generic[T]):
    """A record that was read at `at` (epoch seconds), when the repository had changed `changes` times."""

    record: T
    changes: int
    at: float


@dataclass(frozen=True, slots=True)
class Remembrance(Generic[T]):
    """A record as it is remembered now. `is_true` says at any later time whether it would still be answered."""

    record: T
    count: int
    _at: float
    _changes: Callable[[], int]
    _now: Callable[[], float]

    def is_fresh(self) -> bool:
        """True if it was read lately enough to be believed, unless the repository has changed."""
        return 0 <= self._now() - self._at < _BELIEVED

    def is_true(self) -> bool:
        """True if `Remembered.get` would answer it without reading. Costs a look at the count of changes."""
        return self.is_fresh() and self._changes() == self.count >= 0


class Remembered(Generic[K, T]):
    """Records of one kind, of all hosted repositories."""

    def __init__(
        self,
        kind: str,
        changes: Callable[[Repo], int],
        once: SingleFlight,
        now: Callable[[], float],
        *,
        most: int,
        weight: Callable[[T], int] | None = None,
        threads: Executor | None = None,
    ) -> None:
        """`changes` gives the count of a repository, -1 if it cannot be read. `most` is in units of `weight` (None: in
        records). Records are read in `threads` (None: in those of the event loop).
        """
        self._threads = threads
        self._kind = kind
        self._changes = changes
        self._once = once
        self._now = now
        self._read: LruCache[tuple[Repo, K], _Read[T]] = LruCache(
            most, (lambda read: weight(read.record)) if weight else (lambda _: 1), name=kind
        )

    def __repr__(self) -> str:
        return f"<Remembered {self._kind} {len(self._read)}>"

    async def get(self, repo: Repo, key: K, read: Callable[[], T], *, look: Look = Look.COUNTS) -> T:
        """Returns the record, from memory if it is still true. `read` blocks; it is called in a thread. `look` says
        what the journal of the repository does. Raises what `read` raises.
        """
        if look is not Look.COUNTS:
            return await in_thread(self._threads, read)
        changes, now = self._changes(repo), self._now()
        seen = self._read.get((repo, key))
        if seen is not None and seen.changes == changes and 0 <= now - seen.at < _BELIEVED:
            return seen.record
        if changes < 0:
            return await in_thread(self._threads, read)
        # the key has the count: a read that began before a change must not answer those who ask after it
        record: T = await self._once.run((self._kind, repo, key, changes), lambda: in_thread(self._threads, read))
        self._read[repo, key] = _Read(record, changes, now)
        return record

    def remembrance(self, repo: Repo, key: K) -> Remembrance[T] | None:
        """Returns the record as it is remembered; None if it would have to be read now."""
        seen = self._read.get((repo, key))
        if seen is None:
            return None
        found = Remembrance(seen.record, seen.changes, seen.at, partial(self._changes, repo), self._now)
        return found if found.is_true() else None
