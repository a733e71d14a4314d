"""The hosted repositories, with what each has: for the page and the admin API."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Annotated, Final

from typing_extensions import TypedDict

from mirror.aio.bounded_threads import in_thread
from mirror.errors import IndexUnavailable
from mirror.graph.listed_repositories import ListedRepositories
from mirror.oci.reference import Repo
from mirror.policy.routing import RoutingTable
from mirror.policy.selection import search
from mirror.ports import Catalog, HostedRecords, LinkLedger
from mirror.server.admin.query_values import number
from mirror.values.json_types import Bytes, Count, about

_PAGE: Final = 50
_LARGEST_PAGE: Final = 500


class RepositoryJson(TypedDict):
    """A hosted repository."""

    repository: str
    tags: Count
    manifests: Count
    deleted: Annotated[Count, about("Number of deleted manifests and tags that can be undeleted.")]
    size: Annotated[
        Bytes | None, about("Bytes of the distinct blobs and manifests that it has; null: not known at the moment.")
    ]


class RepositoriesJson(TypedDict):
    """A page of hosted repositories, by name."""

    repositories: list[RepositoryJson]
    next: Annotated[str | None, about("The value of `after` for the next page; null: this is the last one.")]


class RepositoryList:
    """Lists the hosted repositories of one site."""

    def __init__(
        self,
        catalog: Catalog,
        records: HostedRecords,
        ledger: LinkLedger,
        registries: Collection[str],
        table: RoutingTable,
        threads: Executor | None = None,
    ) -> None:
        """`registries` are the names of all hosted registries; `table` says what a search text means. Records are read
        in `threads`; None: in those of the event loop.
        """
        self._catalog = catalog
        self._records = records
        self._ledger = ledger
        # the order of the names of their repositories: `corp-x/` is before `corp/`
        self._registries = tuple(sorted(registries, key="{}/".format))
        self._table = table
        self._threads = threads
        self._listed = ListedRepositories(
            self._after, catalog.repositories_added, threads=threads, name="hosted repository list"
        )

    def __repr__(self) -> str:
        return f"<RepositoryList {', '.join(self._registries)}>"

    async def page(self, query: Mapping[str, str]) -> RepositoriesJson:
        """A page of the repositories that match `search`, after the one named `after`. Raises `RequestError`,
        `StoreError`.
        """
        limit = number(query, "limit", _PAGE, 1, _LARGEST_PAGE)
        selection = search(query.get("search", ""), self._table)
        chosen: list[Repo] = []
        async with aclosing(self._listed.after(query.get("after", ""), limit, chosen)) as steps:
            # one more than the page has tells that there are more
            while len(chosen) <= limit and (step := await anext(steps, None)) is not None:
                chosen += filter(selection.has, step)
                await asyncio.sleep(0)
        described = await in_thread(self._threads, lambda: [self._describe(repo) for repo in chosen[:limit]])
        return {"repositories": described, "next": str(chosen[limit - 1]) if len(chosen) > limit else None}

    async def aclose(self) -> None:
        """Ends what is being read. Repeatable."""
        await self._listed.aclose()

    def _after(self, place: str) -> Iterator[Repo]:
        """The hosted repositories whose names are after `place`, in order. A registry is read when its turn comes."""
        for registry in self._registries:
            beginning = f"{registry}/"
            if beginning > place or place.startswith(beginning):
                yield from self._records.repositories(registry, place)

    def _describe(self, repo: Repo) -> RepositoryJson:
        deletions = (self._records.deleted_manifests(repo), self._records.deleted_tags(repo))
        try:
            size = self._ledger.size(repo)
        except IndexUnavailable:
            size = None
        return {
            "repository": str(repo),
            "tags": len(self._catalog.tags(repo)),
            "manifests": sum(1 for _ in self._catalog.manifest_digests(repo)),
            "deleted": sum(1 for each in deletions for _ in each),
            "size": size,
        }
