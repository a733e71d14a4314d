"""The JSON forms of rounds of collection, and of what waits, for the command line and the admin API."""

from __future__ import annotations

from typing import Annotated

from typing_extensions import TypedDict

from mirror.collection.collection_report import CollectionReport, Unread, WaitingContent
from mirror.collection.sweep_report import SweepReport
from mirror.values.json_types import Bytes, Count, Timestamp, about
from mirror.values.timestamps import format_moment, moment


class UnreadJson(TypedDict):
    """Something that could not be read."""

    what: str
    reason: str


class WaitingJson(TypedDict):
    """Something that will be collected unless a client relies on it again."""

    kind: Annotated[str, about("`link`, `bytes`, or `manifest` (deleted, and can be undeleted).")]
    repository: str | None
    digest: str
    size: Bytes
    since: Timestamp
    may_go: Annotated[Timestamp, about("When it may go at the earliest.")]
    why: str


class RoundJson(TypedDict):
    """One round of garbage collection."""

    begun: Timestamp
    ended: Timestamp | None
    complete: Annotated[bool, about("Every repository could be listed, so that bytes were judged as well.")]
    repositories: Count
    manifests: Count
    links: Annotated[Count, about("Links of repositories to blobs that are gone.")]
    blobs: Annotated[Count, about("Blobs that are gone.")]
    bytes: Annotated[Bytes, about("Bytes of these blobs.")]
    deletions: Annotated[Count, about("Deletions that can no longer be undone.")]
    referrers: Annotated[Count, about("Untagged referrers that are gone because their subject is.")]
    waiting_links: Annotated[Count, about("Links that no manifest names, and that wait.")]
    waiting_blobs: Annotated[Count, about("Blobs that no repository has, and that wait.")]
    waiting_bytes: Bytes
    waiting_since: Annotated[Timestamp | None, about("Since when the first of them waits.")]
    waiting: Annotated[list[WaitingJson], about("What may go first, deleted images that are kept included.")]
    unread_count: Annotated[Count, about("How much could not be read, and kept everything that it may name.")]
    unread: Annotated[list[UnreadJson], about("The first of these.")]


class SweepJson(TypedDict):
    """A sweep of the bucket."""

    begun: Timestamp
    ended: Annotated[Timestamp | None, about("Null: it goes on, or was interrupted and will go on.")]
    done: Annotated[float, about("Which part of all objects was looked at, from 0 to 1.")]
    objects: Annotated[Count, about("Objects of hosted blobs.")]
    bytes: Annotated[Bytes, about("Bytes of these objects.")]
    deleted: Annotated[Count, about("Objects that were deleted because nothing needs them.")]
    deleted_bytes: Annotated[Bytes, about("Bytes of these objects.")]
    queued: Annotated[Count, about("Blobs that the mirror knew nothing of, and that wait to be collected now.")]
    lost: Annotated[Count, about("Blobs whose object is gone or has another size, or whose state is damaged.")]
    uploads_aborted: Annotated[
        Count | None, about("Unfinished uploads that were aborted; null: the store does not let the mirror list them.")
    ]


class CollectionJson(TypedDict):
    """Garbage collection of hosted content."""

    last: Annotated[RoundJson | None, about("Null: there was no round yet.")]
    sweep: Annotated[SweepJson | None, about("The last sweep of the bucket; null: there was none.")]


def round_json(report: CollectionReport) -> RoundJson:
    """Returns the form of a round."""
    return {
        "begun": format_moment(report.begun_at),
        "ended": moment(report.ended_at),
        "complete": report.complete,
        "repositories": report.repositories,
        "manifests": report.manifests,
        "links": report.links,
        "blobs": report.blobs,
        "bytes": report.bytes,
        "deletions": report.deletions,
        "referrers": report.referrers,
        "waiting_links": report.waiting_links,
        "waiting_blobs": report.waiting_blobs,
        "waiting_bytes": report.waiting_bytes,
        "waiting_since": moment(report.waiting_since),
        "waiting": [waiting_json(each) for each in report.waiting],
        "unread_count": report.unread_count,
        "unread": [unread_json(unread) for unread in report.unread],
    }


def sweep_json(report: SweepReport) -> SweepJson:
    """Returns the form of a sweep."""
    return {
        "begun": format_moment(report.begun_at),
        "ended": moment(report.ended_at),
        "done": report.done,
        "objects": report.objects,
        "bytes": report.bytes,
        "deleted": report.deleted,
        "deleted_bytes": report.deleted_bytes,
        "queued": report.queued,
        "lost": report.lost,
        "uploads_aborted": report.uploads_aborted,
    }


def collection_json(last: CollectionReport | None, sweep: SweepReport | None) -> CollectionJson:
    """Returns the form of the last round, and of the last sweep."""
    return {
        "last": None if last is None else round_json(last),
        "sweep": None if sweep is None else sweep_json(sweep),
    }


def unread_json(unread: Unread) -> UnreadJson:
    """Returns the form of something that could not be read."""
    return {"what": unread.what, "reason": unread.reason}


def waiting_json(entry: WaitingContent) -> WaitingJson:
    """Returns the form of something that waits."""
    return {
        "kind": entry.kind,
        "repository": entry.repository,
        "digest": str(entry.digest),
        "size": entry.size,
        "since": format_moment(entry.since),
        "may_go": format_moment(entry.may_go_at),
        "why": entry.why,
    }
