"""Inventories: the lists of images and blobs that a site or a bundle has.

The connected side reads the isolated side's inventory and leaves the blobs in it out of a bundle. A bundle contains an
inventory of its own, which names every blob in it by digest, so that a signature of the inventory covers the whole
bundle.

The same content always gives the same bytes: an inventory is sorted and contains no times or host names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.errors import BundleError, RecordDamaged, RequestError
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.walk import damaged_may_be_missing, stored_in, walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, check_manifest_type
from mirror.oci.reference import Repo, check_name, check_registry, check_tag
from mirror.oci.strict_json import read_json
from mirror.ports import Blobs, Catalog

_VERSION: Final = 1

#: The largest inventory that is read, in bytes: half a million blobs.
LARGEST_INVENTORY: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image of a site or bundle. `root` describes its manifest or index. `tag` is None if the image is known by its
    digest only, as referrers are.
    """

    repo: Repo
    tag: str | None
    root: Descriptor

    @property
    def name(self) -> str:
        """`docker.io/library/app:v1`, or `docker.io/library/app@sha256:…`."""
        return f"{self.repo}:{self.tag}" if self.tag else f"{self.repo}@{self.root.digest}"

    @property
    def order(self) -> tuple[Repo, str, Digest]:
        """The key by which images are sorted."""
        return self.repo, self.tag or "", self.root.digest

    @property
    def key(self) -> tuple[str, Digest, str, int]:
        """Everything that an inventory says about the image, to compare it."""
        return self.name, self.root.digest, self.root.media_type, self.root.size

    def to_json(self) -> dict[str, Any]:
        """The image's entry in an inventory; `size` is that of the manifest or index in bytes."""
        return {
            "registry": self.repo.registry,
            "repository": self.repo.name,
            "tag": self.tag,
            "digest": str(self.root.digest),
            "mediaType": self.root.media_type,
            "size": self.root.size,
        }


@dataclass(frozen=True, slots=True)
class Inventory:
    """The images and blobs of a site or bundle; `blobs` gives sizes in bytes and includes manifests.

    Only in a bundle's inventory: `left_out` are blobs of its images that the other side has according to its own
    inventory, `missing` are blobs that the exporting side did not have (size -1: unknown).
    """

    images: tuple[ListedImage, ...]
    blobs: Mapping[Digest, int]
    left_out: Mapping[Digest, int] = field(default_factory=dict)
    missing: Mapping[Digest, int] = field(default_factory=dict)

    @property
    def present(self) -> Mapping[Digest, int]:
        """The blobs that a site has after it imported a bundle with this inventory."""
        return {**self.left_out, **self.blobs}

    @property
    def size(self) -> int:
        """Size of all blobs together, in bytes."""
        return sum(self.blobs.values())

    def to_bytes(self) -> bytes:
        """The inventory file: JSON with one line for each image and blob."""
        lists = {
            "images": [image.to_json() for image in sorted(self.images, key=lambda image: image.order)],
            "blobs": _entries(self.blobs),
            "leftOut": _entries(self.left_out),
            "missing": _entries(self.missing),
        }
        written = ",\n".join(f'"{name}": {_lines(entries)}' for name, entries in lists.items())
        return f'{{\n"mirrorInventory": {_VERSION},\n{written}\n}}\n'.encode()


def _entries(blobs: Mapping[Digest, int]) -> list[dict[str, Any]]:
    return [{"digest": str(digest), "size": size} for digest, size in sorted(blobs.items())]


def _lines(entries: list[dict[str, Any]]) -> str:
    return "[" + ",".join(f"\n {json.dumps(entry)}" for entry in entries) + ("\n]" if entries else "]")


def read_inventory(content: bytes) -> Inventory:
    """Parse an inventory file; unknown fields are ignored. Raises `BundleError` if it is not a complete inventory."""
    try:
        body = read_json(content)
        version = body["mirrorInventory"]
        if version != _VERSION:
            raise BundleError(f"the inventory is of version {version!r}; this mirror knows version {_VERSION}")
        images = tuple(_read_image(entry) for entry in body["images"])
        if len({image.name for image in images}) != len(images):
            raise BundleError("the inventory names an image twice")
        lists = [_read_blobs(body.get(name, [])) for name in ("blobs", "leftOut", "missing")]
    except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise BundleError(f"not an inventory of a mirror: {type(error).__name__}: {error}") from error
    return Inventory(images, *lists)


def _read_image(entry: dict[str, Any]) -> ListedImage:
    repo = Repo(check_registry(entry["registry"]), check_name(entry["repository"]))
    tag = entry["tag"]
    root = Descriptor(check_manifest_type(entry["mediaType"]), Digest.parse(entry["digest"]), _size(entry))
    return ListedImage(repo, None if tag is None else check_tag(tag), root)


def _read_blobs(entries: list[dict[str, Any]]) -> dict[Digest, int]:
    blobs = {Digest.parse(entry["digest"]): _size(entry) for entry in entries}
    if len(blobs) != len(entries):
        raise BundleError("the inventory names a blob twice")
    return blobs


def _size(entry: dict[str, Any]) -> int:
    size = entry["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < -1:
        raise ValueError(f"not a size: {size!r}")
    return size


def take_inventory(store: Blobs | BlobPlaces, catalog: Catalog) -> Inventory:
    """Blocking: the inventory of this site, read from the disk. Blobs of hosted images are listed only if the cache has
    them too: a cached image cannot use the others.

    An image is listed if its manifest or index is here. A manifest without a tag is listed if no index here names it.
    Raises `StoreError` if a manifest cannot be read at the moment, instead of leaving it out.
    """
    places = store if isinstance(store, BlobPlaces) else BlobPlaces.only(store)
    images: list[ListedImage] = []
    for repo in catalog.repositories():
        images += _images_of(places.of(repo), catalog, repo)
    return Inventory(tuple(images), {info.digest: info.size for info in places.cache.walk()})


def _images_of(store: Blobs, catalog: Catalog, repo: Repo) -> Iterator[ListedImage]:
    present: dict[Digest, Descriptor] = {}
    below: set[Digest] = set()
    for _, digest, stored in walk(catalog, stored_in(store, catalog), damaged_may_be_missing, [repo]):
        manifest = stored.manifest
        present[digest] = Descriptor(manifest.media_type, digest, len(manifest.content))
        below.update(child.digest for child in manifest.manifests)
    tagged = set()
    for tag, digest in _tags(catalog, repo):
        if digest in present:
            tagged.add(digest)
            yield ListedImage(repo, tag, present[digest])
    for digest in present.keys() - tagged - below:
        yield ListedImage(repo, None, present[digest])


def _tags(catalog: Catalog, repo: Repo) -> Iterable[tuple[str, Digest]]:
    for tag in catalog.tags(repo):
        with suppress(RecordDamaged):
            record = catalog.get_tag(repo, tag)
            if record is not None:
                yield tag, record.digest
