"""One round of collection: both passes, as a generator whose steps each block for a short time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Executor

from mirror import telemetry
from mirror.collection.blob_pass import BlobPass
from mirror.collection.collection_report import CollectionReport
from mirror.collection.marks import Marks
from mirror.collection.pace import Pace
from mirror.collection.repository_pass import RepositoryPass
from mirror.errors import StoreError
from mirror.hosting.parts import HostedParts
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading, CollectionRules


def collection_round(
    parts: HostedParts,
    rules: CollectionRules,
    now: Callable[[], ClockReading],
    report: CollectionReport,
    pace: Pace | None = None,
    *,
    pool: Executor | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generator[None]:
    """Does one round, and writes what it does into `report`. May end after any step: what was done stays right, and the
    next round begins anew. Rounds of several processes at once do no harm. Raises `StoreError`.

    `pool` runs the threads that wait for a store which is far away. `check` raises `StoreError` if what is read now is
    perhaps not the store that the records belong to; it is called before anything is read, and before bytes go.
    """
    pace, marks, certain = pace or Pace(), Marks(), True
    check()
    blobs = BlobPass(parts.blobs, rules.grace, now, report, pace, pool)
    yield from blobs.candidates()
    # a registry that is no longer configured keeps what it has: the configuration may be wrong
    for registry in sorted({*rules.registries, *parts.records.registries()} - {*rules.upstreams}):
        for repo in parts.records.repositories(registry):
            try:
                yield from _repository_pass(parts, rules, now, report, pace, marks, repo, pool).steps()
            except StoreError as error:
                telemetry.log.warning("repository cannot be listed", repository=str(repo), reason=str(error))
                certain = False
            yield
    if certain:
        check()
        yield from blobs.judge(marks)
        report.complete = True


def _repository_pass(
    parts: HostedParts,
    rules: CollectionRules,
    now: Callable[[], ClockReading],
    report: CollectionReport,
    pace: Pace,
    marks: Marks,
    repo: Repo,
    pool: Executor | None,
) -> RepositoryPass:
    return RepositoryPass(parts, repo, rules.registries.get(repo.registry), rules.grace, now, marks, report, pace, pool)
