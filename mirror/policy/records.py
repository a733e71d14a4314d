"""What is remembered about content, and the one JSON form in which it is written down.

Records are versioned by their key or file, not inside; unknown fields are ignored and a record that does not parse
is as good as none (`None`), because everything here can be asked for again.
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

__all__ = [
    "BlobRole",
    "ContentRecord",
    "Freeze",
    "ManifestRecord",
    "Pin",
    "ReferencedBlob",
    "References",
    "Sighting",
    "TagRecord",
    "Usage",
    "read_history",
    "write_history",
]

#: What reading a record that somebody damaged can raise; JSON here may say Infinity, which is no size.
_JUNK = (ValueError, KeyError, TypeError, RecursionError, OverflowError, RequestError)


def _moment(value: Any) -> float:
    """Seconds since the epoch. Raises one of `_JUNK`."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("no moment")
    return seconds


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag pointed to when upstream was last asked. Times are seconds since the epoch."""

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
        """Read it back; None if it is not whole."""
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
    """That a tag pointed to a digest, from when until when (epoch seconds). `size` in bytes.

    A tag's history is a tuple of them, oldest first; a tag that moved back has two of one digest. How long the newest
    has been confirmed says the tag's own record, not this.
    """

    digest: Digest
    media_type: str
    size: int
    first_seen: float
    last_seen: float


def write_history(sightings: Iterable[Sighting]) -> bytes:
    """The contents of a history's file."""
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
    """Read it back; nothing if it is not whole."""
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
    """That a repository may serve a manifest. `size` is in bytes.

    `grants` are the blobs that it may serve because of it, if only these were proven when it was imported; None: all
    that a manifest of its media type proves (`named_by`).
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
        """Read it back; None if it is not whole."""
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
    """A blob that the store holds: `size` in bytes, `last_used` in seconds since the epoch."""

    digest: Digest
    size: int
    last_used: float


class BlobRole(Enum):
    """How a blob stands among images, and so in which order it may go."""

    #: No manifest, and no remembered manifest names it: nobody misses it soon.
    LOOSE = "loose"
    #: A manifest or index that no other names: with it goes an image.
    ROOT = "root"
    #: Some remembered manifest names it: it stays for as long as that one does.
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class References:
    """What a manifest names: `manifests` where it is an index, `blobs` (config and layers) where it is an image."""

    digest: Digest
    manifests: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> References:
        """Each digest once."""
        return cls(
            manifest.digest,
            tuple(dict.fromkeys(child.digest for child in manifest.manifests)),
            tuple(dict.fromkeys(child.digest for child in manifest.blobs)),
        )


@dataclass(frozen=True, slots=True)
class ReferencedBlob:
    """A blob that `parents` remembered manifests name; `is_manifest`: it is one of them itself."""

    record: ContentRecord
    parents: int
    is_manifest: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """That an image must stay: a tag, whatever it points to at the time, or a digest. Times are epoch seconds.

    `until` None: for good.
    """

    repo: Repo
    reference: Reference
    reason: str
    since: float
    until: float | None = None

    def holds(self, now: float) -> bool:
        """Whether it is still in force."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Freeze:
    """That a tag answers one digest, whatever upstream says. `size` in bytes, `since` in epoch seconds."""

    repo: Repo
    tag: str
    digest: Digest
    media_type: str
    size: int
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What the index counts: number of blobs and their bytes in all."""

    blobs: int
    bytes: int
