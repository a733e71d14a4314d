"""Hosted content: its bytes, and what each hosted repository has. All calls block for a short time unless said.

Tags and manifest records of hosted repositories are in the `Catalog`, like those of cached ones. A record that is
returned as None, or not listed, is certainly absent. Calls that read one record raise `RecordDamaged` if it exists but
cannot be parsed, with the version by which it can be replaced, and `StoreError` if it cannot be read.

The life cycle of a hosted blob's bytes:

    absent ── UploadFile.publish(), put(), adopt() ──> present ── queue() ──> queued ── collect() ──> absent
                                                         ^                      │
                                                         └────── rescue() ──────┘

`rescue` and `collect` exclude each other: after `rescue` has returned, a `collect` that expects the earlier record
fails. Whoever makes a link writes it first, and then rescues the bytes; if they are unknown by then, the link is
dropped. A collector's walk that begins after the link was written meets it; `collect` after one that began before
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, QueuedBlob
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports.content import BlobInfo
from mirror.ports.streams import Body
from mirror.ports.versioned import Condition, Version, Versioned


class HostedBlobs(Protocol):
    """The names of hosted blobs, which no eviction and no purge can delete.

    The bytes are read through a `Blobs` that finds a blob under either name. The `BlobStore` of the cache knows the
    cache's names alone: what is cached must not rely on hosted content that may be collected.
    """

    def hosted(self, digest: Digest) -> BlobInfo:
        """The blob under its hosted name. Raises `BlobUnknown` if it certainly has none, `StoreError`."""

    def adopt(self, digest: Digest, patience: float | None = None) -> BlobInfo:
        """Give a blob of the cache its hosted name as well, and take it out of the queue like `rescue`. Repeatable.

        The caller has checked that the bytes match the digest. Durable on return. Raises `BlobUnknown` if the blob is
        under neither name, or if the bytes must be sent somewhere and that takes longer than `patience` seconds (None:
        however long it takes; it goes on in any case). Raises `StoreFull`, `StoreError`.
        """

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        """Store a small blob, such as a manifest, under its hosted name, and take it out of the queue. Repeatable.

        Durable after `flush`. Raises `BlobDamaged` if the bytes do not match the digest, `StoreFull`, `StoreError`.
        """

    def rescue(self, digest: Digest) -> BlobInfo:
        """Take the blob out of the queue. Raises `BlobUnknown` if it is certainly not under its hosted name,
        `StoreError`.
        """

    def queued(self, digest: Digest) -> Versioned[QueuedBlob] | None:
        """The record of a blob that waits to be collected; None if it does not wait."""

    def queue(self, record: QueuedBlob) -> Version:
        """Let a blob wait to be collected. Raises `RecordChanged` if it waits already, `StoreError`."""

    def collect(self, digest: Digest, expect: Version) -> int:
        """Delete the hosted name, a damaged file that was set aside, and the queue's record; returns the bytes of the
        blob, 0 if it had no hosted name.

        Raises `RecordChanged` if the record is no longer in that version: the blob was rescued, and stays.
        """

    def free_collected(self, *, at_once: bool = False) -> int:
        """Free the room of the blobs that were collected, as far as that was put off and is due, or all of it
        (`at_once`). Returns of how many it could not be freed now; it is freed later. Raises nothing.
        """

    def queued_pages(self) -> Iterable[Sequence[QueuedBlob]]:
        """The records of all blobs that wait, in no order, in pages each of which takes a short time to find. A page
        may be empty: to find the few that wait, all others may have to be looked at.
        """

    def damaged(self) -> Sequence[QuarantinedBlob]:
        """The damaged blobs that were set aside and have no hosted name now, in no order. Each stays until it gets its
        name again, by `adopt`, `put` or `publish`, or until it is collected.
        """

    def blobs(self, after: Digest | None, count: int) -> Sequence[BlobInfo]:
        """Up to `count` hosted blobs after `after`, in the order of algorithm and digits; empty at the end."""

    def flush(self) -> None:
        """Make all that this process has put and published durable. Calls that run at the same time share the work."""


class UploadFile(Protocol):
    """The file of one upload session, locked by its holder. Blocks as long as bytes arrive.

    begin() ──> open() ──> fill() … ──> publish() ──> the blob is hosted
                   ^          │    └──> discard() ──> absent
                   └─ close() ┘
    """

    @property
    def offset(self) -> int:
        """How many bytes are here."""

    def fill(self, body: Body, grown: Callable[[int], None]) -> None:
        """Append the body up to its end. `grown` is called in this thread with the new offset after each write, and may
        raise to stop the upload.

        Raises what `body` and `grown` raise, `StoreFull`, `StoreError`. The bytes written before an error are kept.
        After `StoreFull`, the caller may make room and call it again with the same body: no byte of it is lost.
        """

    def publish(self, digest: Digest) -> BlobInfo:
        """Check the digest and give the file its hosted name, durable on return; the session is over. If the blob is
        hosted already, its file stays. The blob is taken out of the queue.

        Raises `BlobDamaged` if the bytes do not match: the session stays. Raises `StoreFull`, `StoreError`: whether the
        session stays is then uncertain.
        """

    def discard(self) -> None:
        """Delete the session and its bytes. Repeatable."""

    def close(self) -> None:
        """Release the lock; the session stays unless it is over. Repeatable."""


@dataclass(frozen=True, slots=True)
class UploadSession:
    """An upload session that is open: `size` bytes are here, the last of them came at `changed_at` (epoch seconds)."""

    id: str
    owner: str
    size: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Expired:
    """How many upload sessions were deleted because no byte came any more, and how many bytes they had."""

    sessions: int = 0
    bytes: int = 0


class Uploads(Protocol):
    """The upload sessions of this machine. They survive the death of a worker, but not a restart of the machine."""

    def begin(self, owner: str) -> str:
        """Begin a session and return its id, which consists of letters, digits, `-` and `_`. `owner` says for which
        caller and repository; it is compared, never interpreted: up to 128 letters, digits and `_`, such as hashes.
        Raises `StoreFull`, `StoreError`.
        """

    def open(self, session: str) -> UploadFile | None:
        """Lock the file of a session. None if there certainly is no such session. Raises `UploadBusy` if another
        request writes to it, `StoreError`.
        """

    def session(self, session: str) -> UploadSession | None:
        """The state of a session; None if there is none. Quick enough for the event loop. Raises `StoreError`."""

    def sessions(self) -> Sequence[UploadSession]:
        """All sessions, in no order. Raises `StoreError`."""

    def sweep(self, before: float) -> Expired:
        """Delete the sessions that no request writes to and that got no byte since `before` (epoch seconds), and those
        of an earlier boot. Raises `StoreError` if they cannot be listed.
        """


class BlobLinks(Protocol):
    """Which blobs each hosted repository has."""

    def link(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        """The repository's link to a blob, whatever its state; None if there is none."""

    def put_link(self, repo: Repo, link: BlobLink, *, expect: Condition = None) -> Version:
        """Write a link. Every reader sees it at once; durable after `flush`. Raises `RecordChanged`, `StoreError`."""

    def drop_link(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        """Delete a link. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def linked(self, repo: Repo) -> Iterable[Digest]:
        """The digests of all links of a repository, whatever their state, in no order. Records are not opened."""


class ReferrerEntries(Protocol):
    """The referrers of each subject. An entry counts only while the repository has the manifest that it names."""

    def put_referrer(self, repo: Repo, subject: Digest, referrer: Descriptor) -> None:
        """Write an entry. Durable after `flush`. Repeatable."""

    def drop_referrer(self, repo: Repo, subject: Digest, digest: Digest) -> None:
        """Delete an entry. Repeatable."""

    def referrer(self, repo: Repo, subject: Digest, digest: Digest) -> Descriptor | None:
        """The entry of one referrer of a subject, with annotations and artifact type; None if there is none."""

    def referrer_digests(self, repo: Repo, subject: Digest) -> Iterable[Digest]:
        """The digests of all entries of a subject, in no order. Entries are not opened."""


class Deletions(Protocol):
    """What was deleted and can be undeleted."""

    def deleted_manifest(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        """The record of a deleted manifest; None if there is none."""

    def put_deleted_manifest(self, repo: Repo, record: DeletedManifest, *, expect: Condition = None) -> Version:
        """Write it; durable after `flush`. Raises `RecordChanged`, `StoreError`."""

    def drop_deleted_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        """Delete it. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def deleted_manifests(self, repo: Repo) -> Iterable[Digest]:
        """The digests of all deleted manifests, in no order. Records are not opened."""

    def deleted_tag(self, repo: Repo, tag: str) -> Versioned[DeletedTag] | None:
        """The record of a deleted tag; None if there is none."""

    def put_deleted_tag(self, repo: Repo, record: DeletedTag, *, expect: Condition = None) -> Version:
        """Write it; durable after `flush`. Raises `RecordChanged`, `StoreError`."""

    def drop_deleted_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        """Delete it. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def deleted_tags(self, repo: Repo) -> Sequence[str]:
        """All deleted tags, sorted."""


class ChangeCounter(Protocol):
    """A number per repository, by which processes know whether what they remember of it is still true."""

    def changes(self, repo: Repo) -> int:
        """Differs after each `note_change`, for every process; -1 if it cannot be read. Quick enough for the event
        loop.

        A reader asks for it before it reads records, and remembers them together with this number. A number of -1 is
        not remembered.
        """

    def note_change(self, repo: Repo) -> None:
        """To be called after a record was changed and before the client is answered. Raises `StoreError`."""


class NameOwners(Protocol):
    """Which names repositories have taken. A virtual registry never asks an upstream for a name that a hosted registry
    has.

    free ── the first manifest, tag, referrer or deletion ──> taken ── `release`, once there is no record ──> free

    A name stays taken when the last record has gone: it must not begin to mean another image because one was deleted.
    A link that is not only reserved takes the name while it is there, because a push is under way; in a bucket it takes
    the name for good.
    """

    def is_taken(self, repo: Repo) -> bool:
        """True if the repository has, or ever had, a manifest, tag, referrer or deletion, or has a link that is not
        only reserved. Quick enough for the event loop. Raises `StoreError` if that cannot be said.
        """

    def taken(self, registry: str) -> Iterable[Repo]:
        """The repositories of a registry that have, or ever had, a manifest, tag, referrer or deletion, in no order.
        Raises `StoreError`.
        """

    def release(self, repo: Repo) -> bool:
        """Let the name be free. False, and nothing changes, if the repository has records. Repeatable. Raises
        `StoreError`.
        """


class HostedRecords(BlobLinks, ReferrerEntries, Deletions, ChangeCounter, NameOwners, Protocol):
    """What each hosted repository has, besides tags and manifests."""

    def registries(self) -> Iterable[str]:
        """All registries that have a folder here, hosted or mirrored, configured or not, in no order."""

    def repositories(self, registry: str, after: str = "") -> Iterable[Repo]:
        """The repositories of a registry that have a tag, a manifest, a link or a deletion and whose names are after
        `after`, in the order of their names as text (`RecordTree.repositories`). Looks no further than the caller
        iterates.
        """

    def flush(self) -> None:
        """Make everything that this process has put so far survive a power cut. Calls that run at the same time share
        the work. Raises `StoreError`.
        """


class LinkLedger(Protocol):
    """Which blobs and manifests each hosted repository has, in a form that can be searched and summed up. All calls
    block, for a millisecond or so, and may be made from any thread.

    It is derived from the records and may be lost; while it is incomplete, quotas count too little and no source is
    found for a reservation. A scope is a registry, or a pattern of its repositories that has a quota
    (`mirror.policy.hosted.quotas`). Content counts once in a scope, however many repositories of the scope have it.
    """

    def add(self, repo: Repo, digest: Digest, size: int, limits: Mapping[str, int] | None = None) -> Overrun | None:
        """Note content that the repository has, after its record was written. Repeatable.

        `limits` are bytes by scope: if the content is not noted yet and would take one of these scopes beyond its
        limit, it is not noted, and the result says which scope. Calls of all processes are made one after another.
        Raises `IndexUnavailable`.
        """

    def remove(self, repo: Repo, digest: Digest) -> None:
        """Note that a repository no longer has the content. Repeatable. Raises `IndexUnavailable`."""

    def correct(self, repo: Repo, content: Mapping[Digest, int | None]) -> None:
        """Note content that a repository has, with its sizes in bytes, and, where that is None, content that it no
        longer has: together, at the cost of few changes. Raises `IndexUnavailable`; then nothing may be noted.
        """

    def usage(self, scope: str) -> int:
        """The bytes of the distinct blobs and manifests of a scope; 0 for an unknown scope. Raises
        `IndexUnavailable`.
        """

    def size(self, repo: Repo) -> int:
        """The bytes of the distinct blobs and manifests that a repository has. Sums up; not for each request of a
        client. Raises `IndexUnavailable`.
        """

    def adds(self, scope: str, digest: Digest) -> bool:
        """True if this content would count anew in the scope. Raises `IndexUnavailable`."""

    def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        """Up to `most` repositories that have the content. Raises `IndexUnavailable`."""

    def repositories(self) -> Sequence[Repo]:
        """The repositories that are noted to have content, in no order. Raises `IndexUnavailable`."""

    def noted(self, repo: Repo) -> Sequence[Digest]:
        """All that is noted of a repository, in no order. Raises `IndexUnavailable`."""

    def is_complete(self) -> bool:
        """True if everything was noted since the ledger was lost, and since a change could not be noted. Raises
        `IndexUnavailable`.
        """

    def prepare(self) -> int:
        """To be called before the ledger is completed. If it counts for other scopes than are configured now, it begins
        anew, empty. Returns how many changes were missed so far. Raises `IndexUnavailable`.
        """

    def completed(self, missed: int) -> None:
        """Note that everything is noted now. The ledger is complete if no change was missed since `prepare` returned
        `missed`. Raises `IndexUnavailable`.
        """

    def close(self) -> None:
        """Close the files. Repeatable."""
