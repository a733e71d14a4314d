"""The admin API's operations on hosted images: delete, undelete, and list what can be undeleted.

The commands do the same through this class, in the running mirror or, if none runs, in their own process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Final

from typing_extensions import TypedDict

from mirror.aio.bounded_threads import in_thread
from mirror.collection.collection_replies import CollectionJson, RoundJson, collection_json, round_json
from mirror.collection.collector import GarbageCollector
from mirror.errors import AlreadyRunning, RequestError
from mirror.eviction.cached_copies import CachedCopies
from mirror.hosting.damaged_blobs import DamagedBlobs
from mirror.hosting.operator_deletions import DeletionPlan, Erased, OperatorDeletions, Undeleted
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import DeletedManifest, DeletedTag
from mirror.policy.image_names import Image, has_reference, name_of
from mirror.policy.routing import RoutingTable
from mirror.policy.selection import search
from mirror.ports import OWN_WORK, Steps
from mirror.server.admin.query_values import number
from mirror.server.admin.repository_list import RepositoryList
from mirror.server.admin.retention_admin import RetentionAdmin
from mirror.values.json_types import Bytes, Count, Timestamp, about
from mirror.values.timestamps import format_moment, moment

#: Entries that are listed if the request does not say how many; deletions and damaged blobs at most.
_LISTED: Final = 200
_MOST_LISTED: Final = 10_000
_MOST_DAMAGED: Final = 1000


class ElsewhereJson(TypedDict):
    """Repositories that have content which was to be erased."""

    repository: str
    blobs: Count


class DeletedJson(TypedDict):
    """What a deletion removed, or, as a dry run, would remove."""

    image: str
    dry_run: bool
    tags: list[str]
    manifests: Annotated[list[str], about("Digests of the manifests that the repository no longer has.")]
    size: Annotated[Bytes, about("Bytes of all content of these manifests, shared with others or not.")]
    until: Annotated[Timestamp | None, about("Until when it can be undeleted; null: not at all.")]
    blobs: Annotated[Count, about("Number of files removed at once; others follow when they are collected.")]
    bytes: Annotated[Bytes, about("Bytes of these files.")]
    elsewhere: Annotated[list[ElsewhereJson], about("With `now`: which repositories still have some of the content.")]
    busy: Annotated[list[str], about("With `now`: digests that stay because they were pushed at the same moment.")]


class UndeletedJson(TypedDict):
    """What was brought back."""

    image: str
    manifests: Annotated[list[str], about("Digests of the manifests that are back; empty: only the tag was deleted.")]
    left: Annotated[list[str], about("Of each tag that did not come back, why: it points to something else now.")]


class DeletionJson(TypedDict):
    """A deleted tag or image that can be undeleted."""

    image: Annotated[str, about("Undelete it by this name.")]
    digest: str
    tags: Annotated[list[str], about("Tags that come back, unless they point to something again.")]
    deleted: Timestamp
    by: Annotated[str, about("Who deleted it.")]
    until: Annotated[Timestamp, about("Until then it can be undeleted.")]


class DeletionsJson(TypedDict):
    """What can be undeleted, the last deletion first."""

    deleted: list[DeletionJson]
    more: Annotated[Count, about("Number of deletions that are not listed.")]


class DamagedBlobJson(TypedDict):
    """A damaged hosted blob. A push of the same content by one of the repositories repairs it for all of them."""

    digest: str
    size: Annotated[Bytes, about("Bytes of the damaged file.")]
    found: Annotated[Timestamp, about("When it was set aside.")]
    repositories: Annotated[list[str], about("Hosted repositories that have it; empty: it will be collected.")]


class DamagedBlobsJson(TypedDict):
    """The damaged hosted blobs, in the order of their digests."""

    damaged: list[DamagedBlobJson]
    more: Annotated[Count, about("Number of damaged blobs that are not listed.")]


def damaged_json(damaged: DamagedBlobs, most: int) -> DamagedBlobsJson:
    """Blocking: the damaged blobs, up to `most` of them. Raises `StoreError`."""
    count, first = damaged.count(), damaged.first(most)
    return {
        "damaged": [
            {
                "digest": str(blob.digest),
                "size": blob.size,
                "found": format_moment(blob.at),
                "repositories": [str(repo) for repo in blob.repositories],
            }
            for blob in first
        ],
        "more": max(0, count - len(first)),
    }


class HostedAdmin:
    """The operations on hosted images."""

    def __init__(
        self,
        deletions: OperatorDeletions,
        cached: CachedCopies,
        damaged: DamagedBlobs,
        table: RoutingTable,
        keep_deleted: Mapping[str, float],
        collector: GarbageCollector,
        repositories: RepositoryList,
        retention: RetentionAdmin,
        *,
        parse_image: Callable[[str], Image],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`keep_deleted` are the seconds for which each hosted registry keeps what is deleted. `parse_image` raises
        `RequestError`.
        """
        self._parse_image = parse_image
        self._deletions = deletions
        self._cached = cached
        self._damaged = damaged
        self._table = table
        self._keep_deleted = keep_deleted
        self._collector = collector
        self.repositories = repositories
        self.retention = retention
        self._now = now
        #: Those in which hosted content is read and changed.
        self._threads = deletions.threads

    def __repr__(self) -> str:
        return f"<HostedAdmin {', '.join(self._keep_deleted)}>"

    def parse(self, text: str, *, repository: bool) -> tuple[Repo, Image | None]:
        """The repository that is named, and the image in it; None if the whole repository is meant, which must be said
        by `repository`. Raises `RequestError` with what to write instead.
        """
        image = self._parse_image(text)
        is_named = has_reference(text)
        if not self._table.hosts_registry(image.repo.registry):
            raise RequestError(f"{image.repo} is not hosted here, but cached: use `mirror purge`")
        if repository and is_named:
            raise RequestError(f"{text}: a whole repository is named without tag and digest")
        if not repository and not is_named:
            raise RequestError(f"{text}: name a tag or a digest, or use `--repository` for all of it")
        return image.repo, None if repository else image

    # -------------------------------------------------------------------------------------------------- deletions

    async def delete(
        self,
        repo: Repo,
        image: Image | None,
        caller: str,
        *,
        at_once: bool = False,
        force: bool = False,
        dry_run: bool = False,
        steps: Steps = OWN_WORK,
    ) -> DeletedJson:
        """Deletes an image, or, if that is None, the whole repository. `at_once`: the image that a tag points to goes
        with all its tags, nothing can be undeleted, and the bytes go now. `force`: even if immutable tags need it.
        Raises `ManifestUnknown`, `TagImmutable`, `Denied` if a tag is frozen, `StaleRequest`, `StoreError`.
        """
        plan = await in_thread(self._threads, self._plan, repo, image, at_once, force)
        if dry_run:
            await in_thread(self._threads, self._deletions.check, plan, force=force)
        size = await in_thread(self._threads, self._deletions.size, plan)
        keep = 0.0 if at_once else self._keep_deleted.get(repo.registry, 0.0)
        erased, freed = Erased(), (0, 0)
        until = moment(self._now() + keep) if keep > 0 and not plan.damaged else None
        if not dry_run and at_once:
            erased = await in_thread(
                self._threads, self._deletions.erase, plan, caller, everything=image is None, force=force, steps=steps
            )
            freed = await self._erase_cached(erased)
        elif not dry_run:
            await in_thread(
                self._threads, self._deletions.delete, plan, caller, keep=keep > 0, force=force, steps=steps
            )
        return {
            "image": str(repo) if image is None else name_of(repo, image.reference),
            "dry_run": dry_run,
            "tags": list(plan.tags),
            "manifests": [str(digest) for digest in plan.manifests],
            "size": size,
            "until": until,
            "blobs": freed[0],
            "bytes": freed[1],
            "elsewhere": _elsewhere(erased),
            "busy": [str(digest) for digest in erased.busy],
        }

    def _plan(self, repo: Repo, image: Image | None, at_once: bool, force: bool) -> DeletionPlan:
        if image is None:
            return self._deletions.plan_repository(repo, kept=at_once)
        if image.digest is not None:
            return self._deletions.plan_image(repo, image.digest)
        tag = str(image.reference)
        if not at_once:
            return self._deletions.plan_tag(repo, tag, force=force)
        return self._deletions.plan_image(repo, self._deletions.digest_of(repo, tag))

    async def _erase_cached(self, erased: Erased) -> tuple[int, int]:
        """Drops erased blobs from the cache as well, except those that cached images need: these are noted as being
        elsewhere. Returns how many blobs are gone altogether, and their bytes.
        """
        needed = await self._cached.drop(erased.blobs.keys())
        erased.elsewhere |= needed
        gone = [size for digest, size in erased.blobs.items() if digest not in needed]
        return len(gone), sum(gone)

    # ------------------------------------------------------------------------------------------------- undeletions

    async def undelete(self, repo: Repo, image: Image | None, caller: str, *, steps: Steps = OWN_WORK) -> UndeletedJson:
        """Brings back a deleted tag or image, or everything in a repository. Raises `ManifestUnknown`,
        `ManifestBlobUnknown`, `Denied`, `QuotaExceeded`, `StaleRequest`, `StoreError`.
        """
        back = await in_thread(self._threads, self._undelete, repo, image, caller, steps)
        name = str(repo) if image is None else name_of(repo, image.reference)
        return {"image": name, "manifests": [str(digest) for digest in back.manifests], "left": back.left}

    def _undelete(self, repo: Repo, image: Image | None, caller: str, steps: Steps) -> Undeleted:
        if image is None:
            return self._deletions.undelete_repository(repo, caller, steps=steps)
        if image.digest is not None:
            return self._deletions.undelete_image(repo, image.digest, caller, steps=steps)
        return self._deletions.undelete_tag(repo, str(image.reference), caller, steps=steps)

    async def deleted(self, query: Mapping[str, str]) -> DeletionsJson:
        """What can be undeleted. Raises `RequestError`, `StoreError`."""
        selection = search(query.get("search", ""), self._table)
        limit = number(query, "limit", _LISTED, 1, _MOST_LISTED)
        found = await in_thread(self._threads, lambda: list(self._deletions.deleted(selection.has)))
        found.sort(key=lambda each: -each[1].deleted_at)
        return {
            "deleted": [self._deletion(repo, record) for repo, record in found[:limit]],
            "more": max(0, len(found) - limit),
        }

    def _deletion(self, repo: Repo, record: DeletedManifest | DeletedTag) -> DeletionJson:
        until = record.deleted_at + self._keep_deleted.get(repo.registry, 0.0)
        tags = (record.tag,) if isinstance(record, DeletedTag) else record.tags
        return {
            "image": name_of(repo, record.tag if isinstance(record, DeletedTag) else record.digest),
            "digest": str(record.digest),
            "tags": list(tags),
            "deleted": format_moment(record.deleted_at),
            "by": record.by,
            "until": format_moment(until),
        }

    async def damaged(self, query: Mapping[str, str]) -> DamagedBlobsJson:
        """The damaged blobs, with the repositories that lack them. Raises `RequestError`, `StoreError`."""
        limit = number(query, "limit", _LISTED, 1, _MOST_DAMAGED)
        return await in_thread(self._threads, damaged_json, self._damaged, limit)

    # -------------------------------------------------------------------------------------------------- collection

    async def collection(self) -> CollectionJson:
        """The last round of garbage collection, and the last sweep of the bucket. Raises `StoreError`."""
        return await in_thread(
            self._threads, lambda: collection_json(self._collector.last(), self._collector.last_sweep())
        )

    async def collect(self) -> RoundJson:
        """Does a round. Raises `AlreadyRunning`, `StoreError`."""
        report = await self._collector.run()
        if report is None:
            raise AlreadyRunning("a round of collection is running already")
        return round_json(report)


def _elsewhere(erased: Erased) -> list[ElsewhereJson]:
    blobs: dict[Repo, int] = {}
    for repos in erased.elsewhere.values():
        for repo in repos:
            blobs[repo] = blobs.get(repo, 0) + 1
    return [{"repository": str(repo), "blobs": count} for repo, count in sorted(blobs.items())]
