"""One pass of a migration: makes the target like the source, as far as it is the migration's to change.

    plan() ── what there is to copy ──> run():
        JSON records of the site (pins, robots, …)      compared and written
        each repository:
            read in the source ── compared with the target ──> bytes that the target lacks: fetched, checked, stored
                ──> records written, bottom up ──> records deleted, top down ──> the name is taken, or free again

A pass only reads the source. It may be stopped or killed at any moment: what a record was, is or is about to be in the
target is in the journal before it is written, so the next pass goes on and knows its own work. What somebody else has
written or deleted in the target is a conflict, which is reported and left alone.

A pass over a source that changes meanwhile copies what it meets. Nothing is missing only after a pass over one that
stands still; a second pass then finds nothing to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeVar

from mirror.aio.batches import batches
from mirror.aio.threads import in_order
from mirror.errors import BucketDenied, BucketUnavailable, RecordChanged, StoreError
from mirror.migration.blob_copies import BlobCopies
from mirror.migration.progress import MigrationProgress, MigrationReport
from mirror.migration.record_folders import (
    FOLDERS,
    HOSTED_ONLY,
    PUBLISHED,
    RANKS,
    MigrationSide,
    folders_of,
    named_bytes,
    names_until_still,
    repository_path,
)
from mirror.oci.reference import Repo
from mirror.policy.hosted.migration_steps import DELETED, NOTHING_WRITTEN, MigrationStep, Written, migration_step
from mirror.ports import ABSENT, Expected, MigrationJournal, RecordTree, Versioned

T = TypeVar("T")

#: Records and blobs that are copied at the same time, and repositories that are compared meanwhile.
_AT_ONCE: Final = 16
_REPOSITORIES: Final = 4
#: Records that are noted in the journal together.
_BATCH: Final = 500
#: How often a bucket is asked that does not answer.
_TRIES: Final = 8
#: The record by which a name is taken for which the source has no record any more.
_TAKEN: Final = "_deleted_tags/migrated"


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """`registries` are those that are configured as hosted; others that have hosted content are found, unless they are
    among the `upstreams`. `kinds` are those of the JSON records. `overwrite` lets the source win every conflict.
    `dry_run` writes nothing.
    """

    registries: Sequence[str] = ()
    upstreams: Sequence[str] = ()
    kinds: Sequence[str] = ()
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record is on both sides. `key` names it in the journal and in reports."""

    key: str
    source: str
    target: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class _Compared:
    """A record of both sides, and what is to be done about it."""

    place: _Place
    here: bytes | None
    there: Versioned[bytes] | None
    step: MigrationStep

    @property
    def expect(self) -> Expected:
        """What the target must still have when it is changed."""
        return ABSENT if self.there is None else self.there.version


class Migration:
    """One pass from one side to the other. Blocking; for one pass."""

    def __init__(
        self,
        source: MigrationSide,
        target: MigrationSide,
        journal: MigrationJournal,
        options: MigrationOptions,
        progress: MigrationProgress,
        *,
        take: Callable[[int], float] = lambda count: 0.0,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        """`take` gets a number of bytes and returns the seconds to wait before the next ones are read. `wait` waits."""
        self._source = source
        self._target = target
        self._journal = journal
        self._options = options
        self._progress = progress
        self._take = take
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._objects = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="migrating")
        self._blobs = BlobCopies(source.bytes, target.bytes, progress, self._read, dry_run=options.dry_run)

    def __repr__(self) -> str:
        return f"<Migration from {self._source.name} to {self._target.name}: {self._progress}>"

    def stop(self) -> None:
        """Let `run` or `plan` end soon, with `StoreError`. May be called from any thread."""
        self._stopped.set()

    def plan(self) -> None:
        """Count what there is to copy, for those who watch. Raises `StoreError`."""
        for digest, size in self._source.bytes.sizes():
            self._go_on()
            if self._target.bytes.size(digest) != size:
                self._progress.all_bytes += size
        for repo in self._repositories():
            for folder, _ in folders_of(self._source.tree, repo):
                self._go_on()
                self._progress.all_records += sum(1 for _ in self._source.tree.names(folder))

    def run(self) -> MigrationReport:
        """Make the pass. Raises `StoreError`, `StoreFull`, `BucketUnavailable` if it cannot go on: what was copied
        stays, and the next pass continues.
        """
        try:
            for kind in self._options.kinds:
                self._kind(kind)
            with ThreadPoolExecutor(_REPOSITORIES, thread_name_prefix="comparing") as threads:
                for _ in in_order(threads, self._repository, self._repositories(), ahead=2 * _REPOSITORIES):
                    self._progress.repository()
        finally:
            self._stopped.set()
            self._objects.shutdown(cancel_futures=True)
        return self._progress.report

    def registries(self) -> list[str]:
        """The registries that are copied: those that are configured, and others in which something was pushed."""
        found = set(self._options.registries)
        for side in (self._source, self._target):
            for registry in side.tree.registries():
                if registry not in found and next(iter(side.tree.repositories(HOSTED_ONLY, registry)), None):
                    found.add(registry)
        return sorted(found - set(self._options.upstreams))

    def _repositories(self) -> Iterator[Repo]:
        """Every repository of either side, once."""
        folders = [name for name, _ in FOLDERS]
        for registry in self.registries():
            seen: set[Repo] = set()
            for side in (self._source, self._target):
                for had in (False, True):
                    for repo in side.tree.repositories(folders, registry, had=had):
                        if repo not in seen:
                            seen.add(repo)
                            yield repo

    # ------------------------------------------------------------------------------------------------ in order

    def _kind(self, kind: str) -> None:
        """Copy the JSON records of one kind."""
        here, there = self._source.kind_folder(kind), self._target.kind_folder(kind)
        names = {*self._names(self._source.tree, here), *self._names(self._target.tree, there)}
        places = [
            _Place(f"{kind}/{name}", f"{here}/{name}", f"{there}/{name}")
            for name in sorted(names)
            if name.endswith(".json")
        ]
        self._change(list(self._compare(places, self._journal.written(f"{kind}/"))))

    def _repository(self, repo: Repo) -> None:
        """Copy one repository."""
        try:
            places = self._places(repo)
        except BucketUnavailable:
            raise
        except StoreError as error:
            # a name that cannot be listed must not count as one that is absent
            self._progress.problem(str(repo), str(error))
            return
        compared = list(self._compare(places, self._journal.written(f"{repository_path(repo)}/_")))
        went = self._bring_bytes(repo, compared)
        self._change([each for each in compared if each.place.key not in went])
        if not self._options.dry_run:
            self._take_name(repo)

    def _places(self, repo: Repo) -> list[_Place]:
        """The records of a repository on either side, in the order of reading."""
        found: dict[str, _Place] = {}
        for side in (self._source, self._target):
            for folder, rank in self._ask(lambda tree: list(folders_of(tree, repo)), side.tree):
                for name in self._names(side.tree, folder):
                    key = f"{folder}/{name}"
                    found.setdefault(key, _Place(key, key, key, rank))
        return list(found.values())

    def _names(self, tree: RecordTree, folder: str) -> list[str]:
        return self._ask(lambda: list(names_until_still(tree, folder)))

    def _compare(self, places: Sequence[_Place], written: Mapping[str, Written]) -> Iterator[_Compared]:
        """Both sides' records at these places, without those that cannot be read. Forgets what neither side has."""
        gone = written.keys() - {place.key for place in places}
        for read in in_order(self._objects, self._read_both, places, ahead=2 * _AT_ONCE):
            if read is None:
                continue
            place, here, there = read
            step = migration_step(
                None if here is None else _version(here),
                None if there is None else _version(there.record),
                written.get(place.key, NOTHING_WRITTEN),
                overwrite=self._options.overwrite,
            )
            if step is MigrationStep.FORGET:
                gone |= {place.key} & written.keys()
            elif step.is_conflict:
                self._progress.conflict(place.key, step.value)
            else:
                yield _Compared(place, here, there, step)
        if gone and not self._options.dry_run:
            self._journal.forget(sorted(gone))

    def _read_both(self, place: _Place) -> tuple[_Place, bytes | None, Versioned[bytes] | None] | None:
        """The records of both sides; None if one of them cannot be read."""
        try:
            here = self._ask(self._source.tree.read, place.source)
            there = self._ask(self._target.tree.read, place.target)
        except BucketUnavailable:
            raise
        except StoreError as error:
            self._progress.problem(place.key, str(error))
            return None
        if here is not None and not here.record:
            self._progress.problem(place.key, "the record is empty")
            return None
        return place, None if here is None else here.record, there

    def _bring_bytes(self, repo: Repo, compared: Sequence[_Compared]) -> set[str]:
        """Bring the bytes that the records name. Returns the keys of records that went in the source meanwhile."""

        def bring(each: _Compared) -> str | None:
            named = None if each.here is None else named_bytes(each.place.key, each.here)
            if named is None or self._ask(self._blobs.bring, named.digest):
                return None
            now = self._ask(self._source.tree.read, each.place.source)
            if now is None or now.record != each.here:
                return each.place.key
            if named.required:
                reason = self._blobs.reason(named.digest)
                self._progress.problem(str(named.digest), f"{reason}; {repo} needs it")
            return None

        return {key for key in in_order(self._objects, bring, compared, ahead=2 * _AT_ONCE) if key is not None}

    def _change(self, compared: Sequence[_Compared]) -> None:
        """Make the target like the source: what is written, bottom up, then what is deleted, top down."""
        same = {each.place.key: each for each in compared if each.step is MigrationStep.SAME}
        self._progress.same(len(same))
        writes = [each for each in compared if each.step is MigrationStep.WRITE]
        deletes = [each for each in compared if each.step is MigrationStep.DELETE]
        if self._options.dry_run:
            self._progress.written(len(writes))
            self._progress.deleted(len(deletes))
            return
        for some in batches(same.values(), _BATCH):
            self._journal.done({each.place.key: _version(each.here or b"") for each in some})
        for rank in reversed(range(RANKS)):
            for some in batches((each for each in writes if each.place.rank == rank), _BATCH):
                self._write(some)
        for rank in range(RANKS):
            for some in batches((each for each in deletes if each.place.rank == rank), _BATCH):
                self._delete(some)

    def _write(self, some: Sequence[_Compared]) -> None:
        versions = {each.place.key: _version(each.here or b"") for each in some}
        self._journal.begin(versions)
        changed = self._each(
            lambda each: self._target.tree.write(each.place.target, each.here or b"", expect=each.expect),
            some,
            lambda each: versions[each.place.key],
        )
        self._ask(self._target.tree.flush)
        self._journal.done({key: version for key, version in versions.items() if key not in changed})
        self._progress.written(len(some) - len(changed))

    def _delete(self, some: Sequence[_Compared]) -> None:
        keys = [each.place.key for each in some]
        self._journal.begin(dict.fromkeys(keys, DELETED))
        changed = self._each(
            lambda each: self._target.tree.drop(each.place.target, expect=each.expect), some, lambda each: None
        )
        self._ask(self._target.tree.flush)
        self._journal.forget([key for key in keys if key not in changed])
        self._progress.deleted(len(keys) - len(changed))

    def _each(
        self,
        change: Callable[[_Compared], object],
        some: Sequence[_Compared],
        wanted: Callable[[_Compared], str | None],
    ) -> set[str]:
        """Change several records, to what `wanted` gives. Returns the keys of those that somebody else has changed in
        the target.
        """

        def attempt(each: _Compared) -> str | None:
            try:
                self._ask(change, each)
            except RecordChanged:
                # a change whose answer was lost has perhaps been made
                now = self._ask(self._target.tree.read, each.place.target)
                if (None if now is None else _version(now.record)) != wanted(each):
                    self._progress.conflict(each.place.key, "was changed in the target meanwhile")
                    return each.place.key
            return None

        return {key for key in in_order(self._objects, attempt, some, ahead=2 * _AT_ONCE) if key is not None}

    def _take_name(self, repo: Repo) -> None:
        """Let the target's name be taken or free as the source's is: it stays taken when the last record has gone."""
        here, there = self._has_name(self._source.tree, repo), self._has_name(self._target.tree, repo)
        if here and not there:
            self._ask(self._target.tree.take, repo)
            if self._has_name(self._target.tree, repo):
                return
            # on a disk, the folder of a record that is gone takes the name
            key, content = f"{repository_path(repo)}/{_TAKEN}", b"{}"
            self._journal.begin({key: _version(content)})
            self._ask(self._target.tree.write, key, content)
            self._ask(self._target.tree.drop, key)
            self._ask(self._target.tree.flush)
            self._journal.forget([key])
        elif there and not here:
            self._ask(self._target.tree.forget, repo, PUBLISHED)

    def _has_name(self, tree: RecordTree, repo: Repo) -> bool:
        return self._ask(lambda: any(tree.had(repo, PUBLISHED)))

    # ------------------------------------------------------------------------------------------------ patience

    def _ask(self, call: Callable[..., T], *arguments: object) -> T:
        """The result of a call, which is repeated for some minutes if the bucket does not answer."""
        for tries in range(_TRIES):
            self._go_on()
            try:
                return call(*arguments)
            except BucketDenied:
                raise
            except BucketUnavailable as error:
                if tries == _TRIES - 1:
                    raise
                self._wait(max(error.retry_after, 2.0**tries))
        raise AssertionError

    def _read(self, count: int) -> None:
        """Count bytes that were read, and wait as the limit says."""
        self._progress.read(count)
        seconds = self._take(count)
        if seconds > 0:
            self._wait(seconds)
        self._go_on()

    def _go_on(self) -> None:
        """Raises `StoreError` if the pass is to stop."""
        if self._stopped.is_set():
            raise StoreError("the migration was stopped; run it again to continue")


def _version(content: bytes) -> str:
    """Names a content, on either side: a bucket may add a newline to a record."""
    return blake2b(content.removesuffix(b"\n"), digest_size=16).hexdigest()
