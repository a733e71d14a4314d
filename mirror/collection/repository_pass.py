"""The first pass of collection, over one repository: which links it no longer needs.

    1 read      what the manifests name, live ones first, then those that were deleted and are kept
    2 deletions interrupted ones are finished, expired ones are forgotten
    3 referrers whose subject is gone, if the registry collects them
    4 links     those that no manifest names are queued; those that have waited long enough are dropped

The order of step 1 matters. A deletion writes the record of the deletion before it drops the manifest's: whoever lists
in this order meets the manifest in one of the two places. Whatever brings a manifest to a repository (a push, an
undelete) renews its links first, by compare-and-set.

Before a link is dropped, and after a referrer was dropped, the manifests are listed a second time, and those that came
meanwhile are read. The version of the link was read before this second look. So:

    the manifest came before the second look    it is met, and the link stays
    it came after it                            its push renewed the link before: the version is another, the link stays
                                                or found no link, and told the client so

If a manifest, or a record of one, cannot be read, it may name anything: the repository is left alone in this round. A
link that cannot be read stays, and keeps its bytes. A damaged record of a manifest still says which manifest it is, and
its bytes what it names (`damaged_records.py`): it is written anew. A damaged link that no manifest names gives nobody a
right, and becomes the mark of a removal. The report has every record that is damaged. A repository of a registry that
is not configured loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from mirror import telemetry
from mirror.collection.ahead import ahead
from mirror.collection.collection_report import CollectionReport
from mirror.collection.marks import Marks
from mirror.collection.pace import CHANGE, MANIFEST, NAME, RECORD, Pace
from mirror.collection.waiting import waiting_deletion, waiting_link
from mirror.errors import QuotaExceeded, RecordChanged, RecordDamaged, StoreError
from mirror.graph.manifests import certain_manifest, has_blob
from mirror.graph.referrers import referrer_descriptor
from mirror.hosting.damaged_records import deletion_or_remade, has_manifest, manifest_or_remade
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.collection import (
    COLLECTOR,
    ClockReading,
    LinkStep,
    RegistryRules,
    Waited,
    next_step,
    waited,
)
from mirror.policy.hosted.retention import RETENTION
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState
from mirror.policy.records import ManifestRecord
from mirror.ports import ABSENT, Announcement, Version, Versioned

#: Links that are dropped after one second look.
_DROPPED_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read of a manifest: its record, or that of its deletion, if there is one, and what it says."""

    record: ManifestRecord | DeletedManifest | None = None
    manifest: Manifest | None = None
    #: The record cannot be parsed, and must be written anew first.
    is_damaged: bool = False


class RepositoryPass:
    """One repository in one round. `steps` is a generator; each of its steps blocks for a short time."""

    def __init__(
        self,
        parts: HostedParts,
        repo: Repo,
        rules: RegistryRules | None,
        grace: float,
        now: Callable[[], ClockReading],
        marks: Marks,
        report: CollectionReport,
        pace: Pace,
        pool: Executor | None = None,
    ) -> None:
        """`rules` is None if the registry is not configured. What the repository has is added to `marks`. `pool` runs
        the threads that wait for a store which is far away.
        """
        self._parts = parts
        self._repo = repo
        self._rules = rules
        self._grace = grace
        self._now = now
        self._marks = marks
        self._report = report
        self._pace = pace
        self._pool = pool
        #: Manifests that were read, and what they name.
        self._read: set[Digest] = set()
        self._named = Marks()
        #: What indexes name; and what live ones name.
        self._children = Marks()
        self._live_children = Marks()
        #: Referrers that are old enough to go, with their subjects.
        self._referrers: dict[Digest, Digest] = {}

    def __repr__(self) -> str:
        return f"<RepositoryPass {self._repo}>"

    def steps(self) -> Iterator[None]:
        """Collects. Raises `StoreError` if it cannot be said what the repository has."""
        self._report.repositories += 1
        try:
            if self._rules is None:
                yield from self._keep_everything()
                return
            yield from self._read_manifests()
            yield from self._end_deletions(self._rules)
            if self._rules.collect_dangling:
                yield from self._drop_referrers(self._rules)
            yield from self._judge_links()
            self._parts.records.flush()
        except StoreError as error:
            telemetry.log.warning("repository left uncollected", repository=str(self._repo), reason=str(error))
            self._report.note_unread(str(self._repo), str(error))
            yield from self._keep_everything()

    def _keep_everything(self) -> Iterator[None]:
        """Marks everything that the repository may have, without opening a record."""
        records = self._parts.records
        for listed in (
            self._parts.catalog.manifest_digests(self._repo),
            records.deleted_manifests(self._repo),
            records.linked(self._repo),
        ):
            yield from self._mark(listed)

    def _mark(self, digests: Iterable[Digest]) -> Iterator[None]:
        for digest in digests:
            self._marks.add(digest)
            if self._pace.spent(NAME):
                yield

    # ------------------------------------------------------------------------------------------ what manifests name

    def _read_manifests(self) -> Iterator[None]:
        """Reads every manifest that was not read yet, live ones first. Raises `StoreError`."""
        catalog, records = self._parts.catalog, self._parts.records
        live = ahead(
            self._pool,
            lambda digest: self._look(digest, lambda: catalog.manifest(self._repo, digest)),
            self._unread(catalog.manifest_digests(self._repo)),
        )
        for digest, seen in live:
            if seen.is_damaged:
                seen = self._look(digest, partial(self._live, digest))
            self._note_names(digest, seen)
            if self._pace.spent(MANIFEST):
                yield
        deleted = ahead(
            self._pool,
            lambda digest: self._look(digest, lambda: records.deleted_manifest(self._repo, digest)),
            self._unread(records.deleted_manifests(self._repo)),
        )
        for digest, seen in deleted:
            if seen.is_damaged:
                seen = self._look(digest, partial(self._deletion, digest))
            self._note_names(digest, seen)
            if self._pace.spent(MANIFEST):
                yield

    def _unread(self, digests: Iterable[Digest]) -> Iterator[Digest]:
        return (digest for digest in digests if digest not in self._read)

    def _look(
        self, digest: Digest, read: Callable[[], Versioned[ManifestRecord] | Versioned[DeletedManifest] | None]
    ) -> _Seen:
        """Reads the record of a manifest, and then the manifest. Raises `StoreError`."""
        try:
            found = read()
        except RecordDamaged:
            return _Seen(is_damaged=True)
        return _Seen(found.record, self._manifest(digest, found.record.media_type)) if found else _Seen()

    def _live(self, digest: Digest) -> Versioned[ManifestRecord] | None:
        """Returns the record of a live manifest. A damaged one is written anew from the bytes of the manifest. Raises
        `StoreError`.
        """
        catalog = self._parts.catalog
        try:
            return catalog.manifest(self._repo, digest)
        except RecordDamaged as damaged:
            self._note_damaged(damaged)
        remade = manifest_or_remade(self._parts, self._repo, digest)
        if remade is not None and remade.record.size:
            with suppress(RecordChanged):
                catalog.put_manifest(self._repo, remade.record, expect=remade.version)
                catalog.flush()
                self._note_repair(digest)
        return manifest_or_remade(self._parts, self._repo, digest)

    def _deletion(self, digest: Digest) -> Versioned[DeletedManifest] | None:
        """Returns the record of a deletion. A damaged one is written anew from the bytes of the manifest: nobody can
        say since when it waits, so the wait begins now. Raises `StoreError`.
        """
        records = self._parts.records
        try:
            return records.deleted_manifest(self._repo, digest)
        except RecordDamaged as damaged:
            self._note_damaged(damaged)
        remade = deletion_or_remade(self._parts, self._repo, digest)
        if remade is not None and remade.record.size:
            with suppress(RecordChanged):
                records.put_deleted_manifest(self._repo, remade.record, expect=remade.version)
                self._note_repair(digest)
        return deletion_or_remade(self._parts, self._repo, digest)

    def _note_damaged(self, damaged: RecordDamaged) -> None:
        self._report.note_unread(str(self._repo), str(damaged))

    def _note_repair(self, digest: Digest) -> None:
        self._parts.records.note_change(self._repo)
        telemetry.log.warning("damaged record written anew", repository=str(self._repo), digest=str(digest))

    @contextmanager
    def _noted_if_unknown(self) -> Iterator[None]:
        """Around one change: if it cannot be said whether it was made, every process looks anew, as after one."""
        try:
            yield
        except StoreError:
            with suppress(StoreError):
                self._parts.records.note_change(self._repo)
            raise

    def _manifest(self, digest: Digest, media_type: str) -> Manifest | None:
        """Returns the manifest; None if the bytes are no manifest, and so name nothing. Raises `StoreError`, also if
        they are missing: a push of the same manifest repairs this, and what it names must be there then.
        """
        return certain_manifest(self._parts.contents, self._repo, digest, media_type)

    def _note_names(self, digest: Digest, seen: _Seen) -> None:
        if seen.record is None:
            return
        self._read.add(digest)
        self._marks.add(digest)
        self._report.manifests += 1
        if (manifest := seen.manifest) is None:
            return
        live = seen.record if isinstance(seen.record, ManifestRecord) else None
        for blob in manifest.blobs:
            self._named.add(blob.digest)
        for child in manifest.manifests:
            self._named.add(child.digest)
            self._children.add(child.digest)
            if live:
                self._live_children.add(child.digest)
        if manifest.subject and live and waited(live.fetched_at, self._now(), self._grace) is Waited.LONG_ENOUGH:
            self._referrers[digest] = manifest.subject.digest

    # ------------------------------------------------------------------------------------------------- deletions

    def _end_deletions(self, rules: RegistryRules) -> Iterator[None]:
        records = self._parts.records
        for digest in records.deleted_manifests(self._repo):
            if deletion := self._deletion(digest):
                self._end_deletion(deletion, rules)
            if self._pace.spent(RECORD * 2):
                yield
        for tag in records.deleted_tags(self._repo):
            self._end_deletion_of_tag(tag, rules)
            if self._pace.spent(RECORD):
                yield

    def _end_deletion_of_tag(self, tag: str, rules: RegistryRules) -> None:
        """Forgets the deletion of a tag that has expired. A damaged one stays."""
        records = self._parts.records
        try:
            deleted = records.deleted_tag(self._repo, tag)
        except RecordDamaged as damaged:
            self._note_damaged(damaged)
            return
        if deleted is None:
            return
        age = waited(deleted.record.deleted_at, self._now(), rules.keep_deleted)
        with suppress(RecordChanged):
            if age is Waited.UNKNOWN:
                begun_anew = replace(deleted.record, deleted_at=self._now().later)
                records.put_deleted_tag(self._repo, begun_anew, expect=deleted.version)
            elif age is Waited.LONG_ENOUGH:
                records.drop_deleted_tag(self._repo, tag, expect=deleted.version)
                self._report.deletions += 1

    def _end_deletion(self, deletion: Versioned[DeletedManifest], rules: RegistryRules) -> None:
        """Finishes a deletion that was interrupted, and forgets one that has expired."""
        records, record = self._parts.records, deletion.record
        if not has_manifest(self._parts.catalog, self._repo, record.digest):
            by_retention = record.by == RETENTION and record.digest in self._live_children
            if by_retention or (record.by == COLLECTOR and record.digest in self._children):
                # this process, or another one, died between dropping it and the second look
                # the deletion may have been reported meanwhile
                announced = self._announce(ChangeKind.UNDELETE, record)
                try:
                    self._bring_back(record.digest)
                finally:
                    announced.end()
                return
            self._drop_tags(record)
        age = waited(record.deleted_at, self._now(), rules.keep_deleted)
        with suppress(RecordChanged):
            if age is Waited.UNKNOWN:
                begun_anew = replace(record, deleted_at=self._now().later)
                records.put_deleted_manifest(self._repo, begun_anew, expect=deletion.version)
            elif age is Waited.LONG_ENOUGH:
                self._forget(deletion)
            else:
                self._report.note_waiting(waiting_deletion(self._repo, record, rules.keep_deleted))

    def _drop_tags(self, record: DeletedManifest) -> None:
        """Drops the tags that point to a deleted manifest: they count as absent. A tag is read before the look whether
        its manifest is back, because a push brings back the manifest first.
        """
        catalog, dropped = self._parts.catalog, False
        for name in record.tags:
            try:
                tag = catalog.tag(self._repo, name)
            except RecordDamaged as damaged:
                self._note_damaged(damaged)
                continue
            if tag is None or tag.record.digest != record.digest:
                continue
            if has_manifest(catalog, self._repo, record.digest):
                break
            with suppress(RecordChanged), self._noted_if_unknown():
                catalog.drop_tag(self._repo, name, expect=tag.version)
                dropped = True
        if dropped:
            self._parts.records.note_change(self._repo)
            telemetry.log.info("deletion finished", repository=str(self._repo), digest=str(record.digest))

    def _forget(self, deletion: Versioned[DeletedManifest]) -> None:
        """Makes a deletion final. Raises `RecordChanged`."""
        records, record = self._parts.records, deletion.record
        manifest = self._manifest(record.digest, record.media_type)
        records.drop_deleted_manifest(self._repo, record.digest, expect=deletion.version)
        self._report.deletions += 1
        if not has_manifest(self._parts.catalog, self._repo, record.digest):
            self._parts.accounts.unlink(self._repo, record.digest)
        if manifest and manifest.subject:
            self._forget_referrer(manifest, manifest.subject.digest)

    def _forget_referrer(self, referrer: Manifest, subject: Digest) -> None:
        """Drops the entry of a referrer that is gone. A push of the same manifest writes its entry after its record: so
        one of the two, this or the push, writes the entry last.
        """
        records, catalog = self._parts.records, self._parts.catalog
        if has_manifest(catalog, self._repo, referrer.digest):
            return
        records.drop_referrer(self._repo, subject, referrer.digest)
        if has_manifest(catalog, self._repo, referrer.digest):
            records.put_referrer(self._repo, subject, referrer_descriptor(referrer))

    # ------------------------------------------------------------------------------------------ dangling referrers

    def _drop_referrers(self, rules: RegistryRules) -> Iterator[None]:
        """Drops untagged referrers whose subject is absent and that no index names. Their records are read before the
        tags are: an undelete of a tag writes them anew.
        """
        catalog = self._parts.catalog
        dangling: dict[Digest, Versioned[ManifestRecord]] = {}
        for digest, subject in [*self._referrers.items()]:
            if digest in self._children or has_manifest(catalog, self._repo, subject):
                del self._referrers[digest]
            elif live := manifest_or_remade(self._parts, self._repo, digest):
                dangling[digest] = live
            if self._pace.spent(RECORD):
                yield
        for name in catalog.tags(self._repo) if self._referrers else ():
            try:
                if tag := catalog.get_tag(self._repo, name):
                    self._referrers.pop(tag.digest, None)
            except RecordDamaged as damaged:
                # it may be the tag of any of them
                self._note_damaged(damaged)
                self._referrers.clear()
                break
            if self._pace.spent(RECORD):
                yield
        for digest, live in dangling.items():
            if digest in self._referrers:
                yield from self._drop_referrer(digest, live, rules)

    def _drop_referrer(self, digest: Digest, live: Versioned[ManifestRecord], rules: RegistryRules) -> Iterator[None]:
        catalog, records = self._parts.catalog, self._parts.records
        if waited(live.record.fetched_at, self._now(), self._grace) is not Waited.LONG_ENOUGH:
            return
        try:
            # written even if deletions are not kept: it says after a crash that the second look is still due
            collected = DeletedManifest.of(live.record, self._now().later, COLLECTOR)
            version = records.put_deleted_manifest(self._repo, collected, expect=ABSENT)
        except RecordChanged:
            # a client deletes it, or brings it back
            return
        records.flush()
        announced = self._announce(ChangeKind.DELETE, collected, str(live.version))
        try:
            try:
                with announced.turn(), self._noted_if_unknown():
                    catalog.drop_manifest(self._repo, digest, expect=live.version)
            except RecordChanged:
                # pushed again meanwhile
                announced.cancel()
                self._forget_deletion(digest, version)
                return
            records.note_change(self._repo)
            yield
            try:
                yield from self._read_manifests()
            except StoreError:
                # an index that cannot be read may name it
                self._bring_back(digest)
                announced.cancel()
                raise
            if digest in self._children:
                self._bring_back(digest)
                announced.cancel()
                return
            catalog.flush()
            announced.done()
        finally:
            announced.end()
        self._report.referrers += 1
        deletion = records.deleted_manifest(self._repo, digest)
        if deletion and not rules.keep_deleted:
            with suppress(RecordChanged):
                self._forget(deletion)

    def _announce(self, kind: ChangeKind, deletion: DeletedManifest, version: str = "") -> Announcement:
        """The events of a deletion by this collector, or of its end."""
        change = HostedChange(
            kind, self._repo, COLLECTOR, deletion.digest, (), deletion.media_type, deletion.size, version=version
        )
        return self._parts.events.begin(kind, self._repo, lambda: change)

    def _bring_back(self, digest: Digest) -> None:
        """Makes a manifest live again that was collected while an index came that names it. If a client has deleted it
        since, it stays deleted.
        """
        records = self._parts.records
        deletion = records.deleted_manifest(self._repo, digest)
        if deletion is None or deletion.record.by not in (COLLECTOR, RETENTION):
            return
        with suppress(RecordChanged), self._noted_if_unknown():
            self._parts.catalog.put_manifest(self._repo, deletion.record.restored(), expect=ABSENT)
            self._parts.catalog.flush()
        records.note_change(self._repo)
        self._forget_deletion(digest, deletion.version)

    def _forget_deletion(self, digest: Digest, version: Version) -> None:
        with suppress(RecordChanged):
            self._parts.records.drop_deleted_manifest(self._repo, digest, expect=version)

    # ------------------------------------------------------------------------------------------------------- links

    def _judge_links(self) -> Iterator[None]:
        due: list[tuple[BlobLink, Version]] = []
        for digest in self._parts.records.linked(self._repo):
            cost = NAME
            if digest in self._named:
                self._marks.add(digest)
            else:
                cost = self._judge_link(digest, due)
            if self._pace.spent(cost):
                yield
            if len(due) >= _DROPPED_AT_ONCE:
                yield from self._drop_links(due)
                due.clear()
        yield from self._drop_links(due)

    def _judge_link(self, digest: Digest, due: list[tuple[BlobLink, Version]]) -> int:
        """Judges a link that no manifest names, and adds it to `due` if it is to be dropped. Returns the cost."""
        records, now = self._parts.records, self._now()
        try:
            found = records.link(self._repo, digest)
        except RecordDamaged as damaged:
            self._note_damaged(damaged)
            self._marks.add(digest)
            # a pusher cannot use it; whether it goes is decided after a second look at the manifests
            due.append((BlobLink(digest, 0, LinkState.REMOVED, now.later), Version(damaged.version)))
            return RECORD
        except StoreError as error:
            self._report.note_unread(f"the link of {self._repo} to {digest}", str(error))
            self._marks.add(digest)
            return RECORD
        if found is None:
            return RECORD
        link = found.record
        step = next_step(link, now, self._grace)
        if link.state is LinkState.REMOVED:
            if step is LinkStep.DROP and not has_blob(self._parts.contents, digest):
                self._drop_link(link, found.version)
            elif step is LinkStep.BEGIN_ANEW:
                self._renew(replace(link, since=now.later), found.version)
            return RECORD
        if step is LinkStep.DROP:
            due.append((link, found.version))
            return RECORD
        self._marks.add(digest)
        if step is LinkStep.STAY:
            if link.queued_at is not None:
                self._report.waiting_links += 1
                self._report.note_waiting(waiting_link(self._repo, link, link.queued_at, self._grace))
            return RECORD
        if step is LinkStep.QUEUE:
            self._report.links_queued += 1
            self._renew(replace(link, queued_at=now.later), found.version)
        else:
            self._renew(replace(link, since=now.later, queued_at=None), found.version)
        return CHANGE

    def _renew(self, link: BlobLink, expect: Version) -> None:
        with suppress(RecordChanged):
            self._parts.records.put_link(self._repo, link, expect=expect)

    def _drop_links(self, due: list[tuple[BlobLink, Version]]) -> Iterator[None]:
        """Drops links that have waited long enough, and puts marks in the place of damaged ones, unless a manifest
        names them that came since the first look.
        """
        if not due:
            return
        yield from self._read_manifests()
        dropped = False
        for link, version in due:
            if link.digest in self._named:
                self._marks.add(link.digest)
            elif link.state is LinkState.REMOVED:
                self._renew(link, version)
                self._parts.accounts.unlink(self._repo, link.digest)
                self._note_repair(link.digest)
            elif not self._drop_link(link, version):
                self._marks.add(link.digest)
            else:
                dropped = True
            if self._pace.spent(CHANGE):
                yield
        if dropped:
            self._parts.records.note_change(self._repo)

    def _drop_link(self, link: BlobLink, expect: Version) -> bool:
        """Drops a link; False if a client relies on it again."""
        records, accounts = self._parts.records, self._parts.accounts
        try:
            with self._noted_if_unknown():
                records.drop_link(self._repo, link.digest, expect=expect)
        except RecordChanged:
            return False
        self._report.links += 1
        accounts.unlink(self._repo, link.digest)
        # whoever links it again writes the link first, and notes it then
        with suppress(QuotaExceeded, StoreError):
            if (again := records.link(self._repo, link.digest)) and again.record.state is LinkState.LINKED:
                accounts.link(self._repo, link.digest, again.record.size)
        return True
