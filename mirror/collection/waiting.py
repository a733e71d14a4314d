"""What waits to be collected, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TypeVar

from mirror.collection.collection_report import Unread, WaitingContent
from mirror.errors import BlobUnknown, StoreError
from mirror.hosting.parts import HostedParts
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import CollectionRules, link_may_go_at
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState, QueuedBlob

T = TypeVar("T")


def waiting(parts: HostedParts, rules: CollectionRules, unread: list[Unread]) -> Iterator[WaitingContent]:
    """Blocking: yields all that waits, in no order. Opens every link and every record of the hosted registries. What
    cannot be read is left out, and added to `unread`. Raises `StoreError` if something cannot be listed.
    """
    for registry in sorted(rules.registries):
        for repo in parts.records.repositories(registry):
            yield from _links(parts, rules, repo, unread)
            yield from _deletions(parts, rules, repo, unread)
            _note_unread(parts, repo, unread)
    for record in chain.from_iterable(parts.blobs.queued_pages()):
        try:
            size = parts.contents.stat(record.digest).size
        except BlobUnknown:
            continue
        yield waiting_bytes(record, size, rules.grace)


def waiting_bytes(record: QueuedBlob, size: int, grace: float) -> WaitingContent:
    """The bytes of a blob that wait."""
    may_go_at = record.queued_at + grace
    return WaitingContent("bytes", record.digest, size, record.queued_at, "no repository has it", may_go_at)


def waiting_link(repo: Repo, link: BlobLink, queued_at: float, grace: float) -> WaitingContent:
    """A link that waits since `queued_at`."""
    why = "no manifest names it" if link.state is LinkState.LINKED else f"reserved by {link.by}, and not pushed"
    return WaitingContent("link", link.digest, link.size, queued_at, why, link_may_go_at(link, grace), str(repo))


def waiting_deletion(repo: Repo, record: DeletedManifest, keep: float) -> WaitingContent:
    """A deleted manifest that is kept for so many seconds."""
    why = f"deleted by {record.by}" if record.by else "deleted"
    may_go_at = record.deleted_at + keep
    return WaitingContent("manifest", record.digest, record.size, record.deleted_at, why, may_go_at, str(repo))


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
        yield waiting_link(repo, found.record, found.record.queued_at, rules.grace)


def _deletions(
    parts: HostedParts, rules: CollectionRules, repo: Repo, unread: list[Unread]
) -> Iterator[WaitingContent]:
    keep = rules.registries[repo.registry].keep_deleted
    for digest in parts.records.deleted_manifests(repo):
        read = partial(parts.records.deleted_manifest, repo, digest)
        found = _readable(read, f"{repo}@{digest}, deleted", unread)
        if found is None:
            continue
        yield waiting_deletion(repo, found.record, keep)
