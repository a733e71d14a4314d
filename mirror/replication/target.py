"""What takes a copy of an image, and how the image is given to it.

    blobs ──> children ──> manifest ──> referrers ──> tags such as sha256-….sig ──> the tag

Each step is skipped if the target has its result. So a copy that was interrupted goes on where it stopped, whatever
stopped it, and whoever pulls the tag finds all of the image, signatures included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import BlobUnknown
from mirror.graph.closure import Role
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.policy.hosted.push_checks import requirements
from mirror.prefetch.pulling import BlobProgress, State
from mirror.replication.image_tree import ImageTree

#: Blobs of one image that are given at once.
_AT_ONCE: Final = 4


class Given(Enum):
    """How a target came to have a blob."""

    HERE = "here"
    #: By a link to what is there already, without a byte.
    LINKED = "linked"
    SENT = "sent"


class Target(Protocol):
    """A repository that takes images. Every call may raise what a push into it may."""

    async def digest_of(self, tag: str) -> Digest | None:
        """What a tag points to; None if it is certainly absent."""

    async def has_manifest(self, digest: Digest) -> bool:
        """True if the repository has the manifest; False if it certainly has not."""

    async def check_tag(self, tag: str, now: Digest | None, digest: Digest) -> None:
        """Returns if nothing that is known here forbids that the tag, which points to `now`, points to this manifest.
        Raises `Denied`.
        """

    async def give_blob(self, blob: Descriptor, progress: Callable[[int], None]) -> Given:
        """Makes sure that the repository has a blob of the source. `progress` is called with the bytes sent so far.
        Raises `BlobUnknown` if the source does not have it.
        """

    async def put(self, manifest: Manifest, tag: str | None = None) -> None:
        """Stores a manifest under its digest or a tag. Its blobs and children were given before."""

    async def attach(self, tag: str, manifest: Manifest) -> None:
        """Stores what belongs to an image under a tag made from the image's digest, if the target needs that."""


@dataclass(slots=True)
class CopiedImage:
    """What a copy of one image has done. `was` is what the tag pointed to before; None if it was absent. The other
    fields count what the target did not have: manifests, referrers among them, blobs, and the bytes that were sent.
    """

    root: Digest
    was: Digest | None = None
    manifests: int = 0
    referrers: int = 0
    blobs: int = 0
    bytes: int = 0
    #: Whether a tag was written, or, of a dry run, would be.
    tagged: bool = False

    @property
    def is_same(self) -> bool:
        """True if the target had all of it."""
        return not self.manifests and not self.tagged

    @property
    def has_moved(self) -> bool:
        """True if the tag pointed to another manifest before."""
        return self.tagged and self.was is not None


@dataclass(slots=True)
class ImageGiver:
    """Gives images to one target. `report` is called often, on the event loop."""

    target: Target
    report: Callable[[BlobProgress], None]
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def __repr__(self) -> str:
        return f"<ImageGiver to {self.target!r}>"

    async def give(self, tree: ImageTree, tag: str | None, was: Digest | None) -> CopiedImage:
        """Gives an image, and lets the tag, which points to `was`, point to it. Raises like the calls of `Target`."""
        root = tree.root.digest
        copied = CopiedImage(root, was)
        if tag is not None and was != root:
            await self.target.check_tag(tag, was, root)
        if was != root:
            for manifest in tree.image:
                await self._give(manifest, copied)
        for manifest in tree.referrers:
            copied.referrers += await self._give(manifest, copied)
        for attached, manifest in tree.attached:
            await self.target.attach(attached, manifest)
        if tag is not None and was != root:
            await self.target.put(tree.root, tag)
            copied.tagged = True
        return copied

    async def _give(self, manifest: Manifest, copied: CopiedImage) -> bool:
        """Gives a manifest with its blobs. False if the target has it."""
        size = len(manifest.content)
        role = Role.INDEX if manifest.is_index else Role.MANIFEST
        if await self.target.has_manifest(manifest.digest):
            self.report(BlobProgress(manifest.digest, role, size, size, State.HERE))
            return False
        required = {blob.digest for blob in requirements(manifest, sparse=True).blobs}
        blobs = {blob.digest: blob for blob in manifest.blobs if not blob.foreign and blob.data is None}
        first = manifest.blobs[0].digest if manifest.has_config else None
        await _all(
            self._give_blob(blob, Role.CONFIG if digest == first else Role.LAYER, copied, needed=digest in required)
            for digest, blob in blobs.items()
        )
        await self.target.put(manifest)
        copied.manifests += 1
        self.report(BlobProgress(manifest.digest, role, size, size, State.FETCHED))
        return True

    async def _give_blob(self, blob: Descriptor, role: Role, copied: CopiedImage, *, needed: bool) -> None:
        size = max(0, blob.size)
        self.report(BlobProgress(blob.digest, role, 0, size))
        async with self._slots:
            try:
                given = await self.target.give_blob(
                    blob, lambda sent: self.report(BlobProgress(blob.digest, role, sent, size))
                )
            except BlobUnknown:
                # a target that needs the blob says so when it gets the manifest, and names all that are missing
                if needed:
                    self.report(BlobProgress(blob.digest, role, 0, 0, State.HERE))
                return
        state = State.HERE
        if given is not Given.HERE:
            state = State.FETCHED
            copied.blobs += 1
        if given is Given.SENT:
            copied.bytes += size
        self.report(BlobProgress(blob.digest, role, size, size, state))


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Runs all of it. If some of it fails, the rest is ended, and the first error is raised as it is."""
    tasks: Sequence[asyncio.Task[None]] = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
