"""Checks a bundle before anything in it is imported.

    open ──> the layout's own files ──> ours: inventory, its digest, its signature ──> names ──> digests of all bytes

In a bundle that a mirror wrote, everything is bound: `index.json` names the inventory by digest, the inventory names
every image and every blob with its size, and the bundle contains nothing else. A layout from another tool has no
inventory: the blobs that its images need are imported, all other files are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mirror.bundles.import_plan import ImportPlan
from mirror.bundles.inventory import LARGEST_INVENTORY, Inventory, ListedImage, read_inventory
from mirror.bundles.layout_source import LayoutSource, OnRead
from mirror.bundles.oci_layout import (
    CONTAINERD_NAME,
    FULL_NAME,
    INDEX,
    INVENTORY,
    LARGEST_INDEX,
    MARKER,
    REF_NAME,
    SIGNATURE,
    check_marker,
    read_index,
)
from mirror.bundles.signing import SIGNATURE_BYTES, check_signature
from mirror.errors import BundleError, RequestError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.policy.image_names import has_reference, parse_image
from mirror.policy.routing import RoutingTable

_OURS: Final = frozenset({MARKER, INDEX, INVENTORY, SIGNATURE})
_LARGEST_MARKER: Final = 4096


@dataclass(frozen=True, slots=True)
class Bundle:
    """A layout whose structure is valid. `inventory` is None if another tool made the layout. `verified` is true if the
    signature was checked with a key of the caller.
    """

    images: tuple[ListedImage, ...]
    inventory: Inventory | None
    verified: bool


def read_bundle(
    source: LayoutSource, table: RoutingTable, *, name: str | None = None, key: Ed25519PublicKey | None = None
) -> Bundle:
    """Blocking: check everything except the bytes of blobs, and return the bundle.

    `name` is the name for images that the layout itself does not name. If `key` is given, the inventory must be signed
    with it. Raises `BundleError`.
    """
    marker = source.read(MARKER, _LARGEST_MARKER)
    index = source.read(INDEX, LARGEST_INDEX)
    if marker is None or index is None:
        raise BundleError(f"not an OCI image layout: it has no {MARKER if marker is None else INDEX}")
    check_marker(marker)
    descriptors, bound = read_index(index)
    inventory = _inventory(source, bound, key)
    if not descriptors:
        raise BundleError(f"{INDEX} names no image")
    if inventory is not None:
        if name is not None:
            raise BundleError("it has the names of its images; --name is for layouts that do not")
        _require_equal(descriptors, inventory)
    images = tuple(_images(descriptors, table, name))
    return Bundle(images, inventory, verified=key is not None)


def verify_bytes(source: LayoutSource, plan: ImportPlan, on_read: OnRead) -> None:
    """Blocking: hash every blob and manifest that the plan would import, so that a bad bundle is refused before the
    import has changed anything. Raises `BundleError`.
    """
    for digest in plan.contents():
        source.verify(digest, on_read)


def _inventory(source: LayoutSource, bound: Digest | None, key: Ed25519PublicKey | None) -> Inventory | None:
    content = source.read(INVENTORY, LARGEST_INVENTORY)
    if content is None:
        if key is not None:
            raise BundleError("it has no inventory, so it is not signed")
        if bound is not None:
            raise BundleError(f"{INDEX} names an inventory, and there is none")
        return None
    if bound is None or not bound.matches(content):
        raise BundleError(f"{INVENTORY} is not the one that {INDEX} names")
    if key is not None:
        signature = source.read(SIGNATURE, SIGNATURE_BYTES)
        if signature is None:
            raise BundleError("it is not signed")
        check_signature(content, signature, key)
    inventory = read_inventory(content)
    if foreign := source.others - _OURS:
        raise BundleError(f"it contains a file that does not belong in a bundle: {min(foreign)!r}")
    if unnamed := source.blobs.keys() - inventory.blobs.keys():
        raise BundleError(f"its inventory does not name {min(unnamed)}")
    if absent := inventory.blobs.keys() - source.blobs.keys():
        raise BundleError(f"its inventory names {min(absent)}, which is not in it")
    for digest, size in source.blobs.items():
        if inventory.blobs[digest] != size:
            raise BundleError(f"{digest} has {size} bytes, where its inventory says {inventory.blobs[digest]}")
    return inventory


def _require_equal(descriptors: tuple[Descriptor, ...], inventory: Inventory) -> None:
    """Raise `BundleError` if `index.json` and the inventory differ.

    The names are compared as they are written, because this mirror may know a registry by another name.
    """
    listed = {image.key for image in inventory.images}
    named = {
        (descriptor.annotations.get(FULL_NAME, ""), descriptor.digest, descriptor.media_type, descriptor.size)
        for descriptor in descriptors
    }
    if different := listed ^ named:
        raise BundleError(f"{INDEX} and its inventory differ about {min(name for name, *_ in different)}")
    if any(entry.annotations.get(REF_NAME) != entry.annotations.get(FULL_NAME) for entry in descriptors):
        raise BundleError(f"{INDEX} gives an image two names")


# ------------------------------------------------------------------------------------------------------- names


def _images(descriptors: tuple[Descriptor, ...], table: RoutingTable, name: str | None) -> Iterator[ListedImage]:
    problems: dict[str, None] = {}
    named: set[str] = set()
    if name is not None and has_reference(name) and len(descriptors) > 1:
        raise BundleError(f"it has {len(descriptors)} images, which cannot all have the name {name}")
    for descriptor in descriptors:
        try:
            image = _image(descriptor, table, name)
        except RequestError as error:
            problems[str(error)] = None
            continue
        if image.name in named:
            raise BundleError(f"two images have the name {image.name}")
        named.add(image.name)
        yield image
    if problems:
        raise BundleError("; ".join(problems))


def _image(descriptor: Descriptor, table: RoutingTable, name: str | None) -> ListedImage:
    """The image that a descriptor stands for. Raises `RequestError` if its name is not valid, or is in a registry that
    this mirror does not serve; `BundleError` if it has no name or the name contains another digest.
    """
    text = _name_of(descriptor) if name is None else _completed(name, descriptor)
    image = parse_image(text, table)
    if image.digest is not None and image.digest != descriptor.digest:
        raise BundleError(f"{text} names another digest than {descriptor.digest}, the digest in {INDEX}")
    return ListedImage(image.repo, image.tag, descriptor)


def _name_of(descriptor: Descriptor) -> str:
    notes = descriptor.annotations
    if full := notes.get(FULL_NAME) or notes.get(CONTAINERD_NAME):
        return full
    name = notes.get(REF_NAME, "")
    # a bare word is a tag by convention, and does not tell the repository
    if "/" not in name and ":" not in name:
        which = f"has only the name {name!r}" if name else "has no name"
        raise BundleError(f"{descriptor.digest} {which}: say with --name which repository it belongs to")
    return name


def _completed(name: str, descriptor: Descriptor) -> str:
    """The given name. If it has neither tag nor digest, the layout's tag is added, or else the descriptor's digest."""
    if has_reference(name):
        return name
    ref_name = descriptor.annotations.get(REF_NAME, "")
    tag = ref_name.rpartition(":")[2] if ":" in ref_name.rpartition("/")[2] or "/" not in ref_name else ""
    return f"{name}:{tag}" if tag and "@" not in ref_name else f"{name}@{descriptor.digest}"
