"""Prefetches a list of images, a few at a time, and returns one result for all of them.

    images ──> a few at once ──> pull_image ──> ImageResult ──> is all of it still here? ──> Prefetched
                                   │
                                   └── the blobs of all images share the slots

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
from mirror.prefetch.pulling import BlobProgress, BlobResult, ImageResult, State, pull_image
from mirror.repository.protocol import Readable
from mirror.values.platforms import Platform


@dataclass(frozen=True, slots=True)
class Failure:
    """A part of an image that could not be fetched, with the reason, for people. `digest` is None if the failure is not
    about one digest.
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
    def of(cls, blobs: Iterable[BlobResult]) -> PrefetchCounts:
        """The count and total size of these results."""
        sizes = [max(0, blob.size) for blob in blobs]
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
        return all(result.ok for result in self.images.values())

    @property
    def fetched(self) -> PrefetchCounts:
        """The digests that were fetched; each is counted once, even if several images name it."""
        return PrefetchCounts.of(blob for blob in self._by_digest().values() if blob.state is State.FETCHED)

    @property
    def here(self) -> PrefetchCounts:
        """The digests that were here already; each is counted once."""
        return PrefetchCounts.of(blob for blob in self._by_digest().values() if blob.state is State.HERE)

    @property
    def failures(self) -> list[Failure]:
        """All failures, image by image."""
        return [failure for image, result in self.images.items() for failure in _failures(image, result)]

    @property
    def stale(self) -> list[Image]:
        """The images for whose tag upstream did not answer; the images are here as they were before."""
        return [image for image, result in self.images.items() if result.stale]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON; sizes are in bytes. `new` and `here` at the top level count each digest once."""
        return {
            "ok": self.ok,
            "new": self.fetched.to_json(),
            "here": self.here.to_json(),
            "images": [_image_to_json(image, result) for image, result in self.images.items()],
        }

    def _by_digest(self) -> dict[Digest, BlobResult]:
        """One result for each digest over all images: FETCHED takes precedence over HERE, and HERE over FAILED."""
        order = [State.FAILED, State.HERE, State.FETCHED]
        best: dict[Digest, BlobResult] = {}
        for result in self.images.values():
            for digest, blob in result.blobs.items():
                other = best.get(digest)
                if other is None or order.index(blob.state) > order.index(other.state):
                    best[digest] = blob
        return best


def _failures(image: Image, result: ImageResult) -> list[Failure]:
    failures = [Failure(image, None, result.error)] if result.error is not None else []
    failures += [Failure(image, None, problem) for problem in result.problems]
    failures += [Failure(image, digest, result.blobs[digest].error or "failed") for digest in result.of(State.FAILED)]
    return failures


def _image_to_json(image: Image, result: ImageResult) -> dict[str, Any]:
    blobs = result.blobs.values()
    return {
        "image": str(image),
        "digest": str(result.root) if result.root else None,
        "ok": result.ok,
        "stale": result.stale,
        "new": PrefetchCounts.of(blob for blob in blobs if blob.state is State.FETCHED).to_json(),
        "here": PrefetchCounts.of(blob for blob in blobs if blob.state is State.HERE).to_json(),
        "failures": [
            {"digest": str(failure.digest) if failure.digest else None, "reason": failure.reason}
            for failure in _failures(image, result)
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
    report: Callable[[Image, BlobProgress], None] = lambda _image, _progress: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Prefetched:
    """Fetch the images that are not here. Without `platforms`, all manifests of an index are fetched. `referrers` also
    fetches signatures, SBOMs and other referrers.

    `report` is called on the event loop, often: it must be cheap. Raises nothing but cancellation; interrupted blobs
    stay as partials, and another call continues them. `sleep` does the waits that an upstream asks for.
    """
    chosen = tuple(platforms)
    wanted = list(dict.fromkeys(images))
    blob_slots = asyncio.Semaphore(blobs_at_once)
    image_slots = asyncio.Semaphore(images_at_once)

    async def pull(image: Image) -> ImageResult:
        async with image_slots:
            try:
                return await pull_image(
                    source_for(image.repo),
                    image.reference,
                    platforms=chosen,
                    referrers=referrers,
                    slots=blob_slots,
                    report=partial(report, image),
                    sleep=sleep,
                )
            except Exception as error:
                # a bug that one image meets must not end the others
                telemetry.log.exception("prefetch crashed", image=str(image))
                return ImageResult(error=f"unexpected: {type(error).__name__}")

    async with asyncio.TaskGroup() as group:
        tasks = {image: group.create_task(pull(image)) for image in wanted}
    results = {image: task.result() for image, task in tasks.items()}
    for image, result in results.items():
        if result.blobs:
            await asyncio.to_thread(_check_again, source_for(image.repo), result)
    return Prefetched(results)


def _check_again(source: Readable, result: ImageResult) -> None:
    """Blocking: mark the digests that are not here any more as failed."""
    for digest, blob in result.blobs.items():
        if blob.state is not State.FAILED and not source.has(digest):
            error = "dropped again to make room for others: the store is too small for all of these images"
            result.blobs[digest] = replace(blob, state=State.FAILED, error=error)
