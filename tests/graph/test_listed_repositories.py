"""Pages of the names of repositories: what they show, and how many names are looked at for that."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest

from mirror.errors import StoreError
from mirror.graph.listed_repositories import ListedRepositories
from mirror.oci.reference import Repo
from tests.support.clock import Clock
from tests.support.listed import Names

_MANY = 5000
#: Names that are looked at beyond those of a page that is not filled.
_AHEAD = 1000 + 200


def _repo(number: int) -> Repo:
    return Repo("corp", f"app-{number:05}")


@pytest.fixture
def names() -> Names:
    return Names(map(_repo, range(0, 2 * _MANY, 2)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def listed(names: Names, clock: Clock) -> ListedRepositories:
    return ListedRepositories(names.read, lambda: names.added, now=clock)


def _forward(clock: Clock, seconds: float) -> None:
    clock.time += seconds


def _everything(repo: Repo) -> bool:
    return True


async def _page(
    listed: ListedRepositories, count: int, after: str = "", may_see: Callable[[Repo], bool] = _everything
) -> list[Repo]:
    found: list[Repo] = []
    async with aclosing(listed.after(after, count, found)) as steps:
        async for step in steps:
            found += filter(may_see, step)
            if len(found) > count:
                break
    return found[:count]


async def test_a_page_looks_at_what_it_shows(listed: ListedRepositories, names: Names) -> None:
    """And at one name more; wherever it begins."""
    for after, first in (("", 0), (str(_repo(4000)), 4002), (str(_repo(4001)), 4002)):
        names.looked.clear()
        assert await _page(listed, 50, after) == [_repo(first + 2 * number) for number in range(50)]
        assert len(names.looked) == 51


async def test_who_may_see_few_has_the_list_of_all_read_once(names: Names, clock: Clock) -> None:
    """However many such callers come at the same time."""
    listed = ListedRepositories(names.read, lambda: names.added, keeps=10.0, now=clock)
    few = {_repo(10), _repo(9000)}
    pages = await asyncio.gather(*(_page(listed, 50, "", few.__contains__) for _ in range(10)))
    assert pages == [[_repo(10), _repo(9000)]] * 10
    assert len(names.looked) <= 10 * _AHEAD + 2 * _MANY


async def test_who_may_see_enough_nearby_does_not(listed: ListedRepositories, names: Names) -> None:
    """A page of one in ten."""
    page = await _page(listed, 200, "", lambda repo: repo.name.endswith("0"))
    assert page == [_repo(10 * number) for number in range(200)]
    assert len(names.looked) <= 1000 + _AHEAD


async def test_a_list_that_was_slow_to_read_is_kept(listed: ListedRepositories, names: Names, clock: Clock) -> None:
    """Ten times as long. Every page is made of it, until a repository is added: that is in each page that is filled
    nearby, and the list is read again when its time is over.
    """
    names.look = lambda: _forward(clock, 0.001)
    few = {_repo(3), _repo(8003)}
    assert await _page(listed, 50, "", few.__contains__) == []
    names.looked.clear()
    assert await _page(listed, 50) == [_repo(2 * number) for number in range(50)]
    assert await _page(listed, 50, "", few.__contains__) == []
    assert names.looked == []
    for repo in few:
        names.add(repo)
    assert _repo(3) in await _page(listed, 50)
    assert await _page(listed, 50, "", few.__contains__) == [_repo(3)]
    assert len(names.looked) <= 2 * _AHEAD
    _forward(clock, 10 * _MANY * 0.001)
    assert await _page(listed, 50, "", few.__contains__) == [_repo(3), _repo(8003)]


@pytest.mark.parametrize("keeps", [0.0, 10.0])
async def test_a_list_that_was_quick_to_read_has_what_was_added(names: Names, clock: Clock, keeps: float) -> None:
    """At once, for everyone. It is kept as long as is wanted; what has gone is shown so long."""
    listed = ListedRepositories(names.read, lambda: names.added, keeps=keeps, now=clock)
    few = {_repo(9000), _repo(9001)}
    assert await _page(listed, 50, "", few.__contains__) == [_repo(9000)]
    names.add(_repo(9001))
    assert await _page(listed, 50, "", few.__contains__) == [_repo(9000), _repo(9001)]
    names.there.discard(_repo(9000))
    names.looked.clear()
    assert (_repo(9000) in await _page(listed, 50, "", few.__contains__)) is bool(keeps)
    assert bool(names.looked) is not bool(keeps)
    _forward(clock, keeps)
    assert await _page(listed, 50, "", few.__contains__) == [_repo(9001)]


async def test_a_page_with_all_names_is_the_list(names: Names, clock: Clock) -> None:
    """If it begins with the first: the next ones look at none."""
    listed = ListedRepositories(names.read, lambda: names.added, keeps=10.0, now=clock)
    await _page(listed, 10_000, str(_repo(4)))
    assert len(await _page(listed, 10_000)) == _MANY
    names.looked.clear()
    assert len(await _page(listed, 10_000)) == _MANY
    assert names.looked == []


async def test_a_walk_that_ends_late_replaces_no_newer_list(
    listed: ListedRepositories, names: Names, clock: Clock
) -> None:
    """What one page has shown is in the next, too."""
    names.look = lambda: _forward(clock, 0.001)
    found: list[Repo] = []
    async with aclosing(listed.after("", 10_000, found)) as steps:
        while len(found) < 3000:
            found += await anext(steps)
        late = {_repo(4001)}
        names.add(_repo(4001))
        assert await _page(listed, 50, "", late.__contains__) == [_repo(4001)]
        async for step in steps:
            found += step
    assert len(found) == _MANY
    assert await _page(listed, 50, "", late.__contains__) == [_repo(4001)]


class _Held:
    """The list of all is read, and given when the test says so."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.go = threading.Event()
        self.readings: list[int] = []
        self._now = 0

    def read(self, after: str) -> Iterator[Repo]:
        """As `Catalog.repositories`."""
        found = list(self._names.read(after))
        if after:
            yield from found
            return
        self._now += 1
        self.readings.append(self._now)
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.go.wait(60)
        yield from found
        self._now -= 1


async def test_a_list_that_is_being_read_may_lack_what_is_added(names: Names) -> None:
    """Who comes after that waits for the next reading; there is one at a time."""
    late, few, held = _repo(9001), {_repo(9000), _repo(9001)}, _Held(names)
    listed = ListedRepositories(held.read, lambda: names.added)
    first = asyncio.ensure_future(_page(listed, 5, str(_repo(0)), few.__contains__))
    await held.begun.wait()
    names.add(late)
    others = [asyncio.ensure_future(_page(listed, 5, str(_repo(2)), few.__contains__)) for _ in range(5)]
    await asyncio.sleep(0)
    held.go.set()
    assert await asyncio.gather(*others) == [[_repo(9000), late]] * 5
    assert await first == [_repo(9000)]
    assert {*held.readings} == {1}


async def test_a_caller_that_goes_away_ends_nothing(names: Names) -> None:
    """Those who wait for the same list have it."""
    few, held = {_repo(9000)}, _Held(names)
    listed = ListedRepositories(held.read, lambda: names.added, keeps=60.0)
    first = asyncio.ensure_future(_page(listed, 5, str(_repo(0)), few.__contains__))
    await held.begun.wait()
    first.cancel()
    others = [asyncio.ensure_future(_page(listed, 5, str(_repo(2)), few.__contains__)) for _ in range(3)]
    await asyncio.sleep(0)
    held.go.set()
    assert await asyncio.gather(*others) == [[_repo(9000)]] * 3
    assert held.readings == [1]


async def test_what_cannot_be_read_now_is_read_by_the_next(listed: ListedRepositories, names: Names) -> None:
    """Nothing of an error is kept."""

    def fail() -> None:
        if len(names.looked) > 3000:
            raise StoreError("a folder cannot be listed")

    names.look = fail
    with pytest.raises(StoreError):
        await _page(listed, 50, "", {_repo(9000)}.__contains__)
    names.look = int
    assert await _page(listed, 50, "", {_repo(9000)}.__contains__) == [_repo(9000)]


@pytest.mark.parametrize("seed", range(10))
async def test_pages_together_are_the_whole(seed: int) -> None:
    """For anyone, however long they are and whatever is added and goes meanwhile: what is there the whole time comes
    once each, in order; and what was there before a page began, behind its place, is in the list from there on.
    """
    draw = random.Random(seed)
    staying = {_repo(number) for number in draw.sample(range(4000), 2500)}
    names, clock = Names(staying), Clock()
    names.look = lambda: _forward(clock, draw.choice((0.0, 0.0001)))
    listed = ListedRepositories(names.read, lambda: names.added, keeps=draw.choice((0.0, 10.0)), now=clock)
    one_in = draw.choice((1, 7, 300))
    others = [_repo(number) for number in range(4000, 4100)] + [_repo(number) for number in range(4000)]

    def may_see(repo: Repo) -> bool:
        return int(repo.name[4:]) % one_in == 0

    seen: list[Repo] = []
    while page := await _page(listed, draw.choice((1, 40, 3000)), str(seen[-1]) if seen else "", may_see):
        seen += page
        for repo in draw.sample(others, 3):
            if repo not in staying and draw.random() < 0.5:
                names.add(repo)
            elif repo not in staying:
                names.there.discard(repo)
    assert seen == sorted({*seen}, key=str)
    assert [repo for repo in seen if repo in staying] == sorted(filter(may_see, staying), key=str)
