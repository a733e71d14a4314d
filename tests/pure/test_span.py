"""Ranges as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RangeInvalid
from mirror.oci.span import Span, parse_content_range, parse_range

_BIG = "9" * 30


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", Span(0, 1)),
        ("bytes=0-", Span(0, 10)),
        ("bytes=3-5", Span(3, 6)),
        ("bytes=9-9", Span(9, 10)),
        ("bytes=9-", Span(9, 10)),
        ("bytes=3-99", Span(3, 10)),
        (f"bytes=3-{_BIG}", Span(3, 10)),
        ("bytes=-1", Span(9, 10)),
        ("bytes=-10", Span(0, 10)),
        ("bytes=-99", Span(0, 10)),
        (f"bytes=-{_BIG}", Span(0, 10)),
        (" Bytes = 1 - 2 ", Span(1, 3)),
    ],
)
def test_one_range(header: str, wanted: Span) -> None:
    """First to last, open at the end, and from the end (RFC 9110, 14.1.2)."""
    assert parse_range(header, 10) == wanted


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=1-2,4-5", "bytes=a-b", "items=0-1", "bytes=٣-"],
)
def test_27_ignored(header: str | None) -> None:
    """Row 27: what is no single valid range means the whole."""
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={_BIG}-", f"bytes={_BIG}-{_BIG}"])
def test_27_outside(header: str) -> None:
    """Row 27: what lies outside cannot be satisfied, and the error knows the size."""
    with pytest.raises(RangeInvalid) as caught:
        parse_range(header, 10)
    assert caught.value.size == 10


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-5"])
def test_nothing_has_no_range(header: str) -> None:
    """Of no bytes no range can be had, or the whole is sent; never a span outside."""
    try:
        span = parse_range(header, 0)
    except RangeInvalid:
        return
    assert span is None or span == Span(0, 0)


@given(st.integers(0, 200), st.integers(0, 250), st.integers(0, 250))
def test_like_slicing(size: int, first: int, last: int) -> None:
    """A range is what slicing gives."""
    content = bytes(number % 256 for number in range(size))
    try:
        span = parse_range(f"bytes={first}-{last}", size)
    except RangeInvalid:
        assert first >= size
    else:
        if last < first:
            assert span is None
        else:
            assert span is not None
            assert content[span.start : span.stop] == content[first : last + 1]
            assert span.length == len(content[first : last + 1]) > 0


@given(st.text(max_size=30) | st.from_regex(r"bytes=\d*-\d*", fullmatch=True), st.integers(0, 2**63))
def test_27_any_header(header: str, size: int) -> None:
    """Row 27: whatever comes: ignored, refused, or a span within the bytes."""
    try:
        span = parse_range(header, size)
    except RangeInvalid:
        return
    assert span is None or 0 <= span.start <= span.stop <= size


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes 0-0/1", (Span(0, 1), 1)),
        ("bytes 3-5/10", (Span(3, 6), 10)),
        ("bytes 3-5/*", (Span(3, 6), None)),
        (" BYTES  3-5/10 ", (Span(3, 6), 10)),
    ],
)
def test_content_range(header: str, wanted: tuple[Span, int | None]) -> None:
    """What part of what whole an answer is."""
    assert parse_content_range(header) == wanted


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes */10",
        "bytes 5-3/10",
        "bytes 3-10/10",
        "bytes 3-5",
        "items 3-5/10",
        f"bytes 0-1/{_BIG}",
        "bytes=3-5/10",
    ],
)
def test_22_no_content_range(header: str | None) -> None:
    """Row 22: a part that contradicts itself is no part."""
    assert parse_content_range(header) is None
