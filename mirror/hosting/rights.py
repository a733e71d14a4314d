"""Where a caller who pushes could pull a blob from, so that it need not be uploaded again.

The ledger and the index know candidates: hosted repositories that link the blob, cached ones that may serve it. Neither
decides. A candidate counts if the rules let the caller pull from it and if the truth confirms it:

    hosted repository    its link, in force; and the bytes
    cached repository    its grant; and the bytes in the cache, with the size that the grant has

Repositories that the caller may not pull from cost no look at the disk, only one at the rules. How long an answer takes
must not tell a caller that such a repository has the blob. So the rules are asked about at least four names, if need be
about stand-ins, and the ledger and the index once each. Only a blob with more holders than that, such as a layer of a
base image, costs more: some microseconds for each. More stand-ins would hide more, and cost every push of a new layer
as much. What differs besides is the reading of the names that were found: microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from mirror.aio.batches import batches
from mirror.aio.bounded_threads import in_thread
from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordDamaged
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.intake.grants import Grants
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import LinkState
from mirror.ports import Blobs

#: Return repositories that may have a blob, at most so many. Raise `IndexUnavailable`.
Holders = Callable[[Digest, int], Awaitable[Sequence[Repo]]]
BlockingHolders = Callable[[Digest, int], Sequence[Repo]]

#: Repositories of each kind that are judged at first, and at most: a caller may often pull the first ones.
_FEW: Final = 8
_MANY: Final = 5000
#: Names that no repository has, about which the rules are asked in place of repositories that have the blob.
_NOWHERE: Final = "stand-in.invalid"
_STAND_INS: Final = tuple(Repo(_NOWHERE, f"stand-in-{number}") for number in range(4))
#: Repositories that are judged in one turn of the event loop.
_JUDGED: Final = 200


class Sources:
    """Finds repositories that have a blob."""

    def __init__(
        self,
        parts: HostedParts,
        links: Links,
        hosted: BlockingHolders,
        cached: Holders,
        grants: Grants,
        cache: Blobs,
        integrity: Integrity,
        *,
        is_hosted: Callable[[str], bool],
    ) -> None:
        """`hosted` and `cached` say which repositories of each kind may have a blob. `is_hosted` says whether this
        mirror hosts a registry.
        """
        self._parts = parts
        self._links = links
        self._hosted = hosted
        self._cached = cached
        self._grants = grants
        self._cache = cache
        self._integrity = integrity
        self._is_hosted = is_hosted

    def __repr__(self) -> str:
        return "<Sources>"

    def first_hosted(self, digest: Digest) -> Sequence[Repo]:
        """Blocking: the hosted repositories that `find` looks at first, for callers that have a thread anyway."""
        # without an answer, the client uploads what it could have reserved
        with suppress(IndexUnavailable):
            return self._hosted(digest, _FEW)
        return ()

    async def find(
        self, digest: Digest, may_pull: Callable[[Repo], bool], first: Sequence[Repo] | None = None
    ) -> int | None:
        """Returns the size of a blob that the caller may pull from any repository here; None if there is none. `first`
        is the answer of `first_hosted`, if it was asked already. Raises `StoreError` if that cannot be said.
        """
        seen: set[Repo] = set()
        for most in (_FEW, _MANY):
            found, are_all = await self._candidates(digest, most, first if most == _FEW else None)
            candidates = [repo for repo in found if repo not in seen]
            # all of them are judged, and as many for a blob that nobody has
            allowed = []
            for step in batches((*candidates, *_STAND_INS[len(candidates) :]), _JUDGED):
                allowed += [repo for repo in step if may_pull(repo) and repo.registry != _NOWHERE]
                if len(candidates) > _JUDGED:
                    # other requests are answered meanwhile
                    await asyncio.sleep(0)
            for repo in allowed:
                if (size := await self.size(repo, digest)) is not None:
                    return size
            if are_all:
                return None
            seen.update(candidates)
        return None

    async def _candidates(self, digest: Digest, most: int, first: Sequence[Repo] | None) -> tuple[Iterable[Repo], bool]:
        """Returns up to `most` repositories of each kind, and whether these are all."""
        hosted: Sequence[Repo] = ()
        cached: Sequence[Repo] = ()
        # without an answer, the client uploads what it could have reserved
        with suppress(IndexUnavailable):
            hosted = await asyncio.to_thread(self._hosted, digest, most) if first is None else first
        with suppress(IndexUnavailable):
            cached = await self._cached(digest, most)
        return dict.fromkeys((*hosted, *cached)), len(hosted) < most and len(cached) < most

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size of a blob that this repository has, in bytes; None if it has not. Raises `StoreError`."""
        if self.hosts(repo):
            return await in_thread(self._parts.threads, self.size_now, repo, digest)
        granted = await self._grants.size(repo, digest)
        if granted is None:
            return None
        try:
            info = await asyncio.to_thread(self._cache.stat, digest)
            await self._integrity.check(info, granted)
        except (BlobUnknown, BlobDamaged):
            return None
        return info.size

    def hosts(self, repo: Repo) -> bool:
        """True of a hosted repository: `size_now` may be asked about it."""
        return self._is_hosted(repo.registry)

    def size_now(self, repo: Repo, digest: Digest) -> int | None:
        """Blocking: like `size`, of a hosted repository."""
        try:
            link = self._links.find(repo, digest)
        except RecordDamaged:
            # nobody could pull it from there
            return None
        if link is None or link.state is not LinkState.LINKED:
            return None
        try:
            info = self._parts.contents.stat(digest)
        except BlobUnknown:
            return None
        return info.size if info.size == link.size else None
