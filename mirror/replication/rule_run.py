"""One run of a replication rule: compares repositories with those of the other registry, and repeats what is missing.

    repository ── the change counter ──> tags ──> each tag: here, there, last seen ──> a step ──> last seen is recorded

Nothing of a run must be remembered for the next one to go on: what is there already is found by HEAD. If the other
registry does not answer, the run ends, and begins again later. What concerns one tag alone is listed, and the others go
on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mirror import telemetry
from mirror.errors import (
    CredentialsRefused,
    Denied,
    LeaseLost,
    MirrorError,
    NameInvalid,
    StoreError,
    UpstreamDenied,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.attachments import image_of_tag, is_attached
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.replication_steps import (
    Deletion,
    HereTag,
    LastSeen,
    Step,
    decide,
    may_delete,
    target_name,
)
from mirror.policy.image_names import Image, name_of
from mirror.ports import Blobs, Lease, Writer
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.compared_content import ComparedContent, RepositoryListing
from mirror.replication.here import HereRecords
from mirror.replication.image_tree import ImageTree, read_tree
from mirror.replication.rate_limit import RateLimit
from mirror.replication.registry_target import KnownBlobs, RegistryTarget
from mirror.replication.replication_rules import ReplicationRule, SeenRecords, SeenTags
from mirror.replication.target import ImageGiver
from mirror.repository.protocol import Readable

#: Tags after which what is known is written to the disk, and entries of each list in a result.
_WRITTEN_EVERY: Final = 20
_MOST_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class RunWanted:
    """What a run is to do. `repos`: these repositories only (None: all of the rule). `full`: every tag is looked up in
    the other registry, and not only those that changed here. `dry_run`: nothing is written. `again`: tags that were
    deleted there are put there again. `yes`: any number of tags may be deleted.
    """

    repos: Collection[Repo] | None = None
    full: bool = True
    dry_run: bool = False
    again: bool = False
    yes: bool = False


@dataclass(slots=True)
class RunReport:
    """What a run has done. `steps` are the tags that were changed, or would be, by what was done with them."""

    repositories: int = 0
    tags: int = 0
    bytes: int = 0
    steps: dict[Step, list[str]] = field(default_factory=lambda: {step: [] for step in Step})
    conflicts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    held_back: int = 0
    error: str | None = None
    retry_after: float = 0.0

    @property
    def ok(self) -> bool:
        """True if nothing failed. Tags that were left alone on purpose are no failures."""
        return self.error is None and not self.failures

    @property
    def changed(self) -> bool:
        """True if something was written."""
        return any(self.steps[step] for step in (Step.PUT, Step.MOVE, Step.DELETE))

    def to_json(self) -> dict[str, Any]:
        """The report, with a part of each list."""
        result: dict[str, Any] = {
            "repositories": self.repositories,
            "tags": self.tags,
            "put": len(self.steps[Step.PUT]),
            "moved": len(self.steps[Step.MOVE]),
            "deleted": len(self.steps[Step.DELETE]),
            "bytes": self.bytes,
            "changed": [
                f"{step.value} {name}"
                for step in (Step.PUT, Step.MOVE, Step.DELETE)
                for name in self.steps[step][:_MOST_LISTED]
            ],
            "deleted_there": self.steps[Step.DELETED_THERE][:_MOST_LISTED],
            "conflict_count": len(self.conflicts),
            "conflicts": self.conflicts[:_MOST_LISTED],
            "failure_count": len(self.failures),
            "failures": self.failures[:_MOST_LISTED],
        }
        if self.held_back:
            result["held_back"] = self.held_back
        if self.error is not None:
            result["error"] = self.error
        return result


class RuleRun:
    """Runs one rule. `changes` remembers the change counter of each repository as it was before its last comparison."""

    def __init__(
        self,
        rule: ReplicationRule,
        here: HereRecords,
        seen: SeenRecords,
        source_for: Callable[[Repo], Readable],
        writer_for: Callable[[str], Writer],
        contents: Blobs,
    ) -> None:
        """`contents` has the bytes of hosted blobs."""
        self.rule = rule
        self.changes: dict[Repo, int] = {}
        self._content: dict[Repo, ComparedContent] = {}
        self._here = here
        self._seen = seen
        self._source_for = source_for
        self._writer_for = writer_for
        self._contents = contents
        self._known = KnownBlobs()
        self._limit = RateLimit(rule.rate)

    def __repr__(self) -> str:
        return f"<RuleRun {self.rule.name} of {len(self.changes)} repositories>"

    def repositories(self) -> list[Repo]:
        """Blocking: the repositories that the rule is about. Raises `StoreError`."""
        registry = self.rule.match.partition("/")[0]
        return [repo for repo in self._here.repositories(registry) if self.rule.covers(repo)]

    def changed(self) -> list[Repo]:
        """Blocking: the repositories that have changed since they were compared. Raises `StoreError`."""
        return [repo for repo in self.repositories() if self._has_changed(repo)]

    def _has_changed(self, repo: Repo) -> bool:
        count = self._here.changes(repo)
        return count < 0 or self.changes.get(repo) != count

    async def run(self, wanted: RunWanted, meter: ProgressMeter, lock: Lease) -> RunReport:
        """Do a run, as long as the caller has the rule's lock. Raises nothing but cancellation, and `LeaseLost`."""
        report, seen = RunReport(), self._seen.under(lock)
        try:
            repos = wanted.repos if wanted.repos is not None else await asyncio.to_thread(self.repositories)
            meter.expect(len(repos))
            for repo in repos:
                await self._compare(repo, wanted, report, _Progress(meter, lock, seen))
        except LeaseLost:
            raise
        except UpstreamThrottled as error:
            report.error, report.retry_after = str(error), error.retry_after
        except (MirrorError, OSError) as error:
            report.error = str(error)
        except Exception as error:
            telemetry.log.exception("replication crashed", rule=self.rule.name)
            report.error = f"unexpected: {type(error).__name__}"
        return report

    async def _compare(self, repo: Repo, wanted: RunWanted, report: RunReport, progress: _Progress) -> None:
        """Compare one repository. Raises `UpstreamError` if the other registry does not answer at all, `StoreError`."""
        # read before the records: what changes from here on is seen by the next run
        count = await asyncio.to_thread(self._here.changes, repo)
        try:
            name = target_name(repo, self.rule.rename)
        except NameInvalid as error:
            report.failures.append(str(error))
            return
        progress.check()
        seen = await asyncio.to_thread(progress.seen.get, self.rule, repo)
        content = self._content.setdefault(repo, ComparedContent())
        tags = await asyncio.to_thread(lambda: sorted(self._here.tags(repo)))
        listing, touched = await asyncio.to_thread(self._look, repo, tags, content)
        comparing = _Comparing(self, repo, name, seen, wanted, report, progress, content, touched)
        failed = len(report.failures)
        try:
            await comparing.run(tags)
        finally:
            if not wanted.dry_run and comparing.unwritten:
                await self.write(repo, seen, progress.seen)
        report.repositories += 1
        if not wanted.dry_run:
            # what failed is compared again
            self.changes[repo] = count if len(report.failures) == failed else -1
            if listing is not None:
                content.listed(listing)

    def _look(
        self, repo: Repo, tags: Sequence[str], content: ComparedContent
    ) -> tuple[RepositoryListing | None, frozenset[int] | None]:
        """Blocking: lists a repository, and finds what was added to its images; None if that cannot be read."""
        try:
            listing = self._here.listing(repo, tags)
            return listing, content.touched(listing, self._here.subject) if content.tags else None
        except StoreError:
            # all tags are read then, and the one that cannot be read is reported
            return None, None

    def target(
        self, repo: Repo, name: str, source: Readable, seen: SeenTags, check: Callable[[], None]
    ) -> RegistryTarget:
        """The repository of this name in the other registry; `check` is called before each change there. Raises
        `RequestError`.
        """

        def may_move(tag: str, there: Digest, to: Digest) -> bool:
            return self.rule.tags.may_move(to, there, seen.tags.get(tag))

        writer = self._writer_for(self.rule.to)
        return RegistryTarget(writer, name, source, self._contents, self._known, check, may_move, self._limit.take)

    def source(self, repo: Repo) -> Readable:
        """The repository as clients see it."""
        return self._source_for(repo)

    async def tag(self, repo: Repo, tag: str) -> HereTag | None:
        """See `HereRecords`."""
        return await asyncio.to_thread(self._here.tag, repo, tag)

    async def deletion(self, repo: Repo, tag: str, last: LastSeen) -> Deletion | None:
        """See `HereRecords`."""
        return await asyncio.to_thread(self._here.deletion, repo, tag, last.digest)

    async def write(self, repo: Repo, seen: SeenTags, records: SeenRecords) -> None:
        """Record what is known of a repository."""
        await asyncio.to_thread(records.put, self.rule, repo, seen)


@dataclass(frozen=True, slots=True)
class _Progress:
    """What one run has besides its rule: what shows its progress, its lock, and the records to be written under it."""

    meter: ProgressMeter
    lock: Lease
    seen: SeenRecords

    def check(self) -> None:
        """To be called before each change of the other registry, which knows of no lock. Raises `LeaseLost`."""
        if self.lock.lost.is_set():
            raise LeaseLost("replication")


@dataclass(slots=True)
class _Comparing:
    """The comparison of one repository."""

    run_of: RuleRun
    repo: Repo
    name: str
    seen: SeenTags
    wanted: RunWanted
    report: RunReport
    progress: _Progress
    content: ComparedContent
    #: The digests to which something was added since the last comparison; None: not known.
    touched: frozenset[int] | None
    unwritten: int = 0
    deletions: list[str] = field(default_factory=list)

    async def run(self, tags: Iterable[str]) -> None:
        """Compare all tags."""
        rule = self.run_of.rule
        source = self.run_of.source(self.repo)
        target = self.run_of.target(self.repo, self.name, source, self.seen, self.progress.check)
        all_here = set(tags)
        here = sorted(tag for tag in all_here if rule.tags.covers(tag))
        gone = sorted(tag for tag in self.seen.tags if tag not in all_here)
        for tag in (*here, *gone):
            try:
                await self._tag(tag, source, target)
            except (UpstreamUnavailable, UpstreamThrottled, CredentialsRefused, LeaseLost):
                raise
            except UpstreamDenied as error:
                # no right in the whole repository
                self.report.failures.append(f"{self.repo}: {error}")
                return
            except Denied as error:
                self._conflict(tag, str(error))
            except (MirrorError, ValueError) as error:
                self.report.failures.append(f"{name_of(self.repo, tag)}: {error}")
                telemetry.COPIES.labels("failed").inc()
            if self.unwritten >= _WRITTEN_EVERY and not self.wanted.dry_run:
                await self.run_of.write(self.repo, self.seen, self.progress.seen)
                self.unwritten = 0
        await self._delete_all(target)

    async def _tag(self, tag: str, source: Readable, target: RegistryTarget) -> None:
        here, last = await self.run_of.tag(self.repo, tag), self.seen.tags.get(tag)
        if here is None:
            await self._gone(tag, target, last)
            return
        self.report.tags += 1
        if not self.wanted.full and last is not None and last.digest == here.digest and self._is_untouched(tag):
            return
        # until it is done: what fails is read again
        self.content.tags.pop(tag, None)
        tree = await read_tree(source, here.digest, referrers=self.run_of.rule.referrers)
        if not self.wanted.full and last == LastSeen(here.digest, last.put if last else False, _content(tree)):
            self.content.done(tag, tree)
            return
        there = await target.digest_of(tag)
        step = decide(self.run_of.rule.tags, here, there, last)
        if step is Step.DELETED_THERE and self.wanted.again:
            step = Step.PUT
        if step is Step.CONFLICT:
            self._conflict(tag, f"it points to {there} there, which this rule has not put there")
            return
        if step in (Step.SAME, Step.PUT, Step.MOVE) and not self.wanted.dry_run:
            await self._give(tag, tree, target, there, last, step)
            self.content.done(tag, tree)
        self.report.steps[step].append(name_of(self.repo, tag))

    def _is_untouched(self, tag: str) -> bool:
        return self.touched is not None and self.content.is_untouched(tag, self.touched)

    async def _gone(self, tag: str, target: RegistryTarget, last: LastSeen | None) -> None:
        """A tag that is not here, or not any more."""
        self.content.tags.pop(tag, None)
        if last is None:
            return
        if is_attached(tag):
            # it goes with its image; what is there stays
            self._note(tag, None)
            return
        deletion = await self.run_of.deletion(self.repo, tag, last)
        rules = self.run_of.rule.tags
        if not self.wanted.full and decide(rules, None, last.digest, last, deletion) is Step.LEAVE:
            return
        there = await target.digest_of(tag)
        if decide(rules, None, there, last, deletion) is Step.DELETE:
            self.deletions.append(tag)
        elif there != last.digest and not self.wanted.dry_run:
            self._note(tag, None)

    async def _delete_all(self, target: RegistryTarget) -> None:
        """Repeats the deletions, if they are not too many."""
        if not (self.wanted.yes or may_delete(len(self.deletions), self.seen.put)):
            self.report.held_back += len(self.deletions)
            return
        for tag in self.deletions:
            self.progress.check()
            try:
                done = self.wanted.dry_run or await target.writer.delete_tag(self.name, tag)
            except UpstreamDenied as error:
                if isinstance(error, CredentialsRefused):
                    raise
                self._conflict(tag, str(error))
                continue
            if not done:
                self._conflict(tag, "the other registry cannot delete a tag alone")
                continue
            self.report.steps[Step.DELETE].append(name_of(self.repo, tag))
            if not self.wanted.dry_run:
                self._note(tag, None)

    async def _give(
        self,
        tag: str,
        tree: ImageTree,
        target: RegistryTarget,
        there: Digest | None,
        last: LastSeen | None,
        step: Step,
    ) -> None:
        image = Image(self.repo, tag)
        giver = ImageGiver(target, lambda progress: self.progress.meter.note(image, progress))
        copied = await giver.give(tree, tag, there)
        self.report.bytes += copied.bytes
        telemetry.COPIED_BYTES.inc(copied.bytes)
        telemetry.COPIES.labels("same" if copied.is_same else "moved" if step is Step.MOVE else "copied").inc()
        was_ours = last is not None and last.put and last.digest == tree.root.digest
        self._note(tag, LastSeen(tree.root.digest, step is not Step.SAME or was_ours, _content(tree)))
        for attached, manifest in tree.attached:
            if image_of_tag(attached) is not None:
                self._note(attached, LastSeen(manifest.digest, put=True))

    def _note(self, tag: str, seen: LastSeen | None) -> None:
        if self.seen.tags.get(tag) == seen:
            return
        self.unwritten += 1
        if seen is None:
            self.seen.tags.pop(tag, None)
        else:
            self.seen.tags[tag] = seen

    def _conflict(self, tag: str, reason: str) -> None:
        self.report.conflicts.append(f"{name_of(self.repo, tag)}: {reason}")


def _content(tree: ImageTree) -> str:
    """A hash of all that belongs to an image, by which a referrer that is added is noticed."""
    digests = [manifest.digest for manifest in (*tree.image, *tree.referrers)]
    digests += [manifest.digest for _, manifest in tree.attached]
    return hashlib.blake2b(" ".join(sorted(map(str, digests))).encode(), digest_size=8).hexdigest()
