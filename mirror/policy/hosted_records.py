"""The records about hosted content, and their JSON form. Times are in epoch seconds, sizes in bytes.

A link is a repository's right to serve a blob. The bytes are shared by all repositories, the rights are not.

                    upload, mount ──────────────────────────────> LINKED <── manifest PUT ──┐
    no link ──┤                                                     │  ^                    │
                    HEAD by a pusher who may pull it elsewhere ─────┼──┼──────────────> RESERVED
                                                                    v  │ upload, mount with `from`, or undeletion
                                                 DELETE of the blob ──> REMOVED

A `LINKED` or `RESERVED` link without a manifest that names the blob is collected once it has waited out the grace time.
`since` begins anew whenever a client relies on the link.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, ManifestType, Moment, TagField


def next_generation(now: float, *before: int) -> int:
    """The generation of a change of a hosted tag at `now` (epoch seconds): more than every generation `before`.

    Generations order all that happens to a tag, also after a deletion of which nothing is left: they are microseconds
    of the epoch, unless the clock was set back.
    """
    return max(int(now * 1_000_000), *(each + 1 for each in before), 1)


class LinkState(Enum):
    """What a repository may do with a blob."""

    #: The repository may serve the blob.
    LINKED = "linked"
    #: The callers who have reserved the blob may use it as if it was linked; for others it is unknown.
    RESERVED = "reserved"
    #: A client has deleted the blob here. Only an upload, a mount that names its source, or the undeletion of a
    #: manifest that names it brings it back.
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class BlobLink:
    """A repository's link to a blob of `size` bytes, in force since `since`.

    `by` is the caller who made a reservation, or several of them, one on each line. `queued_at` is set while the link
    waits to be collected.
    """

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    size: int
    state: LinkState
    since: Moment
    by: str = ""
    queued_at: Moment | None = None

    def to_json(self) -> bytes:
        """The contents of a link's file."""
        return json.dumps(_LINK.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> BlobLink | None:
        """Read it back; None if it cannot be parsed."""
        return _LINK.parse(text, digest=str(digest))


@dataclass(frozen=True, slots=True)
class DeletedManifest:
    """A manifest that was deleted, with the tags that pointed to it then. It can be undeleted until it is collected."""

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    media_type: ManifestType
    size: int
    pushed_at: Moment
    deleted_at: Moment
    by: str = ""
    tags: tuple[TagField, ...] = ()

    @classmethod
    def of(cls, record: ManifestRecord, deleted_at: float, by: str, tags: tuple[str, ...] = ()) -> DeletedManifest:
        """The deletion of a manifest, with the tags that point to it."""
        return cls(record.digest, record.media_type, record.size, record.fetched_at, deleted_at, by, tags)

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, self.size)

    def restored(self, at: float | None = None) -> ManifestRecord:
        """The record of the manifest when it comes back. `at` is when somebody undeleted it."""
        return ManifestRecord(self.digest, self.media_type, self.size, self.pushed_at, restored_at=at)

    def to_json(self) -> bytes:
        """The contents of its file."""
        return json.dumps(_DELETED_MANIFEST.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> DeletedManifest | None:
        """Read it back; None if it cannot be parsed."""
        return _DELETED_MANIFEST.parse(text, digest=str(digest))


@dataclass(frozen=True, slots=True)
class DeletedTag:
    """A tag that was deleted while its manifest stayed. It can be undeleted until it is collected. `generation` is that
    of the deletion (`next_generation`).
    """

    __pydantic_config__ = CAMEL_CASE

    tag: TagField
    digest: DigestField
    media_type: ManifestType
    size: int
    deleted_at: Moment
    by: str = ""
    generation: int = 0

    @classmethod
    def of(cls, record: TagRecord, deleted_at: float, by: str) -> DeletedTag:
        """The deletion of a tag."""
        generation = next_generation(deleted_at, record.generation)
        return cls(record.tag, record.digest, record.media_type, record.size, deleted_at, by, generation)

    def to_json(self) -> bytes:
        """The contents of its file."""
        return json.dumps(_DELETED_TAG.to_json(self)).encode()

    @classmethod
    def from_json(cls, tag: str, text: bytes) -> DeletedTag | None:
        """Read it back; None if it cannot be parsed."""
        return _DELETED_TAG.parse(text, tag=tag)


@dataclass(frozen=True, slots=True)
class QueuedBlob:
    """The record of a blob whose bytes no repository links, and which waits to be collected since `queued_at`."""

    __pydantic_config__ = CAMEL_CASE

    digest: DigestField
    queued_at: Moment

    def to_json(self) -> bytes:
        """The contents of its file."""
        return json.dumps(_QUEUED.to_json(self)).encode()

    @classmethod
    def from_json(cls, digest: Digest, text: bytes) -> QueuedBlob | None:
        """Read it back; None if it cannot be parsed."""
        return _QUEUED.parse(text, digest=str(digest))


_LINK = JsonForm(BlobLink, outside="digest", sparse=True)
_DELETED_MANIFEST = JsonForm(DeletedManifest, outside="digest", sparse=True)
_DELETED_TAG = JsonForm(DeletedTag, outside="tag", sparse=True)
_QUEUED = JsonForm(QueuedBlob, outside="digest")
