"""Warms the cache: an image, with everything below it, is brought into its own pulled-through repository.

    reference ──> manifest ──┬─ index ──> wanted children ──> (the same again)
                             └─ image ──> config, layers: as many at once as the gate lets through

Nothing is begun twice: what is here is only looked at, what is on its way for a client is followed, and an interrupted
blob goes on where it stopped. One failure ends nothing; the summary names it. Doing it again is how it is resumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Protocol

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest, read_manifest
from mirror.oci.reference import Reference
from mirror.policy.platforms import Platform, wanted_children
from mirror.repository.closure import Role
from mirror.repository.content import ManifestAnswer, Outcome
from mirror.repository.proxied import Listing

__all__ = ["Moved", "Progress", "Source", "State", "Warmed", "warm"]


class State(Enum):
    """How one digest ended."""

    HERE = "here"
    FETCHED = "fetched"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one digest is. `received` and `size` are bytes; `size` None: unknown. `state` None: under way."""

    digest: Digest
    role: Role
    received: int
    size: int | None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one digest; `size` in bytes, `error` for people."""

    role: Role
    size: int
    state: State
    error: str | None = None


@dataclass(slots=True)
class Warmed:
    """What became of an image. `root` is its digest; None where not even that could be learnt (`error` says why)."""

    root: Digest | None = None
    error: str | None = None
    moved: dict[Digest, Moved] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all of it is here."""
        return self.error is None and not self.of(State.FAILED)

    def of(self, state: State) -> list[Digest]:
        """The digests that ended so."""
        return [digest for digest, moved in self.moved.items() if moved.state is state]

    def bytes_of(self, state: State) -> int:
        """Their bytes."""
        return sum(moved.size for moved in self.moved.values() if moved.state is state)


class Source(Protocol):
    """What is needed of a repository (`ProxiedRepository`)."""

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Raises `ManifestUnknown`, `UpstreamError`."""

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Raises `BlobUnknown`, `UpstreamError`, `StoreError`."""

    async def referrers(self, digest: Digest) -> Listing:
        """Raises `UpstreamError`."""


async def warm(
    source: Source,
    reference: Reference,
    *,
    platforms: Iterable[Platform] = (),
    referrers: bool = False,
    gate: asyncio.Semaphore,
    report: Callable[[Progress], None] = lambda _: None,
) -> Warmed:
    """Bring an image in. `platforms`: none means all of an index; `referrers`: signatures, SBOMs and the like too.

    `gate` bounds the blobs under way at once, over all images that share it. Raises nothing but cancellation.
    """
    warming = _Warming(source, tuple(platforms), referrers, gate, report)
    await warming.image(reference)
    return warming.result


class _Warming:
    def __init__(
        self,
        source: Source,
        platforms: tuple[Platform, ...],
        referrers: bool,
        gate: asyncio.Semaphore,
        report: Callable[[Progress], None],
    ) -> None:
        self.result = Warmed()
        self._source = source
        self._platforms = platforms
        self._referrers = referrers
        self._gate = gate
        self._report = report
        self._seen: set[Digest] = set()
        self._received: dict[Digest, int] = {}

    async def image(self, reference: Reference) -> None:
        try:
            answer = await self._source.manifest(reference)
            manifest = _parsed(answer)
        except (MirrorError, ValueError) as error:
            self.result.error = str(error)
            return
        self.result.root = manifest.digest
        self._seen.add(manifest.digest)
        self._note_manifest(manifest, answer)
        await self._below(manifest)

    async def _manifest(self, descriptor: Descriptor) -> None:
        try:
            answer = await self._source.manifest(descriptor.digest)
            manifest = _parsed(answer)
        except (MirrorError, ValueError) as error:
            self._end(descriptor.digest, Moved(Role.MANIFEST, descriptor.size, State.FAILED, str(error)))
            return
        self._note_manifest(manifest, answer)
        await self._below(manifest)

    async def _below(self, manifest: Manifest) -> None:
        work = [self._manifest(child) for child in self._fresh(wanted_children(manifest.manifests, self._platforms))]
        for number, blob in enumerate(manifest.blobs):
            role = Role.CONFIG if number == 0 and manifest.has_config else Role.LAYER
            work += [self._blob(one, role) for one in self._fresh([blob]) if not one.foreign]
        if self._referrers:
            work.append(self._referring(manifest.digest))
        await _all(work)

    async def _referring(self, digest: Digest) -> None:
        try:
            listing = await self._source.referrers(digest)
        except MirrorError as error:
            self._end(digest, Moved(Role.MANIFEST, 0, State.FAILED, f"its referrers: {error}"))
            return
        await _all([self._manifest(one) for one in self._fresh(listing.items)])

    async def _blob(self, descriptor: Descriptor, role: Role) -> None:
        digest = descriptor.digest
        async with self._gate:
            try:
                fetched = await self._source.fetch(digest, partial(self._moving, digest, role))
            except MirrorError as error:
                self._end(digest, Moved(role, max(0, descriptor.size), State.FAILED, str(error)))
                return
        size = max(descriptor.size, self._received.pop(digest, 0))
        self._end(digest, Moved(role, size, State.FETCHED if fetched else State.HERE))

    def _moving(self, digest: Digest, role: Role, received: int, size: int | None) -> None:
        self._received[digest] = received
        self._report(Progress(digest, role, received, size))

    def _note_manifest(self, manifest: Manifest, answer: ManifestAnswer) -> None:
        role = Role.INDEX if manifest.is_index else Role.MANIFEST
        state = State.FETCHED if answer.outcome is Outcome.MISS else State.HERE
        self._end(manifest.digest, Moved(role, len(manifest.content), state))

    def _end(self, digest: Digest, moved: Moved) -> None:
        self.result.moved[digest] = moved
        received = 0 if moved.state is State.FAILED else moved.size
        self._report(Progress(digest, moved.role, received, moved.size, moved.state))

    def _fresh(self, descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
        for descriptor in descriptors:
            if descriptor.digest not in self._seen:
                self._seen.add(descriptor.digest)
                yield descriptor


def _parsed(answer: ManifestAnswer) -> Manifest:
    """Raises `ValueError` where it is no manifest."""
    return read_manifest(answer.content or b"", answer.media_type, algorithm=answer.digest.algorithm)


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Side by side; where one crashes or we are cancelled, the others are ended, not left behind."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)
