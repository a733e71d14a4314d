"""Fetches an image, with everything below it, through the repository that clients pull it from.

    reference ──> manifest ──┬─ index ──> wanted children ──> (the same again)
                             └─ image ──> config, layers: as many at once as there are slots

Nothing is fetched twice: a blob that is here is only checked, a transfer that a client started is followed, and an
interrupted blob continues where it stopped. A failure does not end the work; the result lists it. To resume, the caller
calls `pull_image` again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

from mirror import telemetry
from mirror.errors import Denied, ManifestUnknown, MirrorError, StoreError, UpstreamThrottled
from mirror.graph.closure import Role
from mirror.oci.attachments import ATTESTED_DIGEST, attachment_tags
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.oci.strict_json import read_json
from mirror.oci.text import printable
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.repository.protocol import Fetchable, Readable, all_referrers
from mirror.values.platforms import Platform, read_platform, wanted_children

T = TypeVar("T")

#: Limits for one image: levels of manifests below it, referrers of referrers included, and manifests in total. Real
#: images have three or four levels. The limits stop a registry that invents referrers without end.
_DEEPEST: Final = 12
_MOST_MANIFESTS: Final = 5000
_TOO_MUCH: Final = f"not followed: more than {_DEEPEST} levels or {_MOST_MANIFESTS} manifests"

#: How many seconds an upstream may ask the mirror to wait, and how many times for one request.
_LONGEST_WAIT: Final = 60.0
_WAITS: Final = 5

_IMAGE_CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
#: The largest config that is read for its platform, in bytes.
_LARGEST_CONFIG: Final = 4 << 20


class State(Enum):
    """How the work on one digest ended."""

    HERE = "here"
    FETCHED = "fetched"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BlobProgress:
    """The progress of one digest. `received` and `size` are in bytes; `size` is None if unknown. `state` is None while
    the digest is under way.
    """

    digest: Digest
    role: Role
    received: int
    size: int | None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class BlobResult:
    """The result for one digest. `size` is in bytes; `error` is for people."""

    role: Role
    size: int
    state: State
    error: str | None = None


@dataclass(slots=True)
class ImageResult:
    """The result for one image. `root` is its digest; None if its manifest could not be fetched (`error` says why).
    `blobs` has its manifests, too.

    `problems` are problems that are not about one digest, for people: a platform that the image does not support,
    referrers that could not be listed. `stale`: upstream did not answer for the tag; the image is here as it was.
    """

    root: Digest | None = None
    error: str | None = None
    blobs: dict[Digest, BlobResult] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stale: bool = False

    @property
    def ok(self) -> bool:
        """True if everything that was requested of the image is here."""
        return self.error is None and not self.problems and not self.of(State.FAILED)

    def of(self, state: State) -> list[Digest]:
        """The digests whose result has this state."""
        return [digest for digest, blob in self.blobs.items() if blob.state is state]


async def pull_image(
    source: Readable,
    reference: Reference,
    *,
    platforms: Iterable[Platform] = (),
    referrers: bool = False,
    slots: asyncio.Semaphore,
    report: Callable[[BlobProgress], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> ImageResult:
    """Fetch one image. Without `platforms`, all manifests of an index are fetched. `referrers` also fetches signatures,
    SBOMs and other referrers.

    `slots` limits how many blobs are under way at once, over all images that share it. If the image does not support a
    requested platform, that is a problem in the result; the other platforms are fetched all the same. If an upstream
    throttles and asks for a short wait, this waits. Raises nothing but cancellation.
    """
    pull = _ImagePull(source, tuple(platforms), referrers, slots, report, sleep)
    await pull.image(reference)
    if isinstance(source, Fetchable):
        try:
            await source.settled()
        except StoreError as error:
            pull.result.problems.append(f"here, but not safely on the disk: {error}")
    return pull.result


class _ImagePull:
    def __init__(
        self,
        source: Readable,
        platforms: tuple[Platform, ...],
        referrers: bool,
        slots: asyncio.Semaphore,
        report: Callable[[BlobProgress], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.result = ImageResult()
        self._source = source
        self._fetchable = source if isinstance(source, Fetchable) else None
        self._platforms = platforms
        self._referrers = referrers
        self._slots = slots
        self._report = report
        self._sleep = sleep
        self._seen: set[Digest] = set()
        self._manifests = 0
        self._received: dict[Digest, int] = {}

    # ------------------------------------------------------------------------------------------------ manifests

    async def image(self, reference: Reference) -> None:
        """Fetch the root manifest and everything below it."""
        try:
            answer = await self._retried(lambda: self._fetch_manifest(reference))
            manifest = answer.read()
        except (MirrorError, ValueError) as error:
            self.result.error = str(error)
            return
        self.result.root = manifest.digest
        self.result.stale = answer.outcome.is_old
        self._seen.add(manifest.digest)
        self._note_manifest(manifest, answer)
        if self._platforms and not manifest.is_index and not await self._is_wanted(manifest):
            return
        await self._pull_below(manifest, _DEEPEST)

    async def _is_wanted(self, manifest: Manifest) -> bool:
        """True if an image without an index is for one of the platforms, or if its config does not name a platform."""
        config = manifest.blobs[0] if manifest.has_config else None
        if config is None or config.media_type not in _IMAGE_CONFIGS:
            return True
        self._seen.add(config.digest)
        await self._pull_blob(config, Role.CONFIG)
        if self.result.blobs[config.digest].state is State.FAILED:
            return True
        try:
            content = await self._source.read(config.digest, _LARGEST_CONFIG)
            platform = platform_of(content)
        except (MirrorError, ValueError):
            # the platform is unknown, so the image is taken
            return True
        if not platform:
            return True
        self._note_missing([platform])
        return any(wanted.matches(platform) for wanted in self._platforms)

    async def _pull_manifest(self, descriptor: Descriptor, depth: int, *, signed: bool, refers: bool = False) -> None:
        """Fetch a manifest that another one names, or (`refers`) that names another one as its subject.

        `depth` more levels may follow below it. `signed`: cosign may have signed it, so the tags for that are tried.
        """
        self._manifests += 1
        if depth <= 0 or self._manifests > _MOST_MANIFESTS:
            self._finish(descriptor.digest, BlobResult(Role.MANIFEST, descriptor.size, State.FAILED, _TOO_MUCH))
            return
        try:
            answer = await self._retried(lambda: self._fetch_manifest(descriptor.digest))
            manifest = answer.read()
        except (MirrorError, ValueError) as error:
            # a referrer that this mirror's rules forbid is not missed: no client could pull it either
            if not (refers and isinstance(error, Denied)):
                self._finish(descriptor.digest, BlobResult(Role.MANIFEST, descriptor.size, State.FAILED, str(error)))
            return
        self._note_manifest(manifest, answer)
        await self._pull_below(manifest, depth, signed=signed)

    async def _pull_below(self, manifest: Manifest, depth: int, *, signed: bool = True) -> None:
        tasks = [
            self._pull_manifest(child, depth - 1, signed=signed) for child in self._unseen(self._children(manifest))
        ]
        for number, blob in enumerate(manifest.blobs):
            role = Role.CONFIG if number == 0 and manifest.has_config else Role.LAYER
            tasks += [self._pull_blob(layer, role) for layer in self._unseen([blob]) if not layer.foreign]
        if self._referrers:
            tasks.append(self._pull_referrers(manifest.digest, depth))
            if signed and manifest.digest.algorithm == "sha256":
                tasks += [self._pull_attached(tag, depth) for tag in attachment_tags(manifest.digest)]
        await _all(tasks)

    def _children(self, manifest: Manifest) -> list[Descriptor]:
        """The wanted manifests of an index. A platform that the root does not have is noted as a problem."""
        children = wanted_children(manifest.manifests, self._platforms)
        if not self._platforms or not manifest.is_index:
            return children
        offered = [child.platform for child in manifest.manifests if child.platform]
        if manifest.digest == self.result.root and (offered or not (manifest.manifests or manifest.blobs)):
            self._note_missing(offered)
        if self._referrers:
            chosen = {str(child.digest) for child in children}
            children += [child for child in manifest.manifests if child.annotations.get(ATTESTED_DIGEST) in chosen]
        return children

    def _note_missing(self, offered: Sequence[Mapping[str, Any]]) -> None:
        """Note the requested platforms that are not `offered`."""
        missing = [wanted for wanted in self._platforms if not any(wanted.matches(platform) for platform in offered)]
        if missing:
            others = sorted({str(platform) for platform in map(read_platform, offered) if platform.os != "unknown"})
            names = ", ".join(map(str, missing))
            self.result.problems.append(f"not for {names}; it is for {', '.join(others) or 'no platform'}")

    # ------------------------------------------------------------------------------------------------ referrers

    async def _pull_referrers(self, digest: Digest, depth: int) -> None:
        """Fetch the referrers of this manifest (signatures, SBOMs), and their referrers in turn."""

        async def listed() -> list[Descriptor]:
            async with aclosing(all_referrers(self._source, digest)) as found:
                return [referrer async for referrer in found]

        try:
            referrers = await self._retried(listed)
        except MirrorError as error:
            self.result.problems.append(f"the referrers of {digest} could not be listed: {error}")
            return
        await _all(
            self._pull_manifest(referrer, depth - 1, signed=False, refers=True) for referrer in self._unseen(referrers)
        )

    async def _pull_attached(self, tag: str, depth: int) -> None:
        """Fetch what cosign stores under a tag beside the image, in registries without the referrers API."""
        try:
            answer = await self._retried(lambda: self._fetch_manifest(tag))
            manifest = answer.read()
        except (ManifestUnknown, Denied):
            # if this mirror's rules forbid the tag, no client could pull it either
            return
        except (MirrorError, ValueError) as error:
            self.result.problems.append(f"{tag}: {error}")
            return
        if manifest.digest not in self._seen:
            self._seen.add(manifest.digest)
            self._note_manifest(manifest, answer)
            await self._pull_below(manifest, depth - 1, signed=False)

    # ---------------------------------------------------------------------------------------------------- blobs

    async def _pull_blob(self, descriptor: Descriptor, role: Role) -> None:
        digest = descriptor.digest
        # reported before the blob has a slot, so that the total size is known early
        self._report(BlobProgress(digest, role, 0, descriptor.size if descriptor.size >= 0 else None))
        async with self._slots:
            try:
                progress = partial(self._progress, digest, role)
                fetched = await self._retried(lambda: self._fetch(digest, progress))
            except MirrorError as error:
                self._finish(digest, BlobResult(role, descriptor.size, State.FAILED, str(error)))
                return
        size = self._received.pop(digest, descriptor.size)
        self._finish(digest, BlobResult(role, size, State.FETCHED if fetched else State.HERE))

    def _progress(self, digest: Digest, role: Role, received: int, size: int | None) -> None:
        self._received[digest] = received
        self._report(BlobProgress(digest, role, received, size))

    async def _retried(self, request: Callable[[], Awaitable[T]]) -> T:
        """Run a request, and repeat it after the requested wait if upstream throttles, as registries do that see many
        requests at once.
        """
        for _ in range(_WAITS):
            try:
                return await request()
            except UpstreamThrottled as error:
                if error.retry_after > _LONGEST_WAIT:
                    raise
                telemetry.log.warning("upstream throttled", upstream=error.upstream, wait=error.retry_after)
                await self._sleep(error.retry_after)
        return await request()

    # ------------------------------------------------------------------------- of a sealed repository, what is here

    async def _fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        if self._fetchable:
            return await self._fetchable.fetch_manifest(reference)
        answer = await self._source.manifest(reference)
        if not self._source.has(answer.digest):
            raise ManifestUnknown(f"{self._source.repo}@{answer.digest} is not here any more")
        return answer

    async def _fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        if self._fetchable:
            return await self._fetchable.fetch(digest, progress)
        stat = await self._source.stat_blob(digest)
        progress(stat.size or 0, stat.size)
        return False

    # ----------------------------------------------------------------------------------------------- bookkeeping

    def _note_manifest(self, manifest: Manifest, answer: ManifestAnswer) -> None:
        role = Role.INDEX if manifest.is_index else Role.MANIFEST
        state = State.FETCHED if answer.outcome in (Outcome.MISS, Outcome.BYPASS) else State.HERE
        self._finish(manifest.digest, BlobResult(role, len(manifest.content), state))

    def _finish(self, digest: Digest, blob: BlobResult) -> None:
        self.result.blobs[digest] = blob
        received = 0 if blob.state is State.FAILED else blob.size
        self._report(BlobProgress(digest, blob.role, received, blob.size if blob.size >= 0 else None, blob.state))

    def _unseen(self, descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
        for descriptor in descriptors:
            if descriptor.digest not in self._seen:
                self._seen.add(descriptor.digest)
                yield descriptor


def platform_of(config: bytes) -> dict[str, Any]:
    """The platform that an image's config names (image-spec, config.md); empty if it names none.

    Raises `ValueError` if the config is not a JSON object.
    """
    body = read_json(config)
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    named = {name: body.get(name) for name in ("os", "architecture", "variant")}
    return {name: printable(value) for name, value in named.items() if isinstance(value, str) and value}


async def _all(tasks: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all of it concurrently. If one crashes, or this call is cancelled, the others are cancelled and awaited."""
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task)
