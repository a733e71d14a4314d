"""Tags, manifest links, pins and freezes: what each repository has, and what must stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.records import Freeze, ManifestRecord, Pin, Sighting, TagRecord
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports.versioned import Condition, Version, Versioned


class TagRecords(Protocol):
    """The tags of every repository."""

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        """What the tag pointed to when upstream was last asked, with the version of the record.

        Raises `StoreError`, `RecordDamaged`.
        """

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """Like `tag`, without the version."""

    def put_tag(self, repo: Repo, record: TagRecord, *, expect: Condition = None) -> Version:
        """Write the record of a tag. Raises `RecordChanged` if its version is not the expected one, `StoreError`,
        `StoreFull`.

        Every reader sees it at once. It is durable once `flush` has returned. Of several writers that expect the same
        version, in any process, one succeeds.
        """

    def drop_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        """Delete the record of a tag, but not its history. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def tags(self, repo: Repo) -> list[str]:
        """The repository's tags, sorted."""

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        """What the tag has pointed to, oldest first, even if the tag itself was deleted. Raises `StoreError`.

        A damaged history counts as empty.
        """

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        """Replace the whole history. Every reader sees it at once. Raises `StoreError`, `StoreFull`."""


class ManifestRecords(Protocol):
    """The manifests that each repository may serve."""

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        """The record that lets this repository serve the manifest, with its version; None if it may not.

        Raises `StoreError`, `RecordDamaged`.
        """

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        """Like `manifest`, without the version."""

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Condition = None) -> Version:
        """Let this repository serve the manifest from now on. Raises `RecordChanged` if the record is not in the
        expected version, `StoreError`, `StoreFull`.

        The record is durable once `flush` has returned.
        """

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        """Delete the record of a manifest. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        """The repository's manifest records, in no order. Raises `StoreError`.

        Damaged records are skipped. A caller that must not miss any uses `manifest_digests`.
        """

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        """The digest of every manifest record, in no order. Raises `StoreError`.

        The records are not opened, so damaged ones are included.
        """


class RepositoryNames(Protocol):
    """The repositories that there are."""

    def repositories(self, after: str = "") -> Iterable[Repo]:
        """Every repository that has a tag or a manifest and whose name is after `after`, in the order of their names as
        text (`RecordTree.repositories`). Looks no further than the caller iterates.
        """

    def repositories_added(self) -> int:
        """A counter that increases, for every process, whenever a new repository appears in `repositories`.

        -1 if it cannot be read. Quick enough for the event loop.
        """


class Catalog(TagRecords, ManifestRecords, RepositoryNames, Protocol):
    """Tags and manifest links of every repository, on disk. All calls block for a short time.

    A record that is returned as None, or not listed, is certainly absent. Every call raises `StoreError` if that cannot
    be determined. Calls that read one record raise `RecordDamaged` if it exists but cannot be parsed, with the version
    by which it can be replaced.
    """

    def flush(self) -> None:
        """Make everything that this process has put so far survive a power cut. Raises `StoreError`."""


class CachedRecords(TagRecords, ManifestRecords, Protocol):
    """The records of cached repositories on this disk, for whoever forgets old ones. All calls block for a short time,
    and raise `StoreError`.
    """

    def known(self) -> Iterable[Repo]:
        """Every repository that has a folder of tags, histories or manifests, also an empty one, in the order of their
        names as text. Looks no further than the caller iterates.
        """

    def is_hosted(self, repo: Repo) -> bool:
        """Whether the repository has, or had, records that only hosted ones have."""

    def histories(self, repo: Repo) -> Sequence[str]:
        """The tags that have a history, sorted, also those that have no record any more."""

    def drop_history(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        """Delete the history of a tag. Repeatable. Raises `RecordChanged`."""

    def prune(self, repo: Repo) -> bool:
        """Delete the folders of a repository that has no record any more. False if it has one. Repeatable."""

    def flush(self) -> None:
        """Make everything that was dropped so far survive a power cut."""


class Pins(Protocol):
    """The images that must stay, on disk. All calls block for a short time."""

    def all(self) -> Iterable[Pin]:
        """All pins, including expired ones, in no order. Raises `StoreError`.

        Unreadable pins are missing, so a caller that is about to delete content must use `look`.
        """

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadableRecord]]:
        """All pins, and the files of those that exist but cannot be read, from one listing.

        Raises `StoreError` if that cannot be determined now.
        """

    def get(self, repo: Repo, reference: Reference) -> Pin | None:
        """The pin of exactly this tag or digest; None if there is none."""

    def put(self, pin: Pin) -> None:
        """Write a pin; it replaces an earlier one of the same image. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, reference: Reference) -> bool:
        """Delete a pin. True if there was one. Repeatable."""


class Freezes(Protocol):
    """The tags that answer with one digest until they are released, on disk. All calls block for a short time."""

    def all(self) -> Iterable[Freeze]:
        """All freezes, in no order. Unreadable ones are missing. Raises `StoreError`."""

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadableRecord]]:
        """All freezes, and the files of those that exist but cannot be read, from one listing.

        Raises `StoreError` if that cannot be determined now.
        """

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        """The freeze of a tag; None if the tag may move. Raises `StoreError` if that cannot be determined."""

    def put(self, freeze: Freeze) -> None:
        """Write a freeze; it replaces an earlier one of the same tag. Raises `StoreError`, `StoreFull`."""

    def drop(self, repo: Repo, tag: str) -> bool:
        """Delete a freeze. True if there was one. Repeatable."""
