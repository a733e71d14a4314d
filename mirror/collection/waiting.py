"""What waits to be collected, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mirror.collection.collection_report import Unread
from mirror.errors import BlobUnknown, StoreError
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import CollectionRules, link_may_go_at
from mirror.policy.hosted_records import LinkState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WaitingContent:
    """Something that will be collected unless a client relies on it again: a `link`, the `bytes` of a blob, or a
    deleted `manifest` that can be undeleted until then. Times are in epoch seconds, `size` is in bytes.
    """

    kind: str
    digest: Digest
    size: int
    since: float
    why: str
    may_go_at: float
    repository: str | None = None


def waiting(parts: HostedParts, rules: CollectionRules, unread: list[Unread] | None = None) -> Iterator[WaitingContent]:
    """Blocking: yields all that waits, in no order. Opens every link and every record of the hosted registries. What
    cannot be read is left out, and added to `unread`. Raises `StoreError` if something cannot be listed.
    """
    missed: list[Unread] = [] if unread is None else unread
    for registry in sorted(rules.registries):
        for repo in parts.records.repositories(registry):
            yield from _links(parts, rules, repo, missed)
            yield from _deletions(parts, rules, repo, missed)
            _note_unread(parts, repo, missed)
    for record in parts.blobs.all_queued():
        try:
            size = parts.blobs.hosted(record.digest).size
        except BlobUnknown:
            continue
        why, may_go_at = "no repository has it", record.queued_at + rules.grace
        yield WaitingContent("bytes", record.digest, size, record.queued_at, why, may_go_at)


def _readable(read: Callable[[], T | None], what: str, unread: list[Unread]) -> T | None:
    try:
        return read()
    except StoreError as error:
        unread.append(Unread(what, str(error)))
        return None


def _note_unread(parts: HostedParts, repo: Repo, unread: list[Unread]) -> None:
    """Opens the records of manifests and tags, none of which waits, to find those that cannot be read."""
    for digest in parts.catalog.manifest_digests(repo):
        _readable(partial(parts.catalog.get_manifest, repo, digest), f"{repo}@{digest}", unread)
    for tag in parts.catalog.tags(repo):
        _readable(partial(parts.catalog.get_tag, repo, tag), f"{repo}:{tag}", unread)
    for tag in parts.records.deleted_tags(repo):
        _readable(partial(parts.records.deleted_tag, repo, tag), f"{repo}:{tag}, deleted", unread)


def _links(parts: HostedParts, rules: CollectionRules, repo: Repo, unread: list[Unread]) -> Iterator[WaitingContent]:
    for digest in parts.records.linked(repo):
        found = _readable(partial(parts.records.link, repo, digest), f"the link of {repo} to {digest}", unread)
        if found is None or found.record.queued_at is None or found.record.state is LinkState.REMOVED:
            continue
        link = found.record
        why = "no manifest names it" if link.state is LinkState.LINKED else f"reserved by {link.by}, and not pushed"
        yield WaitingContent(
            "link", digest, link.size, found.record.queued_at, why, link_may_go_at(link, rules.grace), str(repo)
        )


def _deletions(
    parts: HostedParts, rules: CollectionRules, repo: Repo, unread: list[Unread]
) -> Iterator[WaitingContent]:
    keep = rules.registries[repo.registry].keep_deleted
    for digest in parts.records.deleted_manifests(repo):
        read = partial(parts.records.deleted_manifest, repo, digest)
        found = _readable(read, f"{repo}@{digest}, deleted", unread)
        if found is None:
            continue
        record = found.record
        why = f"deleted by {record.by}" if record.by else "deleted"
        yield WaitingContent(
            "manifest", digest, record.size, record.deleted_at, why, record.deleted_at + keep, str(repo)
        )
