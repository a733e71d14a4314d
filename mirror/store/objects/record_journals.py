"""The journals of records, as objects in the bucket: `policy/cluster/change_journal.py` draws one.

    writing ── has this replica a young entry? ── no ──> compare-and-set ──> a record is written ──> is it still young?
            ── some seconds without a write ──> compare-and-set: what was written, and no entry any more

    sync ── a conditional read ──> other replicas have entries ──> nothing that is remembered counts
                               └──> none: what was named since then is doubted, and all else counts

So what was acknowledged is seen by the next request at every replica: its record was there before, and the entry, too.
The times are those of the clock of one machine that cannot be set, and no clock is compared with another's:

    20 s    a write begins only if the entry was written or confirmed no longer ago
    30 s    a write has succeeded only if it was no longer ago then; otherwise the entry is confirmed first
    60 s    another replica that has seen the same entry for so long takes it away, and with it what everybody remembers
            of these records: its writer has died, or does not know what happens

A writer that was stopped for longer finds that its entry is gone, and makes another before it says that it has written.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol, TypeAlias

from mirror.clock import steady_time
from mirror.errors import BucketThrottled, BucketUnavailable, IndexUnavailable, RecordChanged, StoreError
from mirror.oci.reference import Repo
from mirror.policy.cluster import journal_names
from mirror.policy.cluster.change_journal import ChangeJournal, UnknownFormat
from mirror.ports import (
    ABSENT,
    JournalMemory,
    JournalPosition,
    NotChanged,
    ObjectLister,
    ObjectReader,
    ObjectWriter,
    Version,
)
from mirror.store.objects.shared_reads import SharedReads
from mirror.store.records.record_keys import repo_from
from mirror.telemetry import log

#: Bytes. No journal is larger.
_LIMIT: Final = 1 << 20
_FRESH: Final = 20.0
_CERTAIN: Final = 30.0
_FORSAKEN: Final = 60.0
#: Seconds without a write after which the entry of this replica ends.
_LINGER: Final = 2.0
#: Seconds between two looks at the entries of this replica.
_EVERY: Final = 0.5
#: Seconds for which nobody waits for a bucket that did not answer, unless it must.
_DOWN: Final = 5.0
#: Seconds: nobody accepts a look that is older than the freshness and this.
_DOUBTED: Final = 5.0
_ATTEMPTS: Final = 40
_FIRST_WAIT: Final = 0.02
_LAST_WAIT: Final = 1.0
#: Stands for the replicas that a damaged journal may have had entries of.
_UNREADABLE: Final = "?"
#: Stands for those of a journal of another format: what they write is asked for until somebody else has ended it.
_UNKNOWN: Final = "unknown"

#: What a journal becomes, and the keys that this replica has named in it; None: it stays as it is.
_Step: TypeAlias = "Callable[[ChangeJournal], tuple[ChangeJournal, Collection[str]] | None]"


class JournalObjects(ObjectReader, ObjectWriter, ObjectLister, Protocol):
    """What journals need of a bucket."""


class JournalFollowing:
    """Whether this process can see what others change, for the log: a line when that ends, and one when it is so again,
    whatever the reasons are meanwhile. May be used from any thread.
    """

    def __init__(self) -> None:
        self._failing = threading.Lock()

    def __repr__(self) -> str:
        return f"<JournalFollowing {'failing' if self._failing.locked() else 'goes on'}>"

    def failed(self, error: Exception) -> None:
        """To be called with the reason whenever the journals could not be looked at."""
        if self._failing.acquire(blocking=False):
            log.warning("journals not followed", reason=str(error))

    def goes_on(self) -> None:
        """To be called whenever they could."""
        with suppress(RuntimeError):
            self._failing.release()
            log.info("journals followed again")


class BucketJournals:
    """See `mirror.ports.RecordJournals`. May be used from any thread; one for all threads of a process."""

    def __init__(
        self,
        bucket: JournalObjects,
        memory: JournalMemory,
        replica: str,
        changed: Callable[[Repo], None],
        *,
        freshness: float = 0.0,
        stale: float = float("inf"),
        ends: bool = True,
        steady: Callable[[], float] = steady_time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`replica` names this replica in journals; its processes share `memory`. `changed` is called with each
        repository whose records others have changed, before anybody can know it. `freshness` is how many seconds a look
        at the bucket is good for pulls, `stale` for how many what it has shown is believed while the bucket does not
        answer. `ends`: a thread ends the entries of this replica; otherwise `settle` does.
        """
        self._bucket = bucket
        self._memory = memory
        self._replica = replica
        self._changed = changed
        self.freshness: Final = freshness
        self._stale = stale
        self._ends = ends
        self._steady = steady
        self._pause = pause
        self._shared: SharedReads[None] = SharedReads()
        #: Is called with the name of a journal when this replica has begun or ended an entry. Raises nothing.
        self.announce: Callable[[str], None] = lambda _: None
        self.following: Final = JournalFollowing()
        self._waking = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        #: Until when nobody waits for the bucket who need not.
        self._down_until = float("-inf")

    def __repr__(self) -> str:
        return f"<BucketJournals of {self._replica}>"

    # ------------------------------------------------------------------------------------------------------- reading

    def sync(self, repo: Repo, age: float = 0.0) -> bool:
        return self.look(journal_names.of_repo(repo), age)

    def sync_kind(self, kind: str, age: float = 0.0) -> bool:
        return self.look(journal_names.of_kind(kind), age)

    def doubt(self, repos: Collection[Repo], kinds: Collection[str]) -> None:
        names = {*map(journal_names.of_repo, repos), *map(journal_names.of_kind, kinds)}
        with suppress(IndexUnavailable):
            # older than anybody accepts who asks the bucket; while it is down, what was seen is still believed
            self._memory.doubt(names, self.freshness + _DOUBTED)

    def look(self, name: str, age: float = 0.0, *, patient: bool = True) -> bool:
        """Like `sync`, for a journal by its name. Unless `patient`, raises `BucketUnavailable` at once while the bucket
        does not answer.
        """
        position = self.position(name)
        if position is None or age <= 0 or not 0 <= self._steady() - position.looked_at < age:
            if patient:
                self._ask(name)
            else:
                self._ask_if_up(name)
            position = self.position(name)
        if position is None:
            return False
        now = self._steady()
        others = position.others.items()
        gone = [each for each, (_, since) in others if now - since > _FORSAKEN and each != _UNKNOWN]
        if gone and self._forsake(name, gone):
            position = self.position(name)
        return position is not None and not position.others

    def young(self, name: str, age: float) -> bool | None:
        """What `look` would return if it need not ask; None if it must. Quick enough for the event loop."""
        position = self.position(name) if age > 0 else None
        if position is None or not 0 <= self._steady() - position.looked_at < age:
            return None
        return not position.others

    def believed(self, name: str) -> None:
        """Raises `BucketUnavailable` if a journal was never seen, or too long ago to believe what is remembered. Quick
        enough for the event loop.
        """
        position = self.position(name)
        if position is None or not 0 <= self._steady() - position.looked_at < self._stale:
            raise BucketUnavailable(
                "the bucket does not answer, and it is not known what other replicas have changed", retry_after=_DOWN
            )

    def not_answered(self) -> None:
        """To be called when the bucket takes too long: for some seconds nobody waits for it who need not."""
        self._down_until = self._steady() + _DOWN

    def is_quiet(self, name: str) -> bool:
        """True if no other replica was writing when this one looked last. Quick enough for the event loop."""
        position = self.position(name)
        return position is not None and not position.others

    def position(self, name: str) -> JournalPosition | None:
        """What is remembered of a journal, None if nothing is. Quick enough for the event loop."""
        with suppress(IndexUnavailable):
            return self._memory.position(name)
        return None

    def list_folders(self, name: str, folders: Collection[str], gaps: int) -> None:
        """See `JournalMemory.list_folders`."""
        with suppress(IndexUnavailable):
            self._memory.list_folders(name, folders, gaps)

    def catch_up(self, prefix: str = journal_names.JOURNALS) -> Sequence[str]:
        """Look at all journals below a prefix that have changed since they were seen last, or that other replicas are
        writing in. Returns the names of all. Raises `StoreError`.
        """
        names = []
        for info in self._bucket.list(prefix):
            names.append(info.key)
            position = self.position(info.key)
            if position is None or not info.version or position.version != info.version or position.others:
                self.look(info.key)
        return names

    def _ask_if_up(self, name: str) -> None:
        if self._steady() >= self._down_until:
            self._ask(name)
            return
        raise BucketUnavailable("the bucket does not answer: what is remembered may be out of date", retry_after=_DOWN)

    def _ask(self, name: str) -> None:
        try:
            self._shared.ask(name, lambda: self._read(name))
        except BucketThrottled:
            # the bucket is there, and other journals can be read
            raise
        except BucketUnavailable:
            self.not_answered()
            raise
        self._down_until = float("-inf")

    def _read(self, name: str) -> None:
        position, began_at = self.position(name), self._steady()
        answer = self._bucket.read(name, _LIMIT, unless=position.version if position else None)
        if answer is None:
            self._learn(name, None, None, began_at)
        elif isinstance(answer, NotChanged):
            content = position.content if position else b""
            self._learn(name, _parsed(content, answer.version), answer.version, began_at)
        else:
            self._learn(name, _parsed(answer.content, answer.version), answer.version, began_at)

    def _learn(
        self,
        name: str,
        journal: ChangeJournal | None,
        version: Version | None,
        began_at: float,
        wrote: Collection[str] | None = None,
    ) -> None:
        path = journal_names.repo_path(name)
        repo = repo_from(path) if path else None

        def changed() -> None:
            if repo is not None:
                self._changed(repo)

        try:
            self._memory.learn(name, journal, version, began_at, wrote=wrote, changed=changed)
        except IndexUnavailable as error:
            raise StoreError(f"it cannot be noted what has changed: {error}") from error

    def _forsake(self, name: str, gone: Collection[str]) -> bool:
        """Take away the entries of replicas of which nothing was heard. False if there are none by now."""

        def step(journal: ChangeJournal) -> tuple[ChangeJournal, Collection[str]] | None:
            position = self.position(name)
            now, others = self._steady(), position.others if position else {}
            left = [each for each in gone if each in others and now - others[each][1] > _FORSAKEN]
            return (journal.forsaken(*left), ()) if left else None

        if not self._change(name, step):
            return False
        log.warning("journal entries of other replicas removed", journal=name, replicas=len(gone))
        return True

    # ------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self, key: str) -> Iterator[None]:
        name = journal_names.of_key(key)
        if name is None:
            yield
            return
        self._enter(name, key, _FRESH)
        yield
        # it is named later than it was written, in an entry that is there
        self._enter(name, key, _CERTAIN)

    def _enter(self, name: str, key: str, fresh: float) -> None:
        for _ in range(_ATTEMPTS):
            try:
                if self._memory.begin(name, key, fresh):
                    return
            except IndexUnavailable as error:
                raise StoreError(f"a record cannot be changed now: {error}") from error
            self._change(name, lambda journal: (journal.begun(self._replica), ()))
            self.announce(name)
            self._wake()
        raise BucketUnavailable(f"{name} is changed all the time")

    def settle(self, name: str, linger: float = _LINGER) -> bool:
        """End the entry of this replica, once it has written nothing for `linger` seconds; confirm it if it must stay.
        True if it is over. Raises `StoreError`.
        """

        def step(journal: ChangeJournal) -> tuple[ChangeJournal, Collection[str]] | None:
            own = self._memory.end(name, linger)
            if own is None or own.seq != journal.writing.get(self._replica, 0):
                return None
            if own.is_all:
                return (journal.ended(self._replica, own.keys), own.keys) if own.keys or own.seq else None
            return journal.forsaken(self._replica), own.keys

        try:
            if self._change(name, step):
                self.announce(name)
                return True
            position = self._memory.position(name)
            if position is not None and _FRESH / 2 < self._steady() - position.confirmed_at < float("inf"):
                self._change(name, lambda journal: (journal.begun(self._replica), ()))
        except IndexUnavailable as error:
            raise StoreError(f"it cannot be noted what was written: {error}") from error
        return False

    def _change(self, name: str, step: _Step) -> bool:
        """Change a journal by compare-and-set. False if `step` leaves it as it is."""
        wait = 0.0
        for attempt in range(_ATTEMPTS):
            if attempt or self.position(name) is None:
                self._pause(wait * random.random())  # noqa: S311 -- nobody must be unable to guess it
                self._read(name)
            wait = min(wait * 2, _LAST_WAIT) or _FIRST_WAIT
            position = self.position(name)
            if position is None:
                raise StoreError(f"{name} cannot be remembered")
            journal = _parsed(position.content, position.version) if position.version else None
            if journal is not None and _UNKNOWN in journal.writing:
                raise BucketUnavailable(f"{name}: {journal.nonce}", retry_after=60.0)
            made = step(journal or ChangeJournal(secrets.token_hex(8)))
            if made is None:
                return False
            began_at = self._steady()
            try:
                version = self._bucket.write(name, made[0].to_json(), expect=position.version or ABSENT)
            except RecordChanged:
                continue
            self._learn(name, made[0], version, began_at, wrote=made[1])
            return True
        raise BucketUnavailable(f"{name} is changed all the time")

    # ------------------------------------------------------------------------------------------------- ending entries

    def _wake(self) -> None:
        with self._waking:
            if self._ends and self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._end_entries, name="journals", daemon=True)
                self._thread.start()

    def _end_entries(self) -> None:
        wait = _EVERY
        while True:
            with self._waking:
                self._waking.wait_for(lambda: self._is_closed, wait)
                if self._is_closed:
                    return
                if not self._own():
                    self._thread = None
                    return
            wait = _EVERY if self.settle_all() else _DOWN

    def settle_all(self, linger: float = _LINGER) -> bool:
        """Settle all journals. False if the bucket did not let it. Raises nothing."""
        failed = False
        for name in self._own():
            try:
                self.settle(name, linger)
            except StoreError as error:
                log.warning("journal entry not ended", journal=name, reason=str(error))
                failed = True
        return not failed

    def _own(self) -> Collection[str]:
        with suppress(IndexUnavailable):
            return self._memory.writing()
        return ()

    def close(self) -> None:
        """End all entries, as far as the bucket answers. Repeatable."""
        with self._waking:
            was_closed, self._is_closed = self._is_closed, True
            self._waking.notify_all()
        if self._thread is not None:
            self._thread.join()
        if not was_closed:
            self.settle_all(0.0)
            self._memory.close()


def _parsed(content: bytes, version: Version | None) -> ChangeJournal:
    """The journal in an object. A damaged one is that of a replica that never writes on; one of another format is that
    of a replica that always writes.
    """
    try:
        journal = ChangeJournal.from_json(content)
    except UnknownFormat as error:
        return ChangeJournal(f"{error} ({version})", writing={_UNKNOWN: 0})
    return journal or ChangeJournal(f"damaged {version}", writing={_UNREADABLE: 0})
