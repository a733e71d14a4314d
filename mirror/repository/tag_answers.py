"""How the tags of a proxied repository are answered.

    fresh                      the remembered answer; upstream is not asked
    not fresh, upstream says   the same digest: it is fresh again; another digest: the tag moves at once
    not fresh, upstream down   the old answer, marked stale, for as long as the route allows
    not fresh, upstream slow   likewise, after some seconds; upstream's answer serves later requests
    unknown                    upstream is asked, by HEAD, which costs nothing on Docker Hub

A tag whose record cannot be read at the moment is answered with 503: its last answer and the age of that are not known.
A damaged record counts as none: upstream's answer replaces it.

A freeze comes first: upstream is not asked for a frozen tag. The route's minimum age comes last: upstream's answer may
be too new to be served (`intake/tag_history.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Final

from mirror import telemetry
from mirror.aio.bounded_threads import in_thread
from mirror.caller import caller_mark
from mirror.errors import (
    CredentialsRefused,
    ManifestUnknown,
    StoreError,
    TagTooNew,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.freshness import FreshnessRule, is_fresh, may_serve_stale
from mirror.policy.history import TagOverride
from mirror.policy.records import TagRecord
from mirror.policy.rules import RouteRule
from mirror.ports import Upstream
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.repository.caches import LOOK_EVERY, CachedTag, Caches
from mirror.repository.questions import Questions
from mirror.values.timestamps import format_moment
from mirror.values.versions import looks_like_version

#: Seconds for which upstream is not asked again after a stale answer.
_STALE_FOR: Final = 5.0
#: Seconds to wait for upstream if there is an older answer to give. Without this, an upstream that hangs would delay
#: every pull until its time-out, which is longer than clients wait.
_SLOW_AFTER: Final = 5.0
#: Seconds by which the clock may be set back before answers that were remembered under the later time are ignored.
_CLOCK_SLACK: Final = 60.0
#: Tag records that are read to find the tags of one digest.
_MOST_TAGS: Final = 1000


class TagAnswers:
    """The tag answers of one repository. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        repo: Repo,
        upstream: Upstream,
        rule: RouteRule,
        histories: TagHistories,
        caches: Caches,
        questions: Questions,
        intake: Intake,
        label: str,
        restore: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`label` is the upstream's label in metrics. `restore` brings the record of a tag back that the disk has lost;
        false if it cannot.
        """
        self._repo = repo
        self._upstream = upstream
        self._rule = rule
        self._histories = histories
        self._caches = caches
        self._questions = questions
        self._intake = intake
        self._label = label
        self._restore = restore

    async def answer(self, tag: str) -> CachedTag:
        """Returns the tag's answer as clients get it. Raises `ManifestUnknown`, `TagTooNew`, `UpstreamError`, and
        `StoreError` if the tag's record cannot be read.
        """
        cached = self._caches.tags.get((self._repo, tag))
        if cached and cached.since - _CLOCK_SLACK <= self._caches.now() < cached.until:
            return cached
        try:
            async with asyncio.timeout(_SLOW_AFTER):
                return await self._refreshed(tag)
        except TimeoutError:
            return await self._meanwhile(tag) or await self._refreshed(tag)

    async def _refreshed(self, tag: str) -> CachedTag:
        """Returns a refreshed answer. The work goes on, for later requests, if no request waits for it any more."""

        async def refresh() -> CachedTag:
            with telemetry.span("tag", mirror__repository=str(self._repo), mirror__tag=tag) as span:
                answer = await self._decide(tag, self._refresh)
                span.note(mirror__digest=str(answer.record.digest), mirror__cache=answer.outcome.value)
            self._cache(tag, answer)
            return answer

        return await self._caches.once.run(("tag", self._repo, tag, caller_mark()), refresh)

    def _cache(self, tag: str, answer: CachedTag) -> None:
        # for later requests a new answer is a plain hit, and a stale one stays stale
        if answer.outcome is Outcome.STALE:
            later, until = Outcome.STALE, answer.until
        else:
            # other processes, including the command line, change the records on the disk
            later, until = Outcome.HIT, min(answer.until, self._caches.now() + LOOK_EVERY)
        self._caches.tags[self._repo, tag] = replace(answer, outcome=later, until=until)

    async def _meanwhile(self, tag: str) -> CachedTag | None:
        """Returns an older answer to give while upstream is slow; None if there is none. The minimum age applies."""
        record = await asyncio.to_thread(self._histories.known_tag, self._repo, tag)
        if record is None:
            return None
        if self._is_fresh(record):
            return await self._aged(tag, self._believed(record, Outcome.HIT))
        if not may_serve_stale(record.fetched_at, self._caches.now(), self._rule.freshness):
            return None
        self._log_stale(record, f"no answer for {_SLOW_AFTER:g} s")
        answer = await self._aged(tag, self._believed(record, Outcome.STALE))
        self._cache(tag, answer)
        return answer

    def _log_stale(self, record: TagRecord, reason: str) -> None:
        telemetry.log.warning(
            "stale tag served",
            repository=str(self._repo),
            tag=record.tag,
            age=round(self._caches.now() - record.fetched_at),
            reason=reason,
        )

    async def ask_again(self, tag: str) -> CachedTag:
        """Asks upstream now, even if a remembered answer is fresh. Raises like `answer`."""
        self._caches.tags.pop((self._repo, tag), None)
        return await self._caches.once.run(
            ("tag again", self._repo, tag, caller_mark()), lambda: self._decide(tag, self._revalidate_now)
        )

    async def last_resolved_to(self, digest: Digest) -> str | None:
        """Returns the tag that upstream most recently resolved to this digest, by the records on disk. None if there is
        none, or the disk cannot be read.
        """

        def newest() -> str | None:
            tags = islice(self._histories.catalog.tags(self._repo), _MOST_TAGS)
            records = (self._histories.known_tag(self._repo, tag) for tag in tags)
            pointing = [record for record in records if record and record.digest == digest]
            return max(pointing, key=lambda record: record.fetched_at).tag if pointing else None

        try:
            return await asyncio.to_thread(newest)
        except StoreError:
            # without a tag, upstream is asked for the digest alone, which should do
            return None

    async def store(self, tag: str, answer: ManifestAnswer) -> None:
        """Writes the tag's record if the disk has none, or an older one: `answer` may have come from memory alone.

        Raises `StoreError`.
        """
        cached = self._caches.tags.get((self._repo, tag))
        upstreams = cached.record if cached and not cached.override else None
        stored = await asyncio.to_thread(self._histories.known_tag, self._repo, tag)
        if stored is None or (upstreams and upstreams.fetched_at > stored.fetched_at):
            fresh = TagRecord(tag, answer.digest, answer.media_type, answer.size, self._caches.now())
            await self._intake.put_tag(self._repo, stored, upstreams or fresh, self._rule.age)

    async def _revalidate_now(self, tag: str) -> CachedTag:
        async with self._questions.locked(f"tag {self._repo}:{tag}"):
            record = await asyncio.to_thread(self._histories.known_tag, self._repo, tag)
            return await self._revalidate(tag, record)

    async def _decide(self, tag: str, ask: Callable[[str], Awaitable[CachedTag]]) -> CachedTag:
        """Returns the tag's answer: that of the freeze if there is one, otherwise `ask`'s after the minimum age."""
        freeze = await in_thread(self._histories.threads, self._histories.frozen, self._repo, tag)
        if freeze:
            return CachedTag.frozen(freeze, self._caches.now())
        return await self._aged(tag, await ask(tag))

    async def _aged(self, tag: str, answer: CachedTag) -> CachedTag:
        """Applies the route's minimum age to the answer. Raises `TagTooNew` if no digest is old enough."""
        return await self._older(tag, answer) if self._rule.age.minimum else answer

    async def _older(self, tag: str, answer: CachedTag) -> CachedTag:
        choice = await asyncio.to_thread(self._histories.choose, self._repo, answer.record, self._rule.age)
        if choice.serve is None:
            raise TagTooNew(
                f"{self._repo}:{tag} points to {choice.newest.digest}, which this mirror has not known for long enough"
                f" (minimum_age); the tag is served from {format_moment(choice.any_from)} on"
            )
        if not choice.held_back:
            return answer
        older = choice.serve
        record = TagRecord(tag, older.digest, older.media_type, older.size, answer.record.fetched_at)
        # upstream was asked, but the digest is from the history
        outcome = Outcome.REVALIDATED if answer.outcome is Outcome.MISS else answer.outcome
        return replace(answer, record=record, outcome=outcome, override=TagOverride.TOO_NEW)

    async def _refresh(self, tag: str) -> CachedTag:
        """Returns the record on the disk if it is fresh; otherwise asks upstream. One process at a time asks for a tag;
        the others find its answer on the disk.
        """
        record = await asyncio.to_thread(self._histories.known_tag, self._repo, tag)
        if record and self._is_fresh(record):
            return self._believed(record, Outcome.HIT)
        # a "not found" drops the record: if there is a record, an import has brought the tag since
        if record is None:
            if await self._questions.is_unknown(self._key(tag)):
                raise ManifestUnknown(f"{self._repo} has no tag {tag}")
            with suppress(StoreError):
                # upstream is asked anyway if it is not known whether there is a record
                await self._restore(tag)
        async with self._questions.locked(f"tag {self._repo}:{tag}"):
            record = await asyncio.to_thread(self._histories.known_tag, self._repo, tag)
            if record and self._is_fresh(record):
                return self._believed(record, Outcome.HIT)
            return await self._revalidate(tag, record)

    def _key(self, tag: str) -> str:
        """Returns the key under which facts about the tag are remembered."""
        return f"tag {self._repo}:{tag}"

    def _is_fresh(self, record: TagRecord) -> bool:
        return is_fresh(record.fetched_at, self._caches.now(), self._freshness)

    @property
    def _freshness(self) -> FreshnessRule:
        return self._rule.freshness.stretched(self._upstream.patience)

    def _believed(self, record: TagRecord, outcome: Outcome) -> CachedTag:
        if outcome is Outcome.STALE:
            return CachedTag(record, outcome, self._caches.now(), self._caches.now() + _STALE_FOR)
        return CachedTag(record, outcome, record.fetched_at, record.fetched_at + self._freshness.tag_ttl)

    async def _revalidate(self, tag: str, record: TagRecord | None) -> CachedTag:
        try:
            descriptor = await self._upstream.resolve(self._repo.name, tag)
        except UpstreamNotFound as error:
            await self._questions.note_unknown(self._key(tag))
            if record:
                await self._intake.drop_tag(self._repo, tag)
            raise ManifestUnknown(f"{self._repo} has no tag {tag}") from error
        except (UpstreamUnavailable, UpstreamThrottled, UpstreamInvalid, CredentialsRefused) as error:
            if record and may_serve_stale(record.fetched_at, self._caches.now(), self._rule.freshness):
                self._log_stale(record, str(error))
                return self._believed(record, Outcome.STALE)
            raise
        fresh = TagRecord(tag, descriptor.digest, descriptor.media_type, descriptor.size, self._caches.now())
        was = await self._remember(record, fresh)
        if was:
            self._log_move(tag, was, fresh.digest)
        same = record is not None and record.digest == fresh.digest
        return self._believed(fresh, Outcome.REVALIDATED if same else Outcome.MISS)

    async def _remember(self, record: TagRecord | None, fresh: TagRecord) -> Digest | None:
        """Writes the new record. Returns the digest that the tag pointed to before; None if the tag did not move."""
        try:
            was = await self._intake.put_tag(self._repo, record, fresh, self._rule.age)
            self._intake.settle()
            return was
        except StoreError as error:
            self._intake.health.failed(error, f"{self._repo}:{fresh.tag}")
            return record.digest if record and record.digest != fresh.digest else None

    def _log_move(self, tag: str, was: Digest, now: Digest) -> None:
        move = {"repository": str(self._repo), "tag": tag, "was": str(was), "now": str(now)}
        if looks_like_version(tag):
            telemetry.VERSION_TAGS_MOVED.labels(self._label).inc()
            telemetry.log.warning("version tag moved", **move)
        else:
            telemetry.log.info("tag moved", **move)
        telemetry.notice(telemetry.Notice.TAG_MOVED, **move)
