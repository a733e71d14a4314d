"""What waits to be collected, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mirror.collection.hosted_content import HostedContent
from mirror.errors import BlobUnknown
from mirror.graph.manifests import for_display
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import CollectionRules, link_may_go_at
from mirror.policy.hosted_records import LinkState


@dataclass(frozen=True, slots=True)
class Waiting:
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


def waiting(content: HostedContent, rules: CollectionRules) -> Iterator[Waiting]:
    """Blocking: yields all that waits, in no order. Opens every link of the hosted registries. What cannot be read is
    left out and logged. Raises `StoreError` if something cannot be listed.
    """
    for registry in sorted(rules.registries):
        for repo in content.records.repositories(registry):
            yield from _links(content, rules, repo)
            yield from _deletions(content, rules, repo)
    for record in content.blobs.all_queued():
        try:
            size = content.blobs.hosted(record.digest).size
        except BlobUnknown:
            continue
        why, may_go_at = "no repository has it", record.queued_at + rules.grace
        yield Waiting("bytes", record.digest, size, record.queued_at, why, may_go_at)


def _links(content: HostedContent, rules: CollectionRules, repo: Repo) -> Iterator[Waiting]:
    for digest in content.records.linked(repo):
        found = for_display(partial(content.records.link, repo, digest), f"{repo}@{digest}")
        if found is None or found.record.queued_at is None or found.record.state is LinkState.REMOVED:
            continue
        link = found.record
        why = "no manifest names it" if link.state is LinkState.LINKED else f"reserved by {link.by}, and not pushed"
        yield Waiting(
            "link", digest, link.size, found.record.queued_at, why, link_may_go_at(link, rules.grace), str(repo)
        )


def _deletions(content: HostedContent, rules: CollectionRules, repo: Repo) -> Iterator[Waiting]:
    keep = rules.registries[repo.registry].keep_deleted
    for digest in content.records.deleted_manifests(repo):
        found = for_display(partial(content.records.deleted_manifest, repo, digest), f"{repo}@{digest}")
        if found is None:
            continue
        record = found.record
        why = f"deleted by {record.by}" if record.by else "deleted"
        yield Waiting("manifest", digest, record.size, record.deleted_at, why, record.deleted_at + keep, str(repo))
