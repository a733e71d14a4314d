"""The plan of an import: what a source has, what is here already, and what is missing. Writes nothing.

A repository may serve the blobs that the source brought for it. A blob's name in a manifest is not proof: no registry
has checked that manifest, and the blob may be here because of a private image. So a blob that is not in the source
counts as absent, unless the repository may serve it already, or a signed inventory says that the other side left it
out. A manifest that is imported without the blob (`partial`) does not grant it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import OnRead
from mirror.errors import BlobUnknown, BundleError
from mirror.graph.blob_places import BlobPlaces
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.ports import Blobs, Body

#: How many levels of indexes within indexes are allowed.
_DEEPEST: Final = 8
#: Manifests and blobs of all images together. A bundle with more is taken for an attack on memory.
_MOST_NAMED: Final = 5_000_000
#: How many problems an error lists.
_SHOWN: Final = 20

#: Returns whether the repository may serve the blob already. Blocking; raises `StoreError` if that cannot be found out.
MayServe = Callable[[Repo, Digest], bool]


class ImportSource(Protocol):
    """Where the bytes of an import come from. Every call may raise `BundleError`, and `StoreError` if the source cannot
    be reached at the moment.
    """

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; None if the source does not have it."""

    def vouches(self, digest: Digest) -> bool:
        """True if the source shows that the blob belongs to the repository of its images, which may then serve it."""

    def manifest(self, digest: Digest) -> bytes | None:
        """The manifest's bytes, checked against the digest; None if the source does not have it."""

    def body(self, digest: Digest, start: int, on_read: OnRead) -> AbstractContextManager[Body]:
        """The blob's bytes from offset `start`, not verified. `on_read` is called with the bytes of each read."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to import. `manifests` has children before parents; `blobs` gives sizes in bytes (-1: unknown).

    `proven` are the blobs that the repository may serve, `embedded` the blobs whose bytes are in a manifest (`data`).
    """

    image: ListedImage
    source: ImportSource
    manifests: tuple[Descriptor, ...]
    blobs: Mapping[Digest, int]
    proven: frozenset[Digest]
    embedded: Mapping[Digest, bytes]


@dataclass(slots=True)
class ImportPlan:
    """What an import would do.

    `absent` are blobs that are neither in the source nor here for the repository that needs them, each with the name of
    an image that needs it. `refused` are the names of images that cannot be imported, each with the reason.
    """

    images: list[PlannedImage] = field(default_factory=list)
    absent: dict[Digest, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def contents(self) -> dict[Digest, int]:
        """The digests that the images need and the sources have, with their sizes in bytes."""
        sizes: dict[Digest, int] = {}
        for planned in self.images:
            for digest in (*(manifest.digest for manifest in planned.manifests), *planned.blobs):
                size = planned.source.size(digest)
                if size is not None:
                    sizes[digest] = size
        return sizes

    def require_complete(self, *, partial: bool) -> None:
        """Raise `BundleError` if an image cannot be imported or, unless `partial`, would lack a blob."""
        problems = [f"{name}: {reason}" for name, reason in self.refused.items()]
        if not partial:
            problems += [
                f"{name}: {digest} is neither in the source nor in this mirror for that repository"
                for digest, name in self.absent.items()
            ]
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise BundleError("\n  ".join([*problems[:_SHOWN], *more]))


def plan_images(
    images: Iterable[tuple[ListedImage, ImportSource]],
    store: Blobs | BlobPlaces,
    *,
    may_serve: MayServe,
    left_out: Collection[Digest] = (),
    skip_damaged: bool = False,
) -> ImportPlan:
    """Blocking: read every manifest and compare it with what the sources have. Writes nothing.

    `left_out` are the blobs that this side has according to a signed inventory. If a blob in the source has another
    size than its descriptor says, the image is refused; with `skip_damaged` it is planned, and the import
    will find that the blob is damaged. Raises `StoreError`.
    """
    places = store if isinstance(store, BlobPlaces) else BlobPlaces.only(store)
    planner = _Planner(places, may_serve, frozenset(left_out), skip_damaged)
    for image, source in images:
        try:
            planner.plan.images.append(planner.image(image, source))
        except (BundleError, ManifestMalformed) as error:
            planner.plan.refused[image.name] = str(error)
    return planner.plan


@dataclass(frozen=True, slots=True)
class _Read:
    """A manifest's descriptor, and the manifests and blobs that the manifest names."""

    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]


class _Planner:
    def __init__(
        self, places: BlobPlaces, may_serve: MayServe, left_out: frozenset[Digest], skip_damaged: bool
    ) -> None:
        self.plan = ImportPlan()
        self._places = places
        self._may_serve = may_serve
        self._left_out = left_out
        self._skip_damaged = skip_damaged
        self._read: dict[tuple[Digest, str], _Read] = {}
        self._named = 0

    def image(self, image: ListedImage, source: ImportSource) -> PlannedImage:
        manifests: dict[Digest, Descriptor] = {}
        blobs: dict[Digest, int] = {}
        absent: list[Digest] = []
        embedded: dict[Digest, bytes] = {}
        for read in self._walk(image.root, source, set(), 0):
            manifests[read.descriptor.digest] = read.descriptor
            for blob in read.blobs:
                if blob.foreign or blob.digest in blobs:
                    continue
                blobs[blob.digest] = blob.size
                if blob.data is not None:
                    embedded[blob.digest] = blob.data
                elif not self._is_available(image.repo, blob, source):
                    absent.append(blob.digest)
        if image.root.digest not in manifests:
            raise BundleError(f"its manifest {image.root.digest} is not in it")
        self._named += len(manifests) + len(blobs)
        if self._named > _MOST_NAMED:
            raise BundleError(f"the images name more than {_MOST_NAMED} blobs together")
        for digest in absent:
            self.plan.absent.setdefault(digest, image.name)
        root = manifests[image.root.digest]
        listed = ListedImage(image.repo, image.tag, root)
        proven = frozenset(
            blob for blob in blobs.keys() - set(absent) if source.size(blob) is None or source.vouches(blob)
        )
        return PlannedImage(listed, source, tuple(manifests.values()), blobs, proven, embedded)

    def _walk(self, descriptor: Descriptor, source: ImportSource, seen: set[Digest], depth: int) -> Iterator[_Read]:
        """The manifest and those below it, children first. A child that the source lacks is a platform that was never
        pulled, and is skipped.
        """
        if descriptor.digest in seen:
            return
        seen.add(descriptor.digest)
        if depth > _DEEPEST:
            raise BundleError(f"indexes are nested more than {_DEEPEST} levels deep")
        read = self._read_manifest(descriptor, source)
        if read is None:
            return
        for child in read.manifests:
            yield from self._walk(child, source, seen, depth + 1)
        yield read

    def _read_manifest(self, descriptor: Descriptor, source: ImportSource) -> _Read | None:
        digest, size = descriptor.digest, source.size(descriptor.digest)
        key = digest, descriptor.media_type
        if size is None:
            return None
        if size > LARGEST:
            raise BundleError(f"the manifest {digest} has {size} bytes, more than the {LARGEST} allowed")
        if descriptor.size not in (-1, size):
            raise BundleError(f"{digest} has {size} bytes, where its descriptor says {descriptor.size}")
        if key not in self._read:
            content = source.manifest(digest)
            if content is None:
                return None
            manifest = parse_manifest(content, descriptor)
            described = Descriptor(manifest.media_type, digest, len(content))
            self._read[key] = _Read(described, manifest.manifests, manifest.blobs)
        return self._read[key]

    def _is_available(self, repo: Repo, blob: Descriptor, source: ImportSource) -> bool:
        """True if the source has the blob, or if it is here and the repository may use it. Raises `BundleError` if the
        source's blob has another size, `StoreError`.
        """
        size = source.size(blob.digest)
        if size is None:
            here = size_here(self._places.of(repo), blob.digest)
            if here is None or blob.size not in (-1, here):
                return False
            return blob.digest in self._left_out or self._may_serve(repo, blob.digest)
        if blob.size not in (-1, size) and not self._skip_damaged:
            raise BundleError(f"{blob.digest} has {size} bytes, where its descriptor says {blob.size}")
        return True


def parse_manifest(content: bytes, descriptor: Descriptor) -> Manifest:
    """The manifest that a descriptor is for. Raises `BundleError` if the bytes are not one."""
    try:
        return read_manifest(content, descriptor.media_type, algorithm=descriptor.digest.algorithm)
    except ManifestMalformed as error:
        raise BundleError(f"{descriptor.digest} is not a manifest: {error}") from error


def size_here(store: Blobs, digest: Digest) -> int | None:
    """The blob's size in this store in bytes; None if it is certainly absent. Raises `StoreError`."""
    try:
        return store.stat(digest).size
    except BlobUnknown:
        return None
