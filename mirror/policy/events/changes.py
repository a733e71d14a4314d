"""Changes of hosted repositories, and the events that report them.

A change is described before it is made. After it was made, or after its process died in the middle, the records say
how much of it is there (`SeenChange`), and only that is reported.

    change ── made ──────────────> events
       └───── interrupted ── SeenChange ──> events of the part that is there; none if nothing is
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, RepoField, TagField

#: The types of all events. Their names do not change: receivers compare them.
PUSHED: Final = "mirror.image.pushed"
DELETED: Final = "mirror.image.deleted"
UNDELETED: Final = "mirror.image.undeleted"
RETAGGED: Final = "mirror.image.retagged"
MOUNTED: Final = "mirror.image.mounted"
COLLECTED: Final = "mirror.image.collected"
PULLED: Final = "mirror.image.pulled"
TAG_DELETED: Final = "mirror.tag.deleted"
TAG_UNDELETED: Final = "mirror.tag.undeleted"
TAG_MOVED: Final = "mirror.tag.moved"
RETENTION_RAN: Final = "mirror.retention.ran"
BLOB_DAMAGED: Final = "mirror.blob.damaged"
PARTS_WRONG: Final = "mirror.parts.wrong"
UPSTREAM_DOWN: Final = "mirror.upstream.down"
UPSTREAM_UP: Final = "mirror.upstream.up"
#: Sent to every endpoint, whatever it has subscribed to.
LOST: Final = "mirror.events.lost"

TYPES: Final = (
    PUSHED,
    DELETED,
    UNDELETED,
    RETAGGED,
    MOUNTED,
    COLLECTED,
    PULLED,
    TAG_DELETED,
    TAG_UNDELETED,
    TAG_MOVED,
    RETENTION_RAN,
    BLOB_DAMAGED,
    PARTS_WRONG,
    UPSTREAM_DOWN,
    UPSTREAM_UP,
    LOST,
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: its type, what it is about, and more (JSON values).

    `key` names what the event is ordered by: events of one key are delivered one after another.
    """

    type: str
    subject: str
    key: str
    data: Mapping[str, Any] = field(default_factory=dict)
    #: The repository, for subscriptions; None if the event is about none.
    repo: Repo | None = None


class ChangeKind(Enum):
    """What is done to a repository."""

    PUSH = "push"
    UNDELETE = "undelete"
    DELETE = "delete"
    DELETE_TAG = "delete-tag"
    UNDELETE_TAG = "undelete-tag"
    MOUNT = "mount"


#: The events that a change may lead to.
TYPES_OF: Final[Mapping[ChangeKind, tuple[str, ...]]] = {
    ChangeKind.PUSH: (PUSHED, RETAGGED),
    ChangeKind.UNDELETE: (UNDELETED,),
    ChangeKind.DELETE: (DELETED,),
    ChangeKind.DELETE_TAG: (TAG_DELETED,),
    ChangeKind.UNDELETE_TAG: (TAG_UNDELETED,),
    ChangeKind.MOUNT: (MOUNTED,),
}


@dataclass(frozen=True, slots=True)
class HostedChange:
    """A change that is about to be made by the caller `by`: to the manifest, or the blob, `digest` and to `tags`.

    `digest` is None if the record of a tag that is deleted is damaged. `size` is in bytes. `had` says that the
    repository had the manifest before. `before` is what each tag pointed to before. `version` is that of the record
    that is deleted, and `generation` the one that a tag has from then on. `source` is the repository from which a blob
    is mounted.
    """

    __pydantic_config__ = CAMEL_CASE

    kind: ChangeKind
    repo: RepoField
    by: str
    digest: DigestField | None
    tags: tuple[TagField, ...] = ()
    media_type: str = ""
    size: int = 0
    had: bool = False
    before: dict[TagField, DigestField] = field(default_factory=dict)
    version: str = ""
    generation: int = 0
    source: str = ""

    def to_json(self) -> str:
        """As it is written down before the change is made."""
        return json.dumps(_CHANGE.to_json(self))

    @classmethod
    def from_json(cls, text: str) -> HostedChange | None:
        """Read it back; None if it cannot be parsed."""
        return _CHANGE.parse(text.encode())


_CHANGE: Final = JsonForm(HostedChange)


@dataclass(frozen=True, slots=True)
class SeenChange:
    """What the records say about a change: whether the manifest (of a mount: the link) is there, and which of the
    change's tags point to its digest, with the generations of their records as far as they are known. `certain` is
    False if another change may have hidden this one.
    """

    present: bool
    tags: tuple[str, ...] = ()
    certain: bool = True
    generations: Mapping[str, int] = field(default_factory=dict)


def all_of(change: HostedChange, written: Mapping[str, int] | None = None) -> SeenChange:
    """What is seen of a change that was made: whole, or with those tags that were `written`, with the generations of
    their records.
    """
    if change.kind in (ChangeKind.DELETE, ChangeKind.DELETE_TAG):
        return SeenChange(False)
    return SeenChange(True, change.tags) if written is None else SeenChange(True, tuple(written), generations=written)


def seen_tags(
    change: HostedChange, now: Mapping[str, Digest | None], written: Collection[str] | None = None
) -> tuple[tuple[str, ...], bool]:
    """Which tags count as moved by a change that was interrupted, given what each points to `now`, and whether that is
    certain.

    Those do that point to the change's digest. Another one was moved by another change, before this one or after it: it
    counts, and is uncertain, if it was `written`; or, if that is not known, if it no longer points to what it pointed
    to before.
    """
    hidden = [tag for tag in change.tags if now.get(tag) != change.before.get(tag)] if written is None else written
    moved = tuple(tag for tag in change.tags if now.get(tag) == change.digest or tag in hidden)
    return moved, all(now.get(tag) == change.digest for tag in moved)


def events_of(change: HostedChange, seen: SeenChange) -> tuple[Event, ...]:
    """The events that report the part of a change that is there."""
    events = _events_of(change, seen)
    return events if seen.certain else tuple(replace(each, data={**each.data, "certain": False}) for each in events)


def _events_of(change: HostedChange, seen: SeenChange) -> tuple[Event, ...]:
    match change.kind:
        case ChangeKind.PUSH:
            if not seen.present or (change.had and change.tags and not seen.tags):
                return ()
            retagged = (
                _event(
                    RETAGGED, change, tag=tag, **{"from": str(was), "to": str(change.digest)}, **_generation(seen, tag)
                )
                for tag in seen.tags
                if (was := change.before.get(tag)) not in (None, change.digest)
            )
            return (_image(PUSHED, change, seen.tags, seen), *retagged)
        case ChangeKind.UNDELETE:
            return (_image(UNDELETED, change, seen.tags, seen),) if seen.present else ()
        case ChangeKind.DELETE:
            return () if seen.present else (_image(DELETED, change, change.tags),)
        case ChangeKind.DELETE_TAG:
            known = {"generation": change.generation} if change.generation else {}
            return () if seen.tags else (_tag(TAG_DELETED, change, **known),)
        case ChangeKind.UNDELETE_TAG:
            known = _generation(seen, change.tags[0])
            return (_tag(TAG_UNDELETED, change, **known),) if seen.present and seen.tags else ()
        case ChangeKind.MOUNT:
            if not seen.present:
                return ()
            more = {"from": change.source} if change.source else {}
            return (_event(MOUNTED, change, digest=str(change.digest), size=change.size, **more),)


def _generation(seen: SeenChange, tag: str) -> dict[str, int]:
    return {"generation": seen.generations[tag]} if tag in seen.generations else {}


def _image(kind: str, change: HostedChange, tags: tuple[str, ...], seen: SeenChange | None = None) -> Event:
    data: dict[str, Any] = {"digest": str(change.digest)}
    if change.media_type:
        data |= {"mediaType": change.media_type, "size": change.size}
    data["tags"] = list(tags)
    if seen is not None and seen.generations:
        data["generations"] = {tag: seen.generations[tag] for tag in tags if tag in seen.generations}
    return _event(kind, change, **data)


def _tag(kind: str, change: HostedChange, **more: int) -> Event:
    digest = {"digest": str(change.digest)} if change.digest else {}
    return _event(kind, change, tag=change.tags[0], **digest, **more)


def _event(kind: str, change: HostedChange, **data: Any) -> Event:
    repo = change.repo
    body = {"registry": repo.registry, "repository": repo.name, **data, "by": change.by}
    return Event(kind, str(repo), str(repo), body, repo)
