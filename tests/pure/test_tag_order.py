"""Whether tags are sorted, as far as they were seen, and which pages a window of them has."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import UpstreamInvalid
from mirror.policy.upstream.tag_order import ascending
from mirror.prefetch import sync_run
from mirror.repository.answers import Listing, Outcome
from mirror.repository.protocol import Readable
from mirror.repository.tag_windows import Window

_TAGS = st.text("aB1_.-", min_size=1, max_size=3)


@given(st.lists(_TAGS), _TAGS | st.just(""))
def test_ascending(tags: list[str], behind: str) -> None:
    """Exactly what is sorted and begins behind is taken, each tag once."""
    expected = sorted({tag for tag in tags if tag != behind})
    found = ascending(tags, behind)
    if tags == sorted(tags) and (not tags or tags[0] >= behind):
        assert found == expected
    else:
        assert found is None


@given(st.sets(_TAGS, min_size=1), _TAGS | st.just(""), st.integers(0, 9), st.booleans())
def test_a_page_of_a_window(tags: set[str], last: str, count: int, more: bool) -> None:
    """What it gives is what the whole list has there; it gives nothing that it cannot know."""
    whole = sorted(tags)
    cut = whole[: max(1, len(whole) // 2)] if more else whole
    window = Window("", tuple(cut), more, 0, 0.0, 1.0)
    page = window.page(last, count)
    if page is None:
        assert more
        return
    following = [tag for tag in whole if tag > last]
    assert list(page.tags) == following[: len(page.tags)]
    if len(page.tags) < count:
        assert not page.more or (more and not cut[: len(cut) - len(page.tags)])
    assert Window.from_json(window.to_json()) == window


def test_where_a_window_ends() -> None:
    """Behind its last tag it knows nothing, unless the list ends there; before it begins it knows nothing either."""
    window = Window("b", ("c", "d"), True, 2, 0.0, 1.0)
    assert window.page("a", 1) is None
    assert window.page("b", 3) is None
    assert window.page("d", 1) is None
    assert window.page("c", 2) is None
    assert window.page("c", 1) is not None
    # upstream's pages were too small for more
    assert Window("b", ("c",), True, 5, 0.0, 1.0).page("b", 5) is not None


class _Endless:
    """A repository whose list is sorted and has no end."""

    async def tags(self, last: str, count: int) -> Listing:
        start = int(last or 0) + 1
        return Listing(tuple(f"{number:09}" for number in range(start, start + count)), Outcome.NONE, "x.io", more=True)


async def test_a_sync_of_a_list_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted lists may be endless, too: what is collected for a sync is bounded."""
    monkeypatch.setattr(sync_run, "_MOST_TAGS", 50_000)
    with pytest.raises(UpstreamInvalid, match="more than 50000 tags"):
        await sync_run.all_tags(cast(Readable, _Endless()))
