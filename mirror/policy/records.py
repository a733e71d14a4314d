"""The records about content, and their JSON form.

The version of a record is part of its key or file name, not of its content. A record that cannot be parsed counts as
missing (`None`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.values.json_form import (
    CAMEL_CASE,
    DigestField,
    JsonForm,
    ManifestType,
    Moment,
    ReferenceField,
    RepoField,
    TagField,
)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag pointed to when upstream was last asked, at `fetched_at` (epoch seconds). `size` is in bytes.

    Of hosted tags, `fetched_at` is when the tag was last pushed, `moved_at` since when it points to this digest; None
    in older records. `restored_at` is when it was undeleted; None if it was pushed since, or never deleted.
    `generation` and `by` are of the last move: a number that orders all moves of the tag, and the caller.
    """

    __pydantic_config__ = CAMEL_CASE

    tag: str
    digest: DigestField
    media_type: ManifestType
    size: int
    fetched_at: Moment
    moved_at: Moment | None = None
    restored_at: Moment | None = None
    generation: int = 0
    by: str = ""

    @property
    def tagged_at(self) -> float:
        """Since when a hosted tag points to its digest, as far as that is recorded."""
        return self.fetched_at if self.moved_at is None else self.moved_at

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, self.size)

    def to_json(self) -> bytes:
        """The contents of a tag's file."""
        return json.dumps(_TAG.to_json(self)).encode()

    @classmethod
    def from_json(cls, tag: str, text: bytes) -> TagRecord | None:
        """Read it back; None if it cannot be parsed."""
        return _TAG.parse(text, tag=tag)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A period in which a tag pointed to a digest. `first_seen` and `last_seen` are in epoch seconds, `size` in bytes.

    A tag's history is a tuple of sightings, oldest first. A tag that moved back has two sightings of the same digest.
    The latest confirmation of the newest sighting is in the tag's record, not in `last_seen`.
    """

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    media_type: ManifestType
    size: int
    first_seen: Moment
    last_seen: Moment

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, self.size)


@dataclass(frozen=True, slots=True)
class _History:
    sightings: tuple[Sighting, ...]


def write_history(sightings: Iterable[Sighting]) -> bytes:
    """The contents of a history file."""
    return json.dumps(_HISTORY.to_json(_History(tuple(sightings))), indent=1).encode()


def read_history(text: bytes) -> tuple[Sighting, ...]:
    """Read the history back; empty if it cannot be parsed."""
    history = _HISTORY.parse(text)
    return history.sightings if history else ()


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """The record that lets a repository serve a manifest. `size` is in bytes, `fetched_at` in epoch seconds.

    `grants` are the blobs that the repository may serve because of this manifest, if an import has proven only some of
    them. None means all blobs that a manifest of its media type proves (`named_by`). `restored_at` is when a hosted
    manifest was undeleted; None if it was pushed since or never deleted. `nonce` is raised to give a hosted record
    another version.
    """

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    media_type: ManifestType
    size: int
    fetched_at: Moment
    grants: tuple[DigestField, ...] | None = None
    restored_at: Moment | None = None
    nonce: int = 0

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, self.size)

    def to_json(self) -> bytes:
        """The contents of a manifest link's file."""
        return json.dumps(_MANIFEST.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> ManifestRecord | None:
        """Read it back; None if it cannot be parsed."""
        return _MANIFEST.parse(text, digest=str(digest))


_TAG = JsonForm(TagRecord, outside="tag", sparse=True)
_HISTORY = JsonForm(_History)
_MANIFEST = JsonForm(ManifestRecord, outside="digest", sparse=True)


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

    repo: RepoField
    reference: ReferenceField
    reason: str
    since: Moment
    until: Moment | None = None

    def is_active(self, now: float) -> bool:
        """Whether the pin is in force at `now` (epoch seconds)."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Freeze:
    """A tag that answers with one digest, whatever upstream says. `size` is in bytes, `since` in epoch seconds."""

    __pydantic_config__ = CAMEL_CASE

    repo: RepoField
    tag: TagField
    digest: DigestField
    media_type: ManifestType
    size: int
    reason: str
    since: Moment

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, self.size)


@dataclass(frozen=True, slots=True)
class Usage:
    """The totals of the index: the number of blobs and their bytes."""

    blobs: int
    bytes: int
