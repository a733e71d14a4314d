"""The records about content, and their JSON form.

The version of a record is part of its key or file name, not of its content. Unknown fields are ignored. A record that
cannot be parsed counts as missing (`None`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, check_manifest_type
from mirror.oci.reference import Reference, Repo

#: What parsing a damaged record can raise. `OverflowError`: Python's JSON reader accepts Infinity, which is no size.
_JUNK = (ValueError, KeyError, TypeError, RecursionError, OverflowError, RequestError)


def _moment(value: Any) -> float:
    """A finite time in epoch seconds. Raises one of `_JUNK`."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("no moment")
    return seconds


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag pointed to when upstream was last asked, at `fetched_at` (epoch seconds). `size` is in bytes."""

    tag: str
    digest: Digest
    media_type: str
    size: int
    fetched_at: float

    def to_json(self) -> bytes:
        """The contents of a tag's file."""
        return json.dumps(
            {
                "digest": str(self.digest),
                "mediaType": self.media_type,
                "size": self.size,
                "fetchedAt": self.fetched_at,
            }
        ).encode()

    @classmethod
    def from_json(cls, tag: str, text: bytes) -> TagRecord | None:
        """Read it back; None if it cannot be parsed."""
        try:
            body = json.loads(text)
            return cls(
                tag,
                Digest.parse(str(body["digest"])),
                check_manifest_type(body["mediaType"]),
                int(body["size"]),
                _moment(body["fetchedAt"]),
            )
        except _JUNK:
            return None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A period in which a tag pointed to a digest. `first_seen` and `last_seen` are in epoch seconds, `size` in bytes.

    A tag's history is a tuple of sightings, oldest first. A tag that moved back has two sightings of the same digest.
    The latest confirmation of the newest sighting is in the tag's record, not in `last_seen`.
    """

    digest: Digest
    media_type: str
    size: int
    first_seen: float
    last_seen: float


def write_history(sightings: Iterable[Sighting]) -> bytes:
    """The contents of a history file."""
    entries = [
        {
            "digest": str(one.digest),
            "mediaType": one.media_type,
            "size": one.size,
            "firstSeen": one.first_seen,
            "lastSeen": one.last_seen,
        }
        for one in sightings
    ]
    return json.dumps({"sightings": entries}, indent=1).encode()


def read_history(text: bytes) -> tuple[Sighting, ...]:
    """Read the history back; empty if it cannot be parsed."""
    try:
        return tuple(
            Sighting(
                Digest.parse(str(one["digest"])),
                check_manifest_type(one["mediaType"]),
                int(one["size"]),
                _moment(one["firstSeen"]),
                _moment(one["lastSeen"]),
            )
            for one in json.loads(text)["sightings"]
        )
    except _JUNK:
        return ()


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """The record that lets a repository serve a manifest. `size` is in bytes, `fetched_at` in epoch seconds.

    `grants` are the blobs that the repository may serve because of this manifest, if an import has proven only some of
    them. None means all blobs that a manifest of its media type proves (`named_by`).
    """

    digest: Digest
    media_type: str
    size: int
    fetched_at: float
    grants: tuple[Digest, ...] | None = None

    def to_json(self) -> bytes:
        """The contents of a manifest link's file."""
        body: dict[str, Any] = {"mediaType": self.media_type, "size": self.size, "fetchedAt": self.fetched_at}
        if self.grants is not None:
            body["grants"] = [str(digest) for digest in self.grants]
        return json.dumps(body).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> ManifestRecord | None:
        """Read it back; None if it cannot be parsed."""
        try:
            body = json.loads(text)
            grants = dict(body).get("grants")
            return cls(
                digest,
                check_manifest_type(body["mediaType"]),
                int(body["size"]),
                _moment(body["fetchedAt"]),
                None if grants is None else tuple(Digest.parse(str(text)) for text in grants),
            )
        except _JUNK:
            return None


@dataclass(frozen=True, slots=True)
class ContentRecord:
    """A blob in the store: `size` in bytes, `last_used` in epoch seconds."""

    digest: Digest
    size: int
    last_used: float


class BlobRole(Enum):
    """The role of a blob among images, which decides the order of eviction."""

    #: Not a manifest in the index, and no manifest in the index names it.
    LOOSE = "loose"
    #: A manifest or index that no other one names. Evicting it evicts an image.
    ROOT = "root"
    #: A manifest in the index names it. It stays for as long as that manifest does.
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class References:
    """What a manifest names: the `manifests` of an index, the `blobs` (config and layers) of an image."""

    digest: Digest
    manifests: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> References:
        """The references of a manifest, each digest once."""
        return cls(
            manifest.digest,
            tuple(dict.fromkeys(child.digest for child in manifest.manifests)),
            tuple(dict.fromkeys(child.digest for child in manifest.blobs)),
        )


@dataclass(frozen=True, slots=True)
class ReferencedBlob:
    """A blob that manifests in the index name: `parents` is their number. `is_manifest`: it is a manifest itself."""

    record: ContentRecord
    parents: int
    is_manifest: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that must stay: a digest, or a tag with whatever it points to at the time.

    `since` and `until` are in epoch seconds; `until` None means without end.
    """

    repo: Repo
    reference: Reference
    reason: str
    since: float
    until: float | None = None

    def holds(self, now: float) -> bool:
        """Whether the pin is in force at `now` (epoch seconds)."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Freeze:
    """A tag that answers with one digest, whatever upstream says. `size` is in bytes, `since` in epoch seconds."""

    repo: Repo
    tag: str
    digest: Digest
    media_type: str
    size: int
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Usage:
    """The totals of the index: the number of blobs and their bytes."""

    blobs: int
    bytes: int
