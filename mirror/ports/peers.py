"""The other replicas of a cluster: who they are, what they are informed of, and the blobs that they have."""

from __future__ import annotations

from collections.abc import Sequence
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

    async def send(self, notice: Notice, *, patience: float) -> Sequence[str]:
        """Returns the members in which the notice has not taken effect within `patience` seconds. Raises nothing."""

    def hint(self, notice: Notice) -> None:
        """Send it behind, and forget it if that fails. May be called from any thread. Raises nothing."""


class PeerBlobs(Protocol):
    """The cached blobs of another replica."""

    def open(
        self, member: str, repo: Repo, digest: Digest, start: int, *, size: int | None, hops: int
    ) -> AbstractAsyncContextManager[Body]:
        """Opens a blob at a member from the offset `start` on; entering the context waits for the head of the answer.

        `size` is the size of the whole blob if the caller knows it: then the member answers at once, and before its
        own source has. `hops` says how many replicas have passed the request on. Raises `UpstreamNotFound` if the
        member may not give it or does not have it, `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamInvalid`.
        """

    async def offset(self, member: str, repo: Repo, digest: Digest) -> int | None:
        """How many bytes of a blob the member has now; None if it fetches none and has none. Raises like `open`."""
