"""Where a caller who pushes could pull a blob from, so that it need not be uploaded again.

The ledger and the index know candidates: hosted repositories that link the blob, cached ones that may serve it. Neither
decides. A candidate counts if the rules let the caller pull from it and if the truth confirms it:

    hosted repository    its link, in force; and the bytes
    cached repository    its grant; and the bytes in the cache, with the size that the grant has

Repositories that the caller may not pull from cost no look at the disk, only one at the rules: with fifty of them, an
answer takes a quarter of a millisecond longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordDamaged
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.intake.grants import Grants
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import LinkState
from mirror.ports import Blobs

#: Returns repositories that may have a blob, at most so many. Raises `IndexUnavailable`.
Holders = Callable[[Digest, int], Awaitable[Sequence[Repo]]]

#: Repositories that are asked about one blob.
_MOST: Final = 50


class Sources:
    """Finds repositories that have a blob."""

    def __init__(
        self,
        parts: HostedParts,
        links: Links,
        holders: Sequence[Holders],
        grants: Grants,
        cache: Blobs,
        integrity: Integrity,
        *,
        is_hosted: Callable[[str], bool],
    ) -> None:
        """`holders` are asked one after another for candidates, and may raise `IndexUnavailable`. `is_hosted` says
        whether this mirror hosts a registry.
        """
        self._parts = parts
        self._links = links
        self._holders = holders
        self._grants = grants
        self._cache = cache
        self._integrity = integrity
        self._is_hosted = is_hosted

    def __repr__(self) -> str:
        return "<Sources>"

    async def find(self, digest: Digest, may_pull: Callable[[Repo], bool]) -> int | None:
        """Returns the size of a blob that the caller may pull from any repository here; None if there is none. Raises
        `StoreError` if that cannot be said.
        """
        for repo in await self._candidates(digest):
            if may_pull(repo) and (size := await self.size(repo, digest)) is not None:
                return size
        return None

    async def _candidates(self, digest: Digest) -> Iterable[Repo]:
        found: dict[Repo, None] = {}
        for holders in self._holders:
            # without an answer, the client uploads what it could have reserved
            with suppress(IndexUnavailable):
                found |= dict.fromkeys(await holders(digest, _MOST))
        return found

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size of a blob that this repository has, in bytes; None if it has not. Raises `StoreError`."""
        if self._is_hosted(repo.registry):
            return await asyncio.to_thread(self._hosted_size, repo, digest)
        granted = await self._grants.size(repo, digest)
        if granted is None:
            return None
        try:
            info = await asyncio.to_thread(self._cache.stat, digest)
            await self._integrity.check(info, granted)
        except (BlobUnknown, BlobDamaged):
            return None
        return info.size

    def _hosted_size(self, repo: Repo, digest: Digest) -> int | None:
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
