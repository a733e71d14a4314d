"""Pages of tag lists, read in pieces of any size: the same as when they are read at once."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.tag_page import read_tag_page

_VALUES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text() | st.lists(st.text() | st.integers())


def _read(text: str, piece: int = 64 * 1024) -> list[str]:
    source = io.StringIO(text)
    return [tag for batch in read_tag_page(lambda size: source.read(min(size, piece))) for tag in batch]


@given(
    tags=st.lists(st.text()),
    before=st.dictionaries(st.text().filter(lambda name: name != "tags"), _VALUES, max_size=3),
    after=st.dictionaries(st.text().filter(lambda name: name != "tags"), _VALUES, max_size=3),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    escaped=st.booleans(),
)
def test_any_page_in_any_pieces(
    tags: list[str],
    before: dict[str, object],
    after: dict[str, object],
    piece: int,
    indent: int | None,
    escaped: bool,
) -> None:
    """Whatever stands around the tags, and in them."""
    after = {name: value for name, value in after.items() if name not in before}
    page = json.dumps({**before, "tags": tags, **after}, indent=indent, ensure_ascii=escaped)
    assert _read(page, piece) == tags
    with pytest.raises(ValueError, match=r"."):
        _read(page[:-1], piece)
    with pytest.raises(ValueError, match=r"."):
        _read(page + "x", piece)


@pytest.mark.parametrize("text", ["{}", '{"tags": null}', '{"tags": []}', ' { "name" : 1.5 , "tags" : [ ] } \n'])
def test_no_tags(text: str) -> None:
    """Null, absent and empty are none."""
    assert _read(text) == []
    assert _read(text, 1) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "[]", "null", '"x"', "<html>", "{", "{]", '{"tags"}', '{"tags": [}', '{"tags": ["a",]}', "{}{}"),
        *('{"tags": "x"}', '{"tags": {}}', '{"tags": [1]}', '{"tags": ["a", null]}', '{"tags": ["a" "b"]}', "{,}"),
        *('{"tags": ["a"], "tags": ["b"]}', '{"tags": null, "tags": []}', '{"x": NaN}', '{"x": 1e999}', '{"a": 1,}'),
        *('{"tags": ["a\n"]}', '{"tags": ["\\x"]}', "{1: 2}", '{"x": ' + "[" * 100_000),
        *('{"x": "' + "y" * 300_000 + '"}', '{"tags": ["' + "y" * 300_000 + '"]}', " " * 300_000 + "x"),
    ],
)
def test_what_is_no_page(text: str) -> None:
    """A `ValueError`, whatever the pieces; no more than a piece or two of it is kept."""
    for piece in (64 * 1024, 1) if len(text) < 1000 else (64 * 1024,):
        with pytest.raises(ValueError, match=r"."):
            _read(text, piece)


def test_a_large_page_comes_in_batches() -> None:
    """No batch holds more than was read."""
    tags = [f"v{number:07}" for number in range(100_000)]
    source = io.StringIO(json.dumps({"name": "x", "tags": tags}))
    batches = list(read_tag_page(source.read))
    assert [tag for batch in batches for tag in batch] == tags
    assert max(map(len, batches)) < 20_000
