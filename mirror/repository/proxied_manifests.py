"""The manifests of a proxied repository.

    by tag      the tag's digest (`tag_answers.py`) ──> by digest
    by digest   memory ──> disk ──> upstream, one process at a time ──> `intake/intake.py`

A manifest is fetched by digest, and only if this repository does not have it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from mirror import telemetry
from mirror.caller import caller_mark
from mirror.errors import BlobUnreadable, BucketUnavailable, ManifestUnknown, StoreError, UpstreamNotFound
from mirror.graph.manifests import StoredManifest
from mirror.intake.grants import Grants, named_by
from mirror.intake.intake import Intake
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.policy.history import TagOverride
from mirror.ports import Upstream
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.repository.caches import LOOK_EVERY, CachedTag, Caches
from mirror.repository.questions import Questions
from mirror.repository.standing.in_memory import InMemory
from mirror.repository.standing.lasting import Standing
from mirror.repository.stored import StoredRepository
from mirror.repository.tag_answers import TagAnswers

T = TypeVar("T")
_Described = TypeVar("_Described", Descriptor, Manifest)


class ProxiedManifests:
    """The manifests of one repository of one upstream. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        stored: StoredRepository,
        upstream: Upstream,
        tags: TagAnswers,
        grants: Grants,
        caches: Caches,
        questions: Questions,
        integrity: Integrity,
        intake: Intake,
    ) -> None:
        self.repo = stored.repo
        self._stored = stored
        self._upstream = upstream
        self._tags = tags
        self._grants = grants
        self._caches = caches
        self._questions = questions
        self._integrity = integrity
        self._intake = intake

    # ------------------------------------------------------------------------------------------------- GET

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""
        if isinstance(reference, Digest):
            manifest, outcome = await self._manifest(reference)
            return self._answer(manifest, outcome)
        tag = await self._tags.answer(reference)
        try:
            manifest, fetched = await self._manifest(tag.record.digest, None if tag.override else reference)
        except ManifestUnknown as error:
            if tag.override:
                raise self._gone(reference, tag, error) from error
            # the tag moved between HEAD and GET, or upstream has deleted the digest of the record
            tag = await self._tags.ask_again(reference)
            manifest, fetched = await self._manifest(tag.record.digest, reference)
        if fetched is not Outcome.HIT and tag.outcome is not Outcome.STALE:
            return self._answer(manifest, fetched, tag.override)
        return self._answer(manifest, tag.outcome, tag.override)

    async def _manifest(self, digest: Digest, tag: str | None = None) -> tuple[Manifest, Outcome]:
        """Returns a manifest from memory, disk or upstream. `tag` (None: unknown) was just resolved to the digest."""
        self._intake.touch(digest)
        cached = self._caches.manifests.get((self.repo, digest))
        if cached:
            await self._put_back(cached)
            return cached, Outcome.HIT

        async def load() -> tuple[Manifest, Outcome]:
            with telemetry.span("manifest", mirror__repository=str(self.repo), mirror__digest=str(digest)) as span:
                loaded, outcome = await self._load(digest, tag)
                span.note(mirror__cache=outcome.value)
                return loaded, outcome

        loaded, outcome = await self._caches.once.run(("manifest", self.repo, digest, tag, caller_mark()), load)
        self._caches.manifests[self.repo, digest] = loaded
        return loaded, outcome

    async def _load(self, digest: Digest, tag: str | None) -> tuple[Manifest, Outcome]:
        if manifest := await self._load_stored(digest):
            return manifest, Outcome.HIT
        await self._refuse_unknown(digest, tag)
        async with self._questions.locked(f"manifest {self.repo}@{digest}"):
            if manifest := await self._load_stored(digest):
                return manifest, Outcome.HIT
            # another repository may have stored the bytes; only upstream can tell that this repository has them too
            manifest = await self._by_digest(self._upstream.manifest, digest, tag)
            stored = await self._store(manifest)
        # the lock is released: other processes find the manifest on the disk and need not wait for what follows
        if stored:
            await self._intake.record_manifests(self.repo, stored)
            return manifest, Outcome.MISS
        await self._grants.give(self.repo, named_by(manifest))
        return manifest, Outcome.BYPASS

    async def _load_stored(self, digest: Digest) -> Manifest | None:
        return await self._if_readable(self._stored.load, digest)

    async def _if_readable(self, read: Callable[[Digest], Awaitable[T | None]], digest: Digest) -> T | None:
        """Returns what `read` returns; None also if the disk cannot be read: upstream is then asked, and its answer
        replaces the unreadable manifest.
        """
        try:
            return await read(digest)
        except BucketUnavailable:
            # the disk does not have it, and upstream is asked instead of the bucket
            pass
        except BlobUnreadable:
            await self._integrity.recheck(digest)
        except StoreError as error:
            telemetry.log.warning(
                "manifest cannot be read", repository=str(self.repo), digest=str(digest), reason=str(error)
            )
        return None

    async def _store(self, manifest: Manifest, grants: tuple[Digest, ...] | None = None) -> StoredManifest | None:
        """Writes a manifest to the disk; returns None if the store cannot take it. A signed manifest is not written
        either, because its digest is that of other bytes; it stays in memory alone. `grants`: see `ManifestRecord`.
        """
        if manifest.signed:
            return None
        try:
            stored = await self._intake.add_manifest(self.repo, manifest, grants)
        except StoreError as error:
            self._intake.health.failed(error, manifest.digest)
            return None
        self._intake.settle()
        return stored

    async def _put_back(self, manifest: Manifest) -> None:
        """Writes a manifest that is in memory back to the disk if it was evicted. Otherwise no manifest on the disk
        would name its blobs, and they would be evicted first. Checks the disk every few seconds at most.
        """
        now = self._caches.now()
        checked = self._caches.checked.get(manifest.digest)
        if checked is not None and 0 <= now - checked < LOOK_EVERY:
            return
        self._caches.checked[manifest.digest] = now
        if not self._stored.has(manifest.digest):
            key = "put back", self.repo, manifest.digest
            await self._caches.once.run(key, lambda: self._store_again(manifest))

    async def _store_again(self, manifest: Manifest) -> None:
        if stored := await self._store(manifest, await self._grants_of(manifest)):
            await self._intake.record_manifests(self.repo, stored)

    async def _grants_of(self, manifest: Manifest) -> tuple[Digest, ...] | None:
        """Returns the grants for the record of a manifest that comes from memory: those of its record on the disk if
        there is one, otherwise the named content that this repository may serve already (None: all of it). Only a
        manifest from upstream proves all that it names, and this one may have been imported.
        """
        with suppress(StoreError):
            if record := await self._stored.record(manifest.digest):
                return record.grants
        named = named_by(manifest).keys() - {manifest.digest}
        proven = [digest for digest in sorted(named) if await self._grants.known_size(self.repo, digest) is not None]
        return None if len(proven) == len(named) else tuple(proven)

    # ------------------------------------------------------------------------------------------------ HEAD

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the answer to HEAD of a manifest. Upstream is asked by HEAD at most. Raises like `manifest`."""
        if isinstance(reference, Digest):
            return await self._resolve_digest(reference)
        tag = await self._tags.answer(reference)
        if tag.override:
            return await self._resolve_override(reference, tag)
        record = tag.record
        self._intake.touch(record.digest)
        if cached := self._caches.manifests.get((self.repo, record.digest)):
            # upstream's HEAD may have given another size or type than the manifest has
            return self._answer(cached, tag.outcome)
        return ManifestAnswer(record.digest, record.media_type, record.size, None, tag.outcome, self._upstream.name)

    async def _resolve_override(self, reference: str, tag: CachedTag) -> ManifestAnswer:
        """Returns the answer to HEAD of a frozen tag or one held back by the minimum age. Its digest may be gone here
        and upstream; then HEAD fails as GET would.
        """
        try:
            answer = await self._resolve_digest(tag.record.digest, described=False)
        except ManifestUnknown as error:
            raise self._gone(reference, tag, error) from error
        return replace(
            answer, outcome=tag.outcome if answer.outcome is Outcome.HIT else answer.outcome, override=tag.override
        )

    async def _resolve_digest(self, digest: Digest, *, described: bool = True) -> ManifestAnswer:
        """Returns the answer to HEAD of a digest. If `described`, a manifest that is not here is answered as a stored
        index describes it, without asking whether upstream still has it.
        """
        manifest = self._caches.manifests.get((self.repo, digest)) or await self._read_again(digest)
        if manifest:
            self._intake.touch(digest)
            return self._answer(manifest, Outcome.HIT)
        await self._refuse_unknown(digest)
        if described and (description := await self._caches.described.get(self.repo, digest)):
            return ManifestAnswer(digest, *description, None, Outcome.DESCRIBED, self._upstream.name)
        descriptor = await self._caches.once.run(
            ("resolve", self.repo, digest, caller_mark()), lambda: self._by_digest(self._upstream.resolve, digest)
        )
        return ManifestAnswer(digest, descriptor.media_type, descriptor.size, None, Outcome.ASKED, self._upstream.name)

    async def _read_again(self, digest: Digest) -> Manifest | None:
        """Returns the manifest from the disk and keeps it in memory. Concurrent callers share one read, because reading
        a large manifest takes time.
        """

        async def read() -> Manifest | None:
            manifest = await self._load_stored(digest)
            if manifest:
                self._caches.manifests[self.repo, digest] = manifest
            return manifest

        return await self._caches.once.run(("read", self.repo, digest), read)

    def manifest_stands(self, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
        """See `Lasting`. HEAD does not compare a manifest in memory with the disk."""
        return InMemory.of(self._caches, self.repo, reference, answer, self._intake.touch, checked=not head)

    # ------------------------------------------------------------------------------------------------- fetch

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest once it and its tag are on the disk (durable after `settled`). A manifest that is only
        in memory, because it was evicted or could not be stored, is written now. Raises like `manifest`, and
        `StoreError` if the store cannot take it.
        """
        answer = await self.manifest(reference)
        if await self._if_readable(self._stored.manifest, answer.digest) is None:
            manifest = answer.read()
            if manifest.signed:
                raise StoreError(
                    f"{self.repo}@{answer.digest} is a signed manifest of schema 1, which cannot be stored"
                )
            stored = await self._intake.add_manifest(self.repo, manifest, await self._grants_of(manifest))
            await self._intake.record_manifests(self.repo, stored)
        # the answer of a freeze or of the minimum age is on the disk already, and did not come from upstream
        if isinstance(reference, str) and answer.override is None:
            await self._tags.store(reference, answer)
        return answer

    # --------------------------------------------------------------------------------------- asking upstream

    async def _refuse_unknown(self, digest: Digest, tag: str | None = None) -> None:
        """Raises `ManifestUnknown` if upstream answered a moment ago that it has no such manifest.

        If a tag points to the digest (`tag`, or else the tag that was last resolved to it), only a remembered answer
        about both counts: asking for the tag may make an unknown digest known.
        """
        if tag is None and await self._questions.is_unknown(self._key("manifest", digest)):
            tag = await self._tags.last_resolved_to(digest)
            if tag is None:
                raise ManifestUnknown(f"{self.repo} has no manifest {digest}")
        if tag is not None and await self._questions.is_unknown(self._key(f"manifest {tag}", digest)):
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}")

    async def _by_digest(
        self, ask: Callable[[str, Reference], Awaitable[_Described]], digest: Digest, tag: str | None = None
    ) -> _Described:
        """Returns upstream's answer for a digest. `ask` is upstream's `resolve` or `manifest`.

        Pull-through caches of clouds, and registries that build an image on demand, know a digest only after a GET for
        its tag. So before the digest is given up, a tag that points to it is asked for: `tag`, or else the tag that was
        last resolved to it. Raises `ManifestUnknown`, which is remembered for a while, and `UpstreamError`.
        """
        try:
            return await ask(self.repo.name, digest)
        except UpstreamNotFound as error:
            tag = tag or await self._tags.last_resolved_to(digest)
            with suppress(UpstreamNotFound):
                if tag and (answer := await ask(self.repo.name, tag)).digest == digest:
                    return answer
            await self._questions.note_unknown(self._key("manifest", digest))
            if tag:
                await self._questions.note_unknown(self._key(f"manifest {tag}", digest))
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}") from error

    def _key(self, kind: str, digest: Digest) -> str:
        return f"{kind} {self.repo}@{digest}"

    # ----------------------------------------------------------------------------------------------- answers

    def _answer(self, manifest: Manifest, outcome: Outcome, override: TagOverride | None = None) -> ManifestAnswer:
        return ManifestAnswer.of(manifest, outcome, self._upstream.name, override)

    def _gone(self, reference: str, tag: CachedTag, error: ManifestUnknown) -> ManifestUnknown:
        why = "frozen at" if tag.override is TagOverride.FROZEN else "held back by minimum_age at"
        return ManifestUnknown(
            f"{self.repo}:{reference} is {why} {tag.record.digest}, which is not here and cannot be fetched any more:"
            f" {error}"
        )
