"""The list of hosted repositories that the page and the admin API show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import DeletedTag
from mirror.policy.records import TagRecord
from mirror.policy.routing import Registry, RoutingTable
from mirror.ports import HostedRecords
from mirror.server.admin.repository_list import RepositoryList
from tests.support.hosted_here import HostedHere
from tests.support.memory_ledger import MemoryLedger

_NAMES = ("base", "team/app", "team/tool")


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def listed(tmp_path: Path, ledger: MemoryLedger) -> RepositoryList:
    """Three repositories with one image each, one of them under two tags and with a deleted one."""
    here = HostedHere(tmp_path)
    for name in _NAMES:
        here.repo = Repo("corp", name)
        root = here.image([name.encode()], tag="v1")
        ledger.add(here.repo, root.digest, 100)
    app = Repo("corp", "team/app")
    record = here.catalog.get_tag(app, "v1")
    assert record is not None
    here.catalog.put_tag(app, TagRecord("latest", record.digest, record.media_type, record.size, 1.0))
    here.records.put_deleted_tag(app, DeletedTag("old", record.digest, record.media_type, record.size, 1.0))
    ledger.add(app, Digest.of(b"team/app"), 8)
    table = RoutingTable.build([Registry("corp", hosted=True)], "corp")
    return RepositoryList(here.catalog, here.records, ledger, ["corp"], table)


async def test_what_each_has(listed: RepositoryList, ledger: MemoryLedger) -> None:
    """By name; a size that is not known at the moment is null."""
    page = await listed.page({"search": "TEAM/"})
    assert page == {
        "repositories": [
            {"repository": "corp/team/app", "tags": 2, "manifests": 1, "deleted": 1, "size": 108},
            {"repository": "corp/team/tool", "tags": 1, "manifests": 1, "deleted": 0, "size": 100},
        ],
        "next": None,
    }
    ledger.fails = True
    assert [each["size"] for each in (await listed.page({}))["repositories"]] == [None, None, None]


async def test_page_by_page(listed: RepositoryList) -> None:
    """Each repository once, however long the pages are; a name that has gone meanwhile is no trouble."""
    for limit in ("1", "2", "3"):
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = await listed.page({"limit": limit, "after": after})
            seen += [each["repository"] for each in page["repositories"]]
            after = page["next"]
        assert seen == [f"corp/{name}" for name in _NAMES]
    assert [one["repository"] for one in (await listed.page({"after": "corp/gone"}))["repositories"]] == [
        "corp/team/app",
        "corp/team/tool",
    ]


async def test_registries_in_the_order_of_names(tmp_path: Path, ledger: MemoryLedger) -> None:
    """Pages go through them one after the other, and look into no others."""
    here, asked = HostedHere(tmp_path), list[str]()
    registries = ["corp", "a", "corp.z", "corp-x", "z"]
    for registry in registries:
        for name in ("app", "base"):
            here.repo = Repo(registry, name)
            here.image([f"{here.repo}".encode()], tag="v1")

    class Asked:
        """Notes of which registry the repositories are wanted."""

        def __getattr__(self, name: str) -> object:
            return getattr(here.records, name)

        def repositories(self, registry: str, after: str = "") -> Iterable[Repo]:
            """As `HostedRecords`."""
            asked.append(registry)
            return here.records.repositories(registry, after)

    table = RoutingTable.build([Registry(each, hosted=True) for each in registries], "corp")
    listed = RepositoryList(here.catalog, cast(HostedRecords, Asked()), ledger, registries, table)
    page = await listed.page({})
    names = [each["repository"] for each in page["repositories"]]
    assert names == sorted(f"{registry}/{name}" for registry in registries for name in ("app", "base"))
    asked.clear()
    page = await listed.page({"limit": "2", "after": "corp-x/app"})
    assert [each["repository"] for each in page["repositories"]] == ["corp-x/base", "corp.z/app"]
    assert asked == ["corp-x", "corp.z"]


@pytest.mark.parametrize("limit", ["0", "501", "x", "1" * 9])
async def test_a_wrong_limit(listed: RepositoryList, limit: str) -> None:
    with pytest.raises(RequestError, match="limit: not a number from 1 to 500"):
        await listed.page({"limit": limit})
