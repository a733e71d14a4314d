"""The next page of a list."""

from __future__ import annotations

import pytest

from mirror.oci import link
from mirror.oci.link import next_page


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], None),
        (['</v2/a/tags/list?last=b&n=2>; rel="next"'], "/v2/a/tags/list?last=b&n=2"),
        (["</x>;rel=next"], "/x"),
        (["</x> ; REL = NEXT"], "/x"),
        (['</x>; title="a"; rel="next"'], "/x"),
        (['</x>; rel="prev", </y>; rel="next"'], "/y"),
        (['</x>; rel="prev"', '</y>; rel="next"'], "/y"),
        (['</x>; rel="first"'], None),
        (['< </y>; rel="next"'], "/y"),
        (["rel=next"], None),
        (['<>; rel="next"'], ""),
    ],
)
def test_the_next_page(lines: list[str], found: str | None) -> None:
    """The first that says it is the next one, whatever else stands there."""
    assert next_page(lines) == found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["<", "<>;", "<>; ", "<>;rel=", ">;", ";", " ", "<> ;\t", "rel = ", '"'])
def test_nonsense_is_read_in_one_go(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry chooses what it sends, and the event loop waits for this: a million characters are as many steps."""
    monkeypatch.setattr(link, "_LONGEST", 1 << 30)
    assert next_page(["<>;" + piece * (1_000_000 // len(piece))]) is None
