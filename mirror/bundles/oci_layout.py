"""The files of an OCI image layout (image-spec, image-layout.md), and the two files that this mirror adds.

    oci-layout                       {"imageLayoutVersion":"1.0.0"}
    index.json                       a descriptor for each image, with its name
    mirror-inventory.json            ours: every image and blob, see `inventory.py`
    mirror-inventory.json.sig        ours, if the bundle is signed
    blobs/<algorithm>/<hex>          manifests, configs, layers

An image's name is written where other tools look for it. skopeo and umoci read `org.opencontainers.image.ref.name`; its
grammar allows the full name with registry and tag. A bare tag would not be enough, because two images may both have the
tag `latest`. containerd reads `io.containerd.image.name`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from mirror.bundles.inventory import ListedImage
from mirror.errors import BundleError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Descriptor, check_manifest_type, read_descriptor
from mirror.oci.strict_json import read_json

MARKER: Final = "oci-layout"
INDEX: Final = "index.json"
BLOBS: Final = "blobs"
INVENTORY: Final = "mirror-inventory.json"
SIGNATURE: Final = "mirror-inventory.json.sig"

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
#: Annotations of this mirror: the full name of an image, and on the index itself the digest of the inventory.
FULL_NAME: Final = "registry-mirror.image"
_INVENTORY_DIGEST: Final = "registry-mirror.inventory"

#: The largest `index.json` that is read, in bytes: about a hundred thousand images.
LARGEST_INDEX: Final = 64 << 20

_LAYOUT_VERSION: Final = "1.0.0"


def blob_name(digest: Digest) -> str:
    """The path of a blob within the layout."""
    return f"{BLOBS}/{digest.algorithm}/{digest.hex}"


def marker_bytes() -> bytes:
    """The content of the file `oci-layout`."""
    return json.dumps({"imageLayoutVersion": _LAYOUT_VERSION}, separators=(",", ":")).encode()


def check_marker(content: bytes) -> None:
    """Raise `BundleError` unless the content of `oci-layout` names the layout version that this mirror reads."""
    try:
        version = read_json(content)["imageLayoutVersion"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{MARKER} does not say the version of the layout") from error
    if version != _LAYOUT_VERSION:
        raise BundleError(f"{MARKER} says version {version!r}; only {_LAYOUT_VERSION} is known")


def index_bytes(images: Iterable[ListedImage], inventory: Digest) -> bytes:
    """The content of `index.json` for these images; `inventory` is the digest of the inventory file."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_entry(image) for image in sorted(images, key=lambda image: image.order)],
            "annotations": {_INVENTORY_DIGEST: str(inventory)},
        },
        indent=1,
    ).encode()


def _entry(image: ListedImage) -> dict[str, Any]:
    names = {REF_NAME: image.name, FULL_NAME: image.name}
    if image.tag is not None:
        # only for tags: containerd creates an image for every entry with this annotation, and signatures are not images
        names[CONTAINERD_NAME] = image.name
    return {**image.root.to_json(), "annotations": names}


def read_index(content: bytes) -> tuple[tuple[Descriptor, ...], Digest | None]:
    """The descriptors in `index.json`, and the digest of the inventory if a mirror wrote the index.

    Raises `BundleError`.
    """
    try:
        body = read_json(content)
        if not isinstance(body, dict) or body.get("schemaVersion") != 2 or not isinstance(body.get("manifests"), list):
            raise BundleError(f"{INDEX} is not an image index")
        if body.get("mediaType", OCI_INDEX) != OCI_INDEX:
            raise BundleError(f"{INDEX} says that it is {str(body['mediaType'])[:80]!r}")
        descriptors = tuple(read_descriptor(entry) for entry in body["manifests"])
        for descriptor in descriptors:
            check_manifest_type(descriptor.media_type)
        notes = body.get("annotations")
        inventory = notes.get(_INVENTORY_DIGEST) if isinstance(notes, dict) else None
        return descriptors, None if inventory is None else Digest.parse(str(inventory))
    except ValueError as error:
        raise BundleError(f"{INDEX}: {error}") from error
