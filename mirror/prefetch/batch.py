"""Prefetches a list of images, a few at a time, and returns one result for all of them.

    images ──> a few at once ──> warm(image) ──> ImageResult ──> is all of it still here? ──> Prefetched
                                   │
                                   └── the blobs of all images pass one gate

A blob that several images name is fetched once and counted once. The check at the end is needed because a store that is
too small for the list evicts the first images to make room for the last ones, and that must not look like success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mirror import telemetry
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.pulling import BlobResult, ImageResult, Progress, State, warm
from mirror.repository.protocol import Readable
from mirror.values.platforms import Platform


@dataclass(frozen=True, slots=True)
class Failure:
    """A part of an image that could not be brought in, with the reason, for people. `digest` is None if the failure is
    not about one digest.
    """

    image: Image
    digest: Digest | None
    reason: str

    def __str__(self) -> str:
        return f"{self.image}: {self.digest}: {self.reason}" if self.digest else f"{self.image}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PrefetchCounts:
    """A number of digests, and their size together in bytes."""

    count: int
    bytes: int

    @classmethod
    def of(cls, moved: Iterable[BlobResult]) -> PrefetchCounts:
        """The count and total size of these results."""
        sizes = [max(0, one.size) for one in moved]
        return cls(len(sizes), sum(sizes))

    def to_json(self) -> dict[str, int]:
        """The two numbers as JSON."""
        return {"count": self.count, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Prefetched:
    """The result of each image, in the order in which the caller listed them."""

    images: Mapping[Image, ImageResult]

    @property
    def ok(self) -> bool:
        """True if all images are completely here."""
        return all(warmed.ok for warmed in self.images.values())

    @property
    def fetched(self) -> PrefetchCounts:
        """The digests that were fetched; each is counted once, even if several images name it."""
        return PrefetchCounts.of(one for one in self._by_digest().values() if one.state is State.FETCHED)

    @property
    def here(self) -> PrefetchCounts:
        """The digests that were here already; each is counted once."""
        return PrefetchCounts.of(one for one in self._by_digest().values() if one.state is State.HERE)

    @property
    def failures(self) -> list[Failure]:
        """All failures, image by image."""
        return [failure for image, warmed in self.images.items() for failure in _failures(image, warmed)]

    @property
    def stale(self) -> list[Image]:
        """The images for whose tag upstream did not answer; the images are here as they were before."""
        return [image for image, warmed in self.images.items() if warmed.stale]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON; sizes are in bytes. `new` and `here` at the top level count each digest once."""
        return {
            "ok": self.ok,
            "new": self.fetched.to_json(),
            "here": self.here.to_json(),
            "images": [_image_to_json(image, warmed) for image, warmed in self.images.items()],
        }

    def _by_digest(self) -> dict[Digest, BlobResult]:
        """One result for each digest over all images: FETCHED takes precedence over HERE, and HERE over FAILED."""
        order = [State.FAILED, State.HERE, State.FETCHED]
        found: dict[Digest, BlobResult] = {}
        for warmed in self.images.values():
            for digest, moved in warmed.moved.items():
                known = found.get(digest)
                if known is None or order.index(moved.state) > order.index(known.state):
                    found[digest] = moved
        return found


def _failures(image: Image, warmed: ImageResult) -> list[Failure]:
    found = [Failure(image, None, warmed.error)] if warmed.error is not None else []
    found += [Failure(image, None, trouble) for trouble in warmed.troubles]
    found += [Failure(image, digest, warmed.moved[digest].error or "failed") for digest in warmed.of(State.FAILED)]
    return found


def _image_to_json(image: Image, warmed: ImageResult) -> dict[str, Any]:
    moved = warmed.moved.values()
    return {
        "image": str(image),
        "digest": str(warmed.root) if warmed.root else None,
        "ok": warmed.ok,
        "stale": warmed.stale,
        "new": PrefetchCounts.of(one for one in moved if one.state is State.FETCHED).to_json(),
        "here": PrefetchCounts.of(one for one in moved if one.state is State.HERE).to_json(),
        "failures": [
            {"digest": str(failure.digest) if failure.digest else None, "reason": failure.reason}
            for failure in _failures(image, warmed)
        ],
    }


async def prefetch(
    source_for: Callable[[Repo], Readable],
    images: Sequence[Image],
    *,
    platforms: Iterable[Platform] = (),
    referrers: bool = False,
    blobs_at_once: int = 8,
    images_at_once: int = 4,
    report: Callable[[Image, Progress], None] = lambda _image, _progress: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Prefetched:
    """Fetch the images that are not here. Without `platforms`, all manifests of an index are fetched. `referrers` also
    fetches signatures, SBOMs and other referrers.

    `report` is called on the event loop, often: it must be cheap. Raises nothing but cancellation; interrupted blobs
    stay as partials, and another call continues them. `sleep` does the waits that an upstream asks for.
    """
    chosen = tuple(platforms)
    wanted = list(dict.fromkeys(images))
    gate = asyncio.Semaphore(blobs_at_once)
    turn = asyncio.Semaphore(images_at_once)

    async def one(image: Image) -> ImageResult:
        async with turn:
            try:
                return await warm(
                    source_for(image.repo),
                    image.reference,
                    platforms=chosen,
                    referrers=referrers,
                    gate=gate,
                    report=partial(report, image),
                    sleep=sleep,
                )
            except Exception as error:
                # a bug that one image meets must not end the others
                telemetry.log.exception("prefetch crashed", image=str(image))
                return ImageResult(error=f"unexpected: {type(error).__name__}")

    async with asyncio.TaskGroup() as group:
        tasks = {image: group.create_task(one(image)) for image in wanted}
    done = {image: task.result() for image, task in tasks.items()}
    for image, warmed in done.items():
        if warmed.moved:
            await asyncio.to_thread(_look_again, source_for(image.repo), warmed)
    return Prefetched(done)


def _look_again(source: Readable, warmed: ImageResult) -> None:
    """Blocking: mark the digests that are not here any more as failed."""
    for digest, moved in warmed.moved.items():
        if moved.state is not State.FAILED and not source.has(digest):
            lost = "dropped again to make room for others: the store is too small for all that was asked for"
            warmed.moved[digest] = replace(moved, state=State.FAILED, error=lost)
