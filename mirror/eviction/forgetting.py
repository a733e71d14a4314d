"""Forgets the records of upstreams' tags and manifests that nobody has asked for in a long time, and whose content is
not here any more: otherwise they would grow for ever, a few files for each tag that any client ever asked for.

    a walk over all repositories ──> old ones, some dozens at a time ── under the turn of eviction ──> judged again,
                                                                          deleted in this order:

    tag        its record ──> its history          under the lock of the tag, which pulls and imports take as well
    manifest   its record, if no tag has it        in one step with a last look for its bytes
    repository its empty folders

    what happens meanwhile                     what comes of it
    a client asks for the tag                  it has the lock, or has changed the record: the tag stays. Or it comes
                                               later, and finds a tag that was never asked for
    the manifest is fetched, or imported       its bytes come first: the record stays. Or it is written again after the
                                               deletion
    a pin, a freeze                            is read before each turn: the tag stays. One that is made later finds a
                                               tag that was never asked for, and holds from the next pull on
    a record is written into an empty folder   the folder stays, or is made again by the writer
    a crash, a power cut                       what is left is a history without its tag, a manifest that no tag has, or
                                               empty folders: the next walk goes on there

A manifest goes a walk later than the tags that have it, so that no tag is left without it. Nothing of a hosted or
sealed repository is ever forgotten, nor anything if it is not known what is pinned and frozen. The bucket keeps its own
records: this is about the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror import telemetry
from mirror.aio.batches import batches, batches_in_thread
from mirror.aio.threads import uninterrupted
from mirror.errors import IndexUnavailable, RecordChanged, RecordDamaged, StoreError
from mirror.eviction.giving_way import NOBODY, Giving
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.freshness import is_forgotten
from mirror.policy.pins import PinRule, rule_for
from mirror.policy.records import TagRecord
from mirror.ports import CachedRecords, ContentIndex, Freezes, InTime, Pins, Versioned

#: Records that are looked at in one step. A step takes some milliseconds, without the pauses for clients.
_STEP: Final = 256
#: Records that are deleted in one turn, which takes some tens of milliseconds: on a full disk, pulls wait for it.
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Old:
    """What may be forgotten: a tag, a manifest, or, without a reference, a repository that has no record any more."""

    repo: Repo
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many records were forgotten, and how many repositories with their last one. `looked_at` counts all records
    that were read, `unread` what could not be read or deleted, and stays.
    """

    tags: int = 0
    manifests: int = 0
    repositories: int = 0
    looked_at: int = 0
    unread: int = 0

    def __add__(self, other: Forgotten) -> Forgotten:
        return Forgotten(
            self.tags + other.tags,
            self.manifests + other.manifests,
            self.repositories + other.repositories,
            self.looked_at + other.looked_at,
            self.unread + other.unread,
        )

    @property
    def is_any(self) -> bool:
        """Whether something was forgotten."""
        return bool(self.tags or self.manifests or self.repositories)


#: Which images stay: a tag, or a digest, of a repository.
Kept: TypeAlias = Collection[tuple[Repo, Reference]]


class Forgetting:
    """Forgets old records of one disk. `old` and `forget` block; a process at a time does this."""

    def __init__(
        self,
        records: CachedRecords,
        pins: Pins,
        rules: Sequence[PinRule],
        freezes: Freezes,
        *,
        is_here: Callable[[Repo, Digest], bool],
        after: Callable[[Repo], float | None],
        hold: Callable[[str], AbstractContextManager[object] | None],
        now: Callable[[], float],
    ) -> None:
        """`is_here` says whether the bytes of a manifest are; it blocks, and raises `StoreError` if that is not known.
        `after`: see `forgotten_after`; None also for whatever is not cached. `hold` takes a lock of all processes of
        this disk if it is free. `now` is in epoch seconds.
        """
        self._records = records
        self._pins = pins
        self._rules = tuple(rules)
        self._freezes = freezes
        self._is_here = is_here
        self._after = after
        self._hold = hold
        self._now = now

    def __repr__(self) -> str:
        return f"<Forgetting {self._records!r}>"

    # ---------------------------------------------------------------------------------------------- the walk

    def old(self, unread: Callable[[Repo, StoreError], None] = lambda _repo, _error: None) -> Iterator[Old | None]:
        """Blocking: looks at every record. Yields what may be forgotten, and None for each record that may not.
        `unread` is told of repositories that cannot be read. Raises `StoreError` if they cannot be listed.
        """
        for repo in self._records.known():
            try:
                after = self._after(repo)
                if after is None or self._records.is_hosted(repo):
                    yield None
                else:
                    yield from self._old_of(repo, after)
            except StoreError as error:
                unread(repo, error)
                yield None

    def _old_of(self, repo: Repo, after: float) -> Iterator[Old | None]:
        tags, histories = self._records.tags(repo), self._records.histories(repo)
        digests = list(self._records.manifest_digests(repo))
        if not tags and not histories and not digests:
            yield Old(repo)
        pointed = set()
        for tag in tags:
            found, is_old = self._tag(repo, tag, after)
            if found is not None:
                pointed.add(found.record.digest)
            yield Old(repo, tag) if is_old else None
        for tag in sorted(set(histories).difference(tags)):
            yield Old(repo, tag) if self._tag(repo, tag, after)[1] else None
        for digest in digests:
            is_old = digest not in pointed and self._is_old_manifest(repo, digest, after)
            yield Old(repo, digest) if is_old else None

    def _tag(self, repo: Repo, tag: str, after: float) -> tuple[Versioned[TagRecord] | None, bool]:
        """The record of a tag, and whether it may be forgotten, or the history if there is no record. A damaged record
        may not: the next answer of upstream replaces it.
        """
        try:
            found = self._records.tag(repo, tag)
        except RecordDamaged:
            return None, False
        if found is not None:
            return found, self._is_old(repo, found.record.digest, found.record.fetched_at, after)
        # upstream has dropped the tag. A history that cannot be parsed says nothing
        seen = [sighting.last_seen for sighting in self._records.get_history(repo, tag)]
        return None, is_forgotten(max(seen, default=0.0), after, self._now())

    def _is_old_manifest(self, repo: Repo, digest: Digest, after: float) -> bool:
        try:
            record = self._records.get_manifest(repo, digest)
        except RecordDamaged:
            return False
        return record is not None and self._is_old(repo, digest, record.fetched_at, after)

    def _is_old(self, repo: Repo, digest: Digest, written_at: float, after: float) -> bool:
        return is_forgotten(written_at, after, self._now()) and not self._is_here(repo, digest)

    # -------------------------------------------------------------------------------------------- the deletions

    def forget(
        self, old: Sequence[Old], kept: Kept, unread: Callable[[Repo, StoreError], None] = lambda _repo, _error: None
    ) -> tuple[Forgotten, Mapping[Repo, Sequence[Digest]]]:
        """Blocking: forgets of these what still may be, and is not `kept`; the caller has the turn of eviction. Returns
        also which manifests are gone. `unread` is told of what cannot be read or deleted, which stays. Raises
        `StoreError`.
        """
        tags = repositories = 0
        gone: dict[Repo, list[Digest]] = {}
        for each in old:
            try:
                if isinstance(each.reference, Digest):
                    if self._forget_manifest(each.repo, each.reference, kept):
                        gone.setdefault(each.repo, []).append(each.reference)
                elif each.reference is not None:
                    tags += self._forget_tag(each.repo, each.reference, kept)
            except StoreError as error:
                unread(each.repo, error)
        for repo in dict.fromkeys(each.repo for each in old):
            try:
                repositories += self._records.prune(repo)
            except StoreError as error:
                unread(repo, error)
        self._records.flush()
        return Forgotten(tags, sum(map(len, gone.values())), repositories), gone

    def kept(self) -> Kept:
        """Blocking, with other replicas until the bucket answers: what is pinned or frozen. Raises `StoreError` if a
        pin or freeze cannot be read: it may be for anything.
        """
        pins, unread_pins = self._pins.look()
        freezes, unread_freezes = self._freezes.look()
        for record in (*unread_pins, *unread_freezes):
            raise StoreError(record.trouble)
        now = self._now()
        kept: set[tuple[Repo, Reference]] = {(pin.repo, pin.reference) for pin in pins if pin.is_active(now)}
        for freeze in freezes:
            kept |= {(freeze.repo, freeze.tag), (freeze.repo, freeze.digest)}
        return kept

    def _forget_tag(self, repo: Repo, tag: str, kept: Kept) -> bool:
        """False if the tag stays: it is kept, or somebody asks for it, or has."""
        after = self._after(repo)
        if after is None or (repo, tag) in kept or rule_for(self._rules, repo, tag) is not None:
            return False
        lock = self._hold(f"tag {repo}:{tag}")
        if lock is None:
            return False
        with lock, suppress(RecordChanged, RecordDamaged):
            found, is_old = self._tag(repo, tag, after)
            if not is_old:
                return False
            if found is not None:
                self._records.drop_tag(repo, tag, expect=found.version)
            self._records.drop_history(repo, tag, expect=InTime(None, lambda: self._must_have_no_tag(repo, tag)))
            return True
        return False

    def _must_have_no_tag(self, repo: Repo, tag: str) -> None:
        # who waits too long for the lock goes on without it
        if self._records.tag(repo, tag) is not None:
            raise RecordChanged(f"{repo}:{tag} was asked for")

    def _forget_manifest(self, repo: Repo, digest: Digest, kept: Kept) -> bool:
        after = self._after(repo)
        if after is None or (repo, digest) in kept:
            return False

        def must_not_be_here() -> None:
            # bytes are written before the record: if they come later than this look, so does the record
            if self._is_here(repo, digest):
                raise RecordChanged(f"{repo}@{digest} is here again")

        with suppress(RecordChanged, RecordDamaged):
            found = self._records.manifest(repo, digest)
            if found is None or not self._is_old(repo, digest, found.record.fetched_at, after):
                return False
            self._records.drop_manifest(repo, digest, expect=InTime(found.version, must_not_be_here))
            return True
        return False


async def forget_old(
    forgetting: Forgetting,
    index: ContentIndex,
    turn: Callable[[], AbstractAsyncContextManager[None]],
    *,
    give_way: Giving = NOBODY,
) -> Forgotten:
    """Walks over all records once, and forgets what is old; reports it in the log and the metrics. `turn` is that of
    eviction. Raises `StoreError`.
    """
    counts, unread, reason = Forgotten(), 0, ""

    def note(_repo: Repo, error: StoreError) -> None:
        # no list of them: a disk that can only be read refuses each of a million deletions
        nonlocal unread, reason
        unread, reason = unread + 1, reason or str(error)

    try:
        async for step in batches_in_thread(give_way.slices(forgetting.old(note)), _STEP):
            counts += Forgotten(looked_at=len(step))
            for old in batches([each for each in step if each is not None], _AT_ONCE):
                began = time.monotonic()
                # before the turn: pulls that wait for it must not wait for the bucket
                kept = await asyncio.to_thread(forgetting.kept)
                async with turn():
                    # to its end, even if cancelled: the turn must not end before the deletions do
                    done, gone = await uninterrupted(asyncio.to_thread(forgetting.forget, old, kept, note))
                counts += done
                _count(done)
                with suppress(IndexUnavailable):
                    # without the index, its comparison with the disk finds the wrong links later
                    for repo, digests in gone.items():
                        await index.unlink(repo, digests)
                await give_way(time.monotonic() - began)
    finally:
        counts += Forgotten(unread=unread)
        if counts.is_any:
            telemetry.log.info(
                "records forgotten",
                tags=counts.tags,
                manifests=counts.manifests,
                repositories=counts.repositories,
                looked_at=counts.looked_at,
            )
    if unread:
        telemetry.log.warning("records not forgotten", count=unread, reason=reason)
    return counts


def _count(done: Forgotten) -> None:
    telemetry.FORGOTTEN.labels("tag").inc(done.tags)
    telemetry.FORGOTTEN.labels("manifest").inc(done.manifests)
    telemetry.FORGOTTEN.labels("repository").inc(done.repositories)
