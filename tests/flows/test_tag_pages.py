"""Tag lists of any length and order: sorted ones pass through page by page, others are sorted here, once."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.scripted import Request, Script, Scripted, reply_json

_LIST = "/v2/team/app/tags/list"
_MANY = [f"v{number:07}" for number in range(60_000)]


@pytest.fixture
def upstream() -> Iterator[Scripted]:
    with Scripted() as upstream:
        yield upstream


Open = Callable[..., AbstractAsyncContextManager[LiveMirror]]


@pytest.fixture
def opened(upstream: Scripted, tmp_path: Path) -> Open:
    """A mirror of it, on one store however often it is opened."""

    def open_it(**store: Any) -> AbstractAsyncContextManager[LiveMirror]:
        return live_mirror(tmp_path / "store", {"docker.io": upstream.url}, store=store)

    return open_it


@pytest.fixture
async def mirror(opened: Open) -> AsyncIterator[LiveMirror]:
    async with opened() as mirror:
        yield mirror


def _paged(tags: Sequence[str], *, most: int = 100_000, last: bool = True, inclusive: bool = False) -> Any:
    """An upstream that gives the tags in this order, at most so many in a page. Without `last` it pages by a mark of
    its own, and begins at the beginning whatever `last` says; an inclusive one begins with the last tag again.
    """

    def answer(request: Request) -> Script:
        query = request.query
        size = min(int(query.get("n", ["100"])[0]), most)
        start = int(query.get("mark", ["0"])[0])
        if last and "last" in query:
            start = next((at for at, tag in enumerate(tags) if tag > query["last"][0]), len(tags))
            start -= inclusive and start > 0
        page = tags[start : start + size]
        more = {}
        if start + size < len(tags):
            where = f"last={page[-1]}" if last else f"mark={start + size}"
            more["Link"] = f'<{_LIST}?n={size}&{where}>; rel="next"'
        return reply_json(200, {"name": "team/app", "tags": page}, more)

    return answer


def _following(link: str | None) -> str | None:
    return link.partition(">")[0].removeprefix("<") if link else None


async def _walk(mirror: LiveMirror, target: str | None) -> list[str]:
    """Every page from there on."""
    found: list[str] = []
    while target is not None:
        answer = await mirror.ask(target)
        assert answer.status == 200, answer
        assert answer.json["tags"]
        found += answer.json["tags"]
        target = _following(answer.headers.get("Link"))
    return found


async def test_the_first_page_of_a_long_list(upstream: Scripted, mirror: LiveMirror) -> None:
    """It costs one request; so do those behind it that came with it, and one from the middle."""
    upstream.on(_LIST, _paged(_MANY))
    answer = await mirror.ask(f"{_LIST}?n=100")
    assert answer.json["tags"] == _MANY[:100]
    assert _following(answer.headers["Link"]) == f"{_LIST}?n=100&last={_MANY[99]}"
    assert [request.target for request in upstream.requests] == [f"{_LIST}?n=10000"]
    assert (await mirror.ask(f"{_LIST}?n=100&last={_MANY[99]}")).json["tags"] == _MANY[100:200]
    assert len(upstream.requests) == 1
    assert (await mirror.ask(f"{_LIST}?n=5&last={_MANY[50_000]}")).json["tags"] == _MANY[50_001:50_006]
    assert [request.target for request in upstream.requests[1:]] == [f"{_LIST}?n=10000&last={_MANY[50_000]}"]


async def test_all_of_a_long_list(upstream: Scripted, mirror: LiveMirror) -> None:
    """Ten thousand at a time, whether a number is asked for or not; nothing of it is put on disk."""
    upstream.on(_LIST, _paged(_MANY))
    assert await _walk(mirror, _LIST) == _MANY
    assert len(upstream.requests) == 6
    assert not (mirror.root / "lists").exists()


@pytest.mark.parametrize("inclusive", [False, True])
async def test_small_pages_of_upstream(upstream: Scripted, mirror: LiveMirror, inclusive: bool) -> None:
    """Our page is as full as was asked for, also if upstream begins each page with the tag that it was asked behind."""
    upstream.on(_LIST, _paged(_MANY[:5_000], most=1_000, inclusive=inclusive))
    assert (await mirror.ask(f"{_LIST}?n=2500")).json["tags"] == _MANY[:2500]
    assert (await mirror.ask(_LIST)).json["tags"] == _MANY[:5000]
    assert await _walk(mirror, f"{_LIST}?n=1700") == _MANY[:5000]


@pytest.mark.parametrize("last", [True, False])
async def test_137_a_long_list_that_is_not_sorted(upstream: Scripted, opened: Open, last: bool) -> None:
    """It is fetched and sorted once, on disk, for every page and every process; until it is no longer believed."""
    shuffled = random.Random(1).sample(_MANY, len(_MANY))
    upstream.on(_LIST, _paged(shuffled, last=False))
    async with opened() as mirror, opened() as other:
        assert await _walk(mirror, f"{_LIST}?n=9000") == _MANY
        assert len(upstream.requests) == 6
        assert len(list((mirror.root / "lists").iterdir())) == 1
        answer = await other.ask(f"{_LIST}?n=3" + (f"&last={_MANY[41_000]}" if last else ""))
        assert answer.json["tags"] == (_MANY[41_001:41_004] if last else _MANY[:3])
        assert len(upstream.requests) == 7
        upstream.on(_LIST, _paged([*shuffled, "a-new-one"], last=False))
        mirror.clock.forward(61)
        assert (await mirror.ask(f"{_LIST}?n=2")).json["tags"] == ["a-new-one", _MANY[0]]
        assert len(list((mirror.root / "lists").iterdir())) == 1


async def test_a_short_list_that_is_not_sorted(upstream: Scripted, mirror: LiveMirror) -> None:
    """It is sorted in memory, and fetched once."""
    upstream.on(_LIST, _paged(_MANY[:5_000][::-1], most=1_000, last=False))
    assert await _walk(mirror, f"{_LIST}?n=1300") == _MANY[:5000]
    assert len(upstream.requests) == 5
    assert not (mirror.root / "lists").exists()


async def test_a_list_that_is_sorted_at_its_beginning(upstream: Scripted, mirror: LiveMirror) -> None:
    """Where it turns out not to be it is sorted, and that is remembered: the next walk has every tag."""
    tags = [*_MANY[100:30_000], *_MANY[:100], *_MANY[30_000:]]
    upstream.on(_LIST, _paged(tags, last=False))
    assert (await mirror.ask(f"{_LIST}?n=10")).json["tags"] == _MANY[100:110]
    await _walk(mirror, f"{_LIST}?n=10000&last={_MANY[109]}")
    assert await _walk(mirror, f"{_LIST}?n=10000") == _MANY
    mirror.clock.forward(61)
    assert (await mirror.ask(f"{_LIST}?n=10")).json["tags"] == _MANY[:10]


async def test_an_upstream_that_ignores_both(upstream: Scripted, mirror: LiveMirror) -> None:
    """All of the list in one page, whatever is asked for."""
    upstream.on(_LIST, lambda request: reply_json(200, {"tags": _MANY}))
    assert await _walk(mirror, f"{_LIST}?n=10000") == _MANY
    assert len(upstream.requests) <= 3


@pytest.mark.parametrize("last", ["%C3%A9", "a%20b", "", "-", "v0000099%00", "v0000099/x", "x" * 3000])
async def test_a_last_that_is_no_tag(upstream: Scripted, mirror: LiveMirror, last: str) -> None:
    """Upstream is asked behind a tag that sorts before it, never for what is no tag."""
    upstream.on(_LIST, _paged(_MANY[:200]))
    answer = await mirror.ask(f"{_LIST}?n=3&last={last}")
    wanted = {
        "v0000099%00": _MANY[100:103],
        "v0000099/x": _MANY[100:103],
        "-": _MANY[:3],
        "": _MANY[:3],
        "a%20b": _MANY[:3],
    }
    assert answer.json["tags"] == wanted.get(last, [])
    assert all("%" not in request.target and len(request.target) < 300 for request in upstream.requests)


@pytest.mark.parametrize("kind", ["one", "pages", "empty", "outside", "two"])
async def test_137_a_list_without_progress(upstream: Scripted, mirror: LiveMirror, kind: str) -> None:
    """Repeated tags, empty pages, and strings that are no tags are given up at once, not read without end."""
    tags = {
        "one": ["latest"] * 250_000,
        "pages": ["latest"] * 1000,
        "empty": [],
        "outside": ["../x"] * 250_000,
        "two": ["b", "a"] * 100_000,
    }[kind]
    page = json.dumps({"name": "team/app", "tags": tags})
    numbers = iter(range(10**6))

    def answer(request: Request) -> Script:
        return reply_json(200, json.loads(page), {"Link": f'<{_LIST}?page={next(numbers)}>; rel="next"'})

    upstream.on(_LIST, answer)
    refused = await mirror.ask(f"{_LIST}?n=100000")
    assert (refused.status, refused.code) == (502, "UNAVAILABLE")
    assert "repeats itself" in refused.body.decode()
    assert len(upstream.requests) <= 10


async def test_137_more_than_tag_lists_max_size(upstream: Scripted, opened: Open) -> None:
    """A list that is not sorted and too long to be sorted: 502, which names the setting; nothing is left on disk."""
    upstream.on(_LIST, _paged(_MANY[::-1], last=False))
    async with opened(tag_lists_max_size="300KB") as mirror:
        refused = await mirror.ask(f"{_LIST}?n=10")
        assert (refused.status, refused.code) == (502, "UNAVAILABLE")
        assert "tag_lists_max_size" in refused.body.decode()
        assert list((mirror.root / "lists").glob("*")) == []
        # sorted ones need no room
        upstream.on("/v2/team/other/tags/list", _paged(_MANY))
        assert (await mirror.ask("/v2/team/other/tags/list?n=10")).json["tags"] == _MANY[:10]


async def test_a_disk_that_takes_no_list(upstream: Scripted, mirror: LiveMirror) -> None:
    """503: it is ours, not upstream's doing; short lists are not concerned."""
    (mirror.root / "lists").write_bytes(b"in the way")
    upstream.on(_LIST, _paged(_MANY[::-1], last=False))
    refused = await mirror.ask(f"{_LIST}?n=10")
    assert refused.status == 503
    upstream.on("/v2/team/other/tags/list", _paged(_MANY[:100][::-1]))
    assert (await mirror.ask("/v2/team/other/tags/list?n=10")).json["tags"] == _MANY[:10]


async def test_a_failure_on_a_later_page(upstream: Scripted, mirror: LiveMirror) -> None:
    """What is collected until then is dropped, and the next request begins anew."""
    upstream.on(_LIST, _paged(_MANY[::-1], last=False))
    upstream.once(_LIST, *_paged(_MANY[::-1], last=False)(Request("GET", f"{_LIST}?n=10000", "", (), b"", 0)))
    for _ in range(3):
        upstream.once(_LIST, *reply_json(503, {}))
    assert (await mirror.ask(f"{_LIST}?n=10")).status in (502, 503)
    assert list((mirror.root / "lists").glob("*")) == []
    assert (await mirror.ask(f"{_LIST}?n=10")).json["tags"] == _MANY[:10]
