"""What pushes and deletions work on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mirror.errors import StoreError
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.ports import SILENCE, Announcer, Catalog, HostedBlobs, HostedRecords, Look, RepairableBlobs

T = TypeVar("T")
R = TypeVar("R")


class AtOnce(Protocol):
    """Does the same work for several things, if possible at the same time. All calls block."""

    def __call__(self, work: Callable[[T], R], things: Iterable[T]) -> Iterable[R]:
        """The results, in the order of the things. Raises what the work raises."""


def one_by_one(work: Callable[[T], R], things: Iterable[T]) -> Iterable[R]:
    """`AtOnce` for records on a disk, where waiting is shorter than changing threads."""
    return map(work, things)


class Accounts(Protocol):
    """Compares what hosted repositories have with their quotas. All calls block for a short time."""

    def check(self, repo: Repo, size: int, digest: Digest | None = None) -> None:
        """Returns if `size` more bytes fit. Raises `QuotaExceeded`."""

    def allow(self, repo: Repo, size: int) -> None:
        """Like `check`, for an upload that has `size` bytes so far. Cheap: called while they arrive."""

    def link(self, repo: Repo, digest: Digest, size: int) -> None:
        """Notes content of `size` bytes that the repository has now, after its record was written. Repeatable.

        Raises `QuotaExceeded` if it does not fit; it is not noted then.
        """

    def unlink(self, repo: Repo, digest: Digest) -> None:
        """Notes that the repository no longer has the content. Repeatable."""


@dataclass(frozen=True, slots=True)
class PulledParts:
    """What pulls of hosted repositories read.

    While a bucket cannot be asked, the records may be those that are remembered: they answer pulls, and neither give
    anybody a lasting right nor decide about a change. What does takes `HostedParts`.
    """

    contents: RepairableBlobs
    catalog: Catalog
    records: HostedRecords
    histories: TagHistories
    #: Where requests read them, if that may mean to wait for a bucket; None: in the threads of the event loop.
    threads: Executor | None = None
    #: In a cluster, awaited before anything is read: what to think of what is remembered of the repository.
    look: Callable[[Repo], Awaitable[Look]] | None = None

    def now(self) -> float:
        """Returns the time to record, in epoch seconds."""
        return self.histories.clocks.later()


@dataclass(frozen=True, slots=True)
class HostedParts:
    """The bytes and records of all hosted repositories. `contents` has the bytes of hosted and of cached blobs."""

    contents: RepairableBlobs
    blobs: HostedBlobs
    catalog: Catalog
    records: HostedRecords
    histories: TagHistories
    accounts: Accounts
    immutable: ImmutableTags
    #: Seconds for which content that nothing names stays (`hosting.grace`).
    grace: float = 86400.0
    #: Who is informed of changes.
    events: Announcer = SILENCE
    #: How what concerns many blobs or manifests is looked up.
    at_once: AtOnce = one_by_one
    #: See `PulledParts`.
    threads: Executor | None = None
    #: Raises `StoreError` if the clock is known to be too wrong for moments that other replicas judge. Quick.
    check_clock: Callable[[], None] = lambda: None

    def now(self) -> float:
        """Returns the time to record, in epoch seconds. Raises `StoreError` if it would be wrong."""
        self.check_clock()
        return self.histories.clocks.later()

    def pulled(self) -> PulledParts:
        """The same, for pulls."""
        return PulledParts(self.contents, self.catalog, self.records, self.histories, self.threads)

    def settle(self, repo: Repo) -> None:
        """Blocking: makes all that this process has written durable, and lets every process see that the repository has
        changed. Raises `StoreError`; the change is seen nevertheless.
        """
        with self.noted(repo):
            pass

    @contextmanager
    def noted(self, repo: Repo, is_changed: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Blocking: what is written inside is durable afterwards, and every process sees it if `is_changed`, also what
        is left of it after an error. Events are to be reported afterwards: whoever gets one may pull at once, from any
        worker. Raises `StoreError`; an error inside goes before that.
        """
        try:
            yield
            self.flush()
        except BaseException as error:
            if is_changed():
                try:
                    self.records.note_change(repo)
                except StoreError as another:
                    error.add_note(str(another))
            raise
        if is_changed():
            self.records.note_change(repo)

    def flush(self) -> None:
        """Blocking: makes all that this process has written durable. Raises `StoreError`."""
        self.blobs.flush()
        self.records.flush()
        self.catalog.flush()
