"""Reads an image from a repository, with everything that belongs to it, in the order in which it can be written.

    image        the manifests that the root names, each after those that it names itself; the root is the last
    referrers    signatures, SBOMs and other artifacts whose subject is one of these, each after its subject
    attached     what clients that do not know the referrers API keep under tags such as `sha256-….sig`

Manifests are read through the repository as clients see it, so rules about content apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from mirror.errors import Denied, ManifestUnknown, MirrorError, StoreError
from mirror.oci.attachments import ATTESTED_DIGEST, attachment_tags, image_of_tag, referrers_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.repository.protocol import Readable, all_referrers
from mirror.values.platforms import Platform, wanted_children

#: Limits for one image: levels of manifests and of referrers of referrers, manifests in total, and their bytes, which
#: are all in memory.
_DEEPEST: Final = 12
_MOST_MANIFESTS: Final = 5000
_MOST_BYTES: Final = 64 << 20


class TreeTooLarge(MirrorError):
    """An image with more levels, or more manifests, than are followed."""


@dataclass(frozen=True, slots=True)
class ImageTree:
    """An image. `missing` are manifests that it names and the repository does not have: platforms that nobody pulled
    or pushed, or that were not asked for.
    """

    root: Manifest
    image: tuple[Manifest, ...]
    referrers: tuple[Manifest, ...] = ()
    attached: tuple[tuple[str, Manifest], ...] = ()
    missing: tuple[Digest, ...] = ()


async def read_tree(
    source: Readable, reference: Reference, *, platforms: Iterable[Platform] = (), referrers: bool = True
) -> ImageTree:
    """Read an image. Without `platforms`, all manifests of an index are read that the repository has.

    Raises `ManifestUnknown` if there is no such image, `TreeTooLarge`, and like `Readable.manifest`.
    """
    reader = _TreeReader(source, tuple(platforms))
    root = await reader.manifest(reference)
    await reader.walk(root, reader.image, _DEEPEST)
    if referrers:
        for manifest in list(reader.image):
            await reader.referrers_of(manifest, _DEEPEST)
        for manifest in list(reader.image):
            await reader.attached_to(manifest)
    return ImageTree(
        root, tuple(reader.image), tuple(reader.referrers), tuple(reader.attached), tuple(dict.fromkeys(reader.missing))
    )


class _TreeReader:
    """Collects the manifests of one image."""

    def __init__(self, source: Readable, platforms: Sequence[Platform]) -> None:
        self.image: list[Manifest] = []
        self.referrers: list[Manifest] = []
        self.attached: list[tuple[str, Manifest]] = []
        self.missing: list[Digest] = []
        self._source = source
        self._platforms = platforms
        self._seen: set[Digest] = set()
        self._bytes = 0

    async def manifest(self, reference: Reference) -> Manifest:
        """Read one manifest."""
        answer = await self._source.manifest(reference)
        try:
            return answer.read()
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self._source.repo}: {reference} cannot be read: {error}") from error

    async def walk(self, manifest: Manifest, into: list[Manifest], depth: int) -> None:
        """Collect a manifest after all that it names."""
        if manifest.digest in self._seen:
            return
        self._seen.add(manifest.digest)
        self._bytes += len(manifest.content)
        if depth <= 0 or len(self._seen) > _MOST_MANIFESTS or self._bytes > _MOST_BYTES:
            limits = f"{_DEEPEST} levels, {_MOST_MANIFESTS} manifests or {_MOST_BYTES >> 20} MiB of them"
            raise TreeTooLarge(f"{self._source.repo}@{manifest.digest}: more than {limits}")
        children = self._children(manifest)
        for child in manifest.manifests:
            if child not in children:
                self.missing.append(child.digest)
        for child in children:
            try:
                named = await self.manifest(child.digest)
            except ManifestUnknown:
                self.missing.append(child.digest)
                continue
            await self.walk(named, into, depth - 1)
        into.append(manifest)

    def _children(self, manifest: Manifest) -> list[Descriptor]:
        children = wanted_children(manifest.manifests, self._platforms)
        if self._platforms:
            chosen = {str(child.digest) for child in children}
            children += [
                child
                for child in manifest.manifests
                if child not in children and child.annotations.get(ATTESTED_DIGEST) in chosen
            ]
        return children

    async def referrers_of(self, manifest: Manifest, depth: int) -> None:
        """Collect the referrers of a manifest, and their referrers in turn."""
        async with aclosing(all_referrers(self._source, manifest.digest)) as listed:
            async for each in listed:
                if each.digest in self._seen:
                    continue
                try:
                    referrer = await self.manifest(each.digest)
                except (ManifestUnknown, Denied):
                    # listed, but no client can pull it
                    continue
                await self.walk(referrer, self.referrers, depth - 1)
                await self.referrers_of(referrer, depth - 1)

    async def attached_to(self, manifest: Manifest) -> None:
        """Collect what is kept under tags that are made from the manifest's digest."""
        if manifest.digest.algorithm != "sha256":
            return
        for tag in (*attachment_tags(manifest.digest), referrers_tag(manifest.digest)):
            try:
                attached = await self.manifest(tag)
            except (ManifestUnknown, Denied):
                continue
            before = len(self.missing)
            if attached.digest not in self._seen:
                await self.walk(attached, self.referrers, _DEEPEST)
            is_list = image_of_tag(tag) is None
            if is_list and attached in self.referrers:
                # the list of referrers is nothing by itself: it goes under its tag, or not at all
                self.referrers.remove(attached)
            if is_list and len(self.missing) > before:
                # some of them are gone; those that are here are copied by themselves
                del self.missing[before:]
                continue
            self.attached.append((tag, attached))
