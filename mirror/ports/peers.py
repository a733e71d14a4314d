"""The other replicas of a cluster: who they are, what they are informed of, and the blobs that they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports.streams import Body


class Members(Protocol):
    """The replicas of the cluster, by the addresses of their internal listeners (`http://10.0.0.1:5001`)."""

    @property
    def own(self) -> str:
        """The address of this replica."""

    def all(self) -> Sequence[str]:
        """The addresses of all members, also of this replica, sorted. Quick: what was last known."""

    def is_up(self, member: str) -> bool:
        """False while this process leaves a member alone because it did not answer. Quick."""


class Liveness(Protocol):
    """Which members answer, as this process has seen it. May be asked from any thread; nothing here takes long.

    A member that does not answer is left alone for a while; then one call is let through.
    """

    def admit(self, member: str) -> int | None:
        """A ticket for one call, to be handed back to `answered`, `failed` or `withdraw`; None: leave it alone."""

    def answered(self, member: str, ticket: int, seconds: float | None = None) -> None:
        """The member has answered, whatever it said, so many seconds after it was asked (None: it had to wait for
        others before).
        """

    def failed(self, member: str, ticket: int, reason: str) -> None:
        """The member could not be reached, or has not answered in time."""

    def withdraw(self, member: str, ticket: int) -> None:
        """The caller gave the call up, which says nothing about the member."""

    def first_byte(self, member: str) -> float | None:
        """The seconds within which nine of ten of its last answers came; None if there were none."""


@dataclass(frozen=True, slots=True)
class Purge:
    """An image that an operator has purged from the cache: the order that each replica carries out on its own disk."""

    id: str
    repo: Repo
    tags: tuple[str, ...]
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """What a replica informs the others of: hosted repositories that have changed, kinds of JSON records that have
    (`freezes`, `pins`, `robots`), and content that was purged. Only purges must arrive; the others are hints.
    """

    repositories: tuple[Repo, ...] = ()
    kinds: tuple[str, ...] = ()
    purges: tuple[Purge, ...] = ()


class Notices(Protocol):
    """Informs the other replicas."""

    async def send(self, notice: Notice, *, patience: float, to: Sequence[str] | None = None) -> Sequence[str]:
        """Returns the members in which the notice has not taken effect within `patience` seconds, of those in `to`, or
        of all others. Raises nothing.
        """

    def hint(self, notice: Notice) -> None:
        """Send it behind, and forget it if that fails. May be called from any thread. Raises nothing."""


class OrderedPurges(Protocol):
    """The purges that were ordered in the cluster. A replica that was away carries them out before it gives cached
    content away, and takes none that another one may not have purged yet.
    """

    def require(self) -> None:
        """Blocking: returns once this process knows the orders of the last seconds. Raises `StoreError`."""

    def require_heeded(self) -> None:
        """Blocking: the same, and this replica has carried them out. Raises `BucketUnavailable` if it has not yet."""

    def is_withheld(self, repo: Repo, reference: Digest | str) -> bool:
        """True for a tag or manifest whose purge is not confirmed by all, as last seen. Quick."""

    def may_keep(self, member: str, repo: Repo) -> bool:
        """True if a member has not confirmed a purge in this repository, as last seen. Quick."""


class PeerBlobs(Protocol):
    """The cached blobs of other replicas. Every failure that another source may not have is an `UpstreamError`."""

    def open(
        self,
        member: str,
        repo: Repo,
        digest: Digest,
        start: int,
        stop: int | None = None,
        *,
        size: int | None,
        hops: int,
        heard: Callable[[], None],
        part: bool = False,
    ) -> AbstractAsyncContextManager[Body]:
        """Opens a blob at a member from the offset `start` up to, but not including, `stop` (None: to its end; a member
        may send more than asked). Entering the context waits for the first byte, however long that takes; `heard` is
        called on the event loop before that, when the head of the answer has come.

        `size` is the size of the whole blob if the caller knows it: then the member sends the head at once, before its
        own source has answered. `hops` counts the replicas that wait for the answer. `part`: a small part, which
        may come out of turn, and unverified. Raises `UpstreamNotFound` if the
        member does not have the blob, or may not give it; `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamInvalid`.
        """

    async def offset(self, member: str, repo: Repo, digest: Digest) -> int | None:
        """How many bytes of a blob, from its start, the member would send now, asked on a new connection; None if it
        neither has the blob nor fetches it. Raises like `open`. The caller limits the time.
        """
