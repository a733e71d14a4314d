"""What replication rules read of hosted repositories: tags, who moved or deleted them, whether anything changed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from mirror.errors import RecordDamaged
from mirror.graph.manifests import manifest_of_bytes
from mirror.hosting.parts import HostedParts
from mirror.oci.attachments import is_attached
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.replication_steps import Deletion, HereTag
from mirror.replication.compared_content import RepositoryListing


class HereRecords:
    """The records of hosted repositories. All calls block, and raise `StoreError` if something cannot be read."""

    def __init__(self, parts: HostedParts) -> None:
        self._parts = parts
        #: The repositories of each registry, and the count of repositories that was read before.
        self._listed: dict[str, tuple[int, list[Repo]]] = {}

    def __repr__(self) -> str:
        return f"<HereRecords of {', '.join(self._listed)}>"

    def repositories(self, registry: str) -> list[Repo]:
        """The repositories of a hosted registry, in the order of their names. The folders are read only if one was
        added.
        """
        added = self._parts.catalog.repositories_added()
        before = self._listed.get(registry)
        if before is not None and before[0] == added >= 0:
            return before[1]
        listed = list(self._parts.records.repositories(registry))
        self._listed[registry] = added, listed
        return listed

    def changes(self, repo: Repo) -> int:
        """See `ChangeCounter`."""
        return self._parts.records.changes(repo)

    def tags(self, repo: Repo) -> Iterable[str]:
        """The tags of a repository, also those that point to nothing."""
        return self._parts.catalog.tags(repo)

    def tag(self, repo: Repo, tag: str) -> HereTag | None:
        """A tag; None if it is absent, or points to a manifest that is."""
        record = self._parts.catalog.get_tag(repo, tag)
        if record is None or self._parts.catalog.get_manifest(repo, record.digest) is None:
            return None
        return HereTag(record.digest, record.by)

    def listing(self, repo: Repo, tags: Iterable[str]) -> RepositoryListing:
        """The manifests of a repository, and what those of its `tags` point to that are made from digests."""
        attached = {
            tag: found.digest for tag in tags if is_attached(tag) and (found := self.tag(repo, tag)) is not None
        }
        return RepositoryListing(list(self._parts.catalog.manifest_digests(repo)), attached)

    def subject(self, digest: Digest) -> Digest | None:
        """The subject of a manifest; None if it has none, or is not here."""
        manifest = manifest_of_bytes(self._parts.contents, digest)
        return manifest.subject.digest if manifest is not None and manifest.subject is not None else None

    def deletion(self, repo: Repo, tag: str, digest: Digest) -> Deletion | None:
        """The record of the deletion of a tag that pointed to this digest, by itself or with its manifest; None if
        there is none that says so.
        """
        with suppress(RecordDamaged):
            alone = self._parts.records.deleted_tag(repo, tag)
            if alone is not None and alone.record.digest == digest:
                return Deletion(digest, alone.record.by)
            whole = self._parts.records.deleted_manifest(repo, digest)
            is_gone = self._parts.catalog.get_manifest(repo, digest) is None
            if whole is not None and is_gone and tag in whole.record.tags:
                return Deletion(digest, whole.record.by)
        return None
