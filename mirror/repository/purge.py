"""Drop one image on purpose: what names it, then what nothing else needs.

    1. refused while the image is pinned, or its tag is frozen, or nobody knows whether it is
    2. the tag's record (by digest: those of all tags that point to it)
    3. unless another tag of the repository points to the same: the links of its manifests that nothing else names
    4. the blobs that no manifest of any repository names any more, but for those that pins and downloads need

In this order a crash leaves blobs that nothing names, which eviction takes first. A pull in the same moment brings the
image back, as any later one does: a purge is no prohibition (that is `[content] deny`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mirror.errors import IndexUnavailable, Kept, ManifestUnknown
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Repo
from mirror.policy.images import Image, name_of
from mirror.policy.pins import PinRule
from mirror.ports import BlobStore, Catalog, ContentIndex, Freezes, Pins
from mirror.repository.closure import Closure, read_closure, read_stored_manifest
from mirror.repository.evictor import Evictor
from mirror.repository.pins import images_of, why_pinned
from mirror.repository.unread import Subjects

__all__ = ["Purge", "Purged"]


@dataclass(frozen=True, slots=True)
class Purged:
    """What went: tags, links of manifests, blobs and their bytes."""

    image: str
    repo: Repo
    tags: tuple[str, ...]
    manifests: tuple[Digest, ...]
    blobs: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "image": self.image,
            "tags": list(self.tags),
            "manifests": [str(digest) for digest in self.manifests],
            "blobs": self.blobs,
            "bytes": self.bytes,
        }


class Purge:
    """Of one store. `forget` is told of what must not be answered from memory any more."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        pins: Pins,
        rules: Iterable[PinRule],
        freezes: Freezes,
        index: ContentIndex,
        evictor: Evictor,
        *,
        forget: Callable[[Repo, Collection[str], Collection[Digest]], None] = lambda repo, tags, digests: None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._pins = pins
        self._rules = tuple(rules)
        self._freezes = freezes
        self._index = index
        self._evictor = evictor
        self._forget = forget

    async def __call__(self, image: Image) -> Purged:
        """Raises `ManifestUnknown` where it is not here, `Kept`, `StoreError`."""
        tags, manifests, candidates = await asyncio.to_thread(self._unname, image)
        await asyncio.to_thread(self._forget, image.repo, tags, manifests)
        # asked for after the links are gone: what others name now stays
        by_repository = await asyncio.to_thread(self._named)
        blobs, size = await self._evictor.drop(candidates.difference(*by_repository.values()))
        with suppress(IndexUnavailable):
            # without it the links are found to be wrong when index and disk are compared
            await self._index.unlink(image.repo, sorted(candidates - by_repository.get(image.repo, set())))
        return Purged(name_of(image.repo, image.reference), image.repo, tags, manifests, blobs, size)

    def _unname(self, image: Image) -> tuple[tuple[str, ...], tuple[Digest, ...], set[Digest]]:
        """Blocking: steps 1 to 3, with the digests that may go."""
        repo = image.repo
        root, tags = self._find(image)
        self._refuse_if_kept(image, root.digest, tags)
        closure = read_closure(self._store, self._catalog, repo, root)
        for tag in tags:
            self._catalog.drop_tag(repo, tag)
        manifests = tuple(sorted(self._unnamed_manifests(repo, root, closure)))
        for digest in manifests:
            self._catalog.drop_manifest(repo, digest)
        return tags, manifests, {node.digest for node in closure.nodes} if manifests else set()

    def _find(self, image: Image) -> tuple[Descriptor, tuple[str, ...]]:
        """What the image is, and the tags that go with it."""
        repo = image.repo
        if image.digest is None:
            tag = str(image.reference)
            record = self._catalog.get_tag(repo, tag)
            if record is None:
                raise ManifestUnknown(f"{image} is not here")
            return Descriptor(record.media_type, record.digest, record.size), (tag,)
        manifest = self._catalog.get_manifest(repo, image.digest)
        if manifest is None:
            raise ManifestUnknown(f"{image} is not here")
        pointing = tuple(tag for tag in self._catalog.tags(repo) if self._points(repo, tag) == image.digest)
        return Descriptor(manifest.media_type, image.digest, manifest.size), pointing

    def _points(self, repo: Repo, tag: str) -> Digest | None:
        record = self._catalog.get_tag(repo, tag)
        return record.digest if record else None

    def _refuse_if_kept(self, image: Image, digest: Digest, tags: Iterable[str]) -> None:
        """Raises `Kept`, and `StoreError` where a pin or a freeze cannot be read and what it is for is not known."""
        pins, unread_pins = self._pins.look()
        freezes, unread_freezes = self._freezes.look()
        subjects = Subjects(self._catalog).of([*unread_pins, *unread_freezes])
        pinned = images_of(pins, subjects, self._rules, self._catalog, time.time())
        for tag in (*tags, None):
            for why in why_pinned(pinned, image.repo, tag=tag, digest=digest):
                by = f"the rule {why.rule}" if why.rule else f"the pin of {name_of(why.repo, why.reference)}"
                raise Kept(f"{image} stays because of {by}; unpin it first")
        for note, (repo, reference) in subjects.items():
            if note.kind == "freezes" and repo == image.repo:
                name = name_of(repo, reference)
                raise Kept(
                    f"{image} stays because {name} is frozen, but at what cannot be read: freeze it --at a digest, or "
                    "unfreeze it"
                )
        for freeze in freezes:
            if freeze.repo == image.repo and freeze.digest == digest:
                raise Kept(f"{image} stays because {freeze.repo}:{freeze.tag} is frozen at it; unfreeze that first")

    def _unnamed_manifests(self, repo: Repo, root: Descriptor, closure: Closure) -> set[Digest]:
        """Those of the image that no other tag, freeze or manifest of the repository names."""
        ours = {root.digest, *closure.named}
        kept = {digest for tag in self._catalog.tags(repo) if (digest := self._points(repo, tag))}
        kept |= {freeze.digest for freeze in self._freezes.all() if freeze.repo == repo}
        for digest in self._catalog.manifest_digests(repo):
            if digest not in ours:
                other = read_stored_manifest(self._store, self._catalog, repo, digest)
                kept.update(child.digest for child in (other.manifests if other else ()))
        left = [digest for digest in ours if digest in kept]
        while left:
            below = [child for child in closure.named.get(left.pop(), ()) if child in ours and child not in kept]
            kept.update(below)
            left += below
        return {digest for digest in ours - kept if self._catalog.get_manifest(repo, digest)}

    def _named(self) -> dict[Repo, set[Digest]]:
        """Blocking, a file or two for each manifest here: all that the manifests of each repository are, or name."""
        named: dict[Repo, set[Digest]] = {}
        for repo in self._catalog.repositories():
            found = named.setdefault(repo, set())
            for record in self._catalog.manifests(repo):
                found.add(record.digest)
                manifest = read_stored_manifest(self._store, self._catalog, repo, record.digest)
                if manifest is not None:
                    found.update(child.digest for child in (*manifest.manifests, *manifest.blobs))
        return named
