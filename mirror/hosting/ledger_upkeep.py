"""Completes the ledger of hosted content from the records of the repositories, which are the truth.

    start, every hour, after a change was missed ──> for each repository: what is on disk, against what is noted
                                                           │
                                      on disk, not noted ──┼──> added
                                  noted, no longer there ──┴──> removed

Pushes and deletions go on meanwhile. Whoever changes a record notes it afterwards, so after each correction the record
is looked at again: a change that came between is then noted by one of both.

Where the ledger is known to be incomplete, every record of a link is read. Otherwise only names are compared, which is
quick, and enough after a power cut or a lost race.

Corrections are noted some dozens at a time: a ledger that was lost has one for each link here, and each change of it
writes several pages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from mirror.aio.batches import batches, batches_in_thread
from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import LinkState
from mirror.ports import Catalog, HostedRecords, LinkLedger

#: Records that are looked at before the thread is given back.
_STEP: Final = 200
#: Corrections that are noted together: pushes wait for some milliseconds meanwhile.
_TOGETHER: Final = 50


class LedgerUpkeep:
    """Completes one ledger. Used by one task at a time, in one process."""

    def __init__(self, ledger: LinkLedger, records: HostedRecords, catalog: Catalog, registries: Iterable[str]) -> None:
        """`registries` are the hosted ones."""
        self._ledger = ledger
        self._records = records
        self._catalog = catalog
        self._registries = tuple(registries)

    def __repr__(self) -> str:
        return f"<LedgerUpkeep {self._ledger!r}>"

    async def complete(self) -> int:
        """Correct the ledger and mark it as complete. Returns how many corrections were made.

        Raises `IndexUnavailable`, `StoreError`; the ledger then is as complete as it was.
        """
        missed, is_complete = await asyncio.to_thread(lambda: (self._ledger.prepare(), self._ledger.is_complete()))
        corrections = 0
        async for repos in batches_in_thread(self._repositories(), _STEP):
            for repo in repos:
                async for step in batches_in_thread(self._correct(repo, every=not is_complete), 1):
                    corrections += sum(step)
        await asyncio.to_thread(self._ledger.completed, missed)
        return corrections

    async def correct(self, repo: Repo) -> int:
        """Note what another replica has added to a repository, or dropped from it. Returns how many corrections were
        made. Raises like `complete`.
        """
        corrections = 0
        async for step in batches_in_thread(self._correct(repo, every=False), 1):
            corrections += sum(step)
        return corrections

    def correct_now(self, repo: Repo) -> int:
        """Blocking: the same as `correct`. May be called from any thread, also while that is done elsewhere."""
        return sum(self._correct(repo, every=False))

    def _repositories(self) -> Iterator[Repo]:
        """The repositories that have records, and those that are only noted."""
        seen = set()
        for repo in chain(*map(self._records.repositories, self._registries)):
            seen.add(repo)
            yield repo
        yield from (repo for repo in self._ledger.repositories() if repo not in seen)

    def _correct(self, repo: Repo, *, every: bool) -> Iterator[int]:
        """Correct what is noted of a repository, in steps that return how many corrections were made. With `every`, the
        records of noted links are read as well.
        """
        noted = set(self._ledger.noted(repo))
        gone = set(noted)
        names = chain(
            self._records.linked(repo), self._catalog.manifest_digests(repo), self._records.deleted_manifests(repo)
        )
        for batch in batches(names, _STEP):
            gone.difference_update(batch)
            yield self._settle(repo, {digest: digest in noted for digest in batch if every or digest not in noted})
        for batch in batches(gone, _STEP):
            yield self._settle(repo, dict.fromkeys(batch, True))

    def _settle(self, repo: Repo, noted: Mapping[Digest, bool]) -> int:
        """Note what the records say about these digests, until they say the same again. `noted` tells whether each is
        noted now. Returns how many were corrected.
        """
        corrected = Counter[Digest]()
        # the second look is mostly the last
        for _ in range(3):
            wrong = dict(self._wrong(repo, noted))
            for some in batches(wrong.items(), _TOGETHER):
                self._ledger.correct(repo, dict(some))
            corrected.update(wrong.keys())
            noted = {digest: size is not None for digest, size in wrong.items()}
        # what was corrected twice is noted as before
        return sum(count % 2 for count in corrected.values())

    def _wrong(self, repo: Repo, noted: Mapping[Digest, bool]) -> Iterator[tuple[Digest, int | None]]:
        """Those about which the records say something else, with what they say."""
        for digest, is_noted in noted.items():
            try:
                size = self._size(repo, digest)
            except RecordDamaged:
                # it cannot be told: what is noted stays
                continue
            if (size is not None) != is_noted:
                yield digest, size

    def _size(self, repo: Repo, digest: Digest) -> int | None:
        """The size in bytes of a blob or manifest that counts for the repository; None if it has none."""
        link = self._records.link(repo, digest)
        if link is not None and link.record.state is LinkState.LINKED:
            return link.record.size
        manifest = self._catalog.get_manifest(repo, digest)
        if manifest is not None:
            return manifest.size
        deleted = self._records.deleted_manifest(repo, digest)
        return deleted.record.size if deleted else None
