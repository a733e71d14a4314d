"""The list of repositories, which may be very long."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from aiohttp.test_utils import make_mocked_request

from mirror.oci.reference import Repo
from mirror.oci.request import parse_request
from mirror.server.registry.pull import RequestRecord, catalog
from tests.support.listed import list_of

_REPOS = [Repo("corp", f"app{number:05}") for number in range(5000)]


async def test_others_are_answered_while_a_long_list_is_judged() -> None:
    """The event loop has its turns, however many repositories the caller may not see."""
    judged = 0

    def may_see(repo: Repo) -> bool:
        nonlocal judged
        judged += 1
        return False

    target = "/v2/_catalog"
    answering = catalog(
        make_mocked_request("GET", target), parse_request(target), list_of(_REPOS), RequestRecord(), may_see
    )
    task = asyncio.ensure_future(answering)
    turns = [0]
    while not task.done():
        await asyncio.sleep(0)
        turns.append(judged)
    assert judged == len(_REPOS)
    assert max(after - before for before, after in pairwise(turns)) <= 500


async def test_a_page_judges_what_it_needs() -> None:
    """After the name where it begins, and not the rest of the list."""
    judged: list[str] = []

    def may_see(repo: Repo) -> bool:
        judged.append(str(repo))
        return True

    target = "/v2/_catalog?n=2&last=corp/app04000"
    request = make_mocked_request("GET", target)
    answer = await catalog(request, parse_request(target), list_of(_REPOS), RequestRecord(), may_see)
    assert "last=corp%2Fapp04002" in answer.headers["Link"]
    assert judged[0] == "corp/app04001"
    assert len(judged) <= 500
