"""Which bytes are one whole request, and which headers keep one out of the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.server.fast.exact_requests import LONGEST, has_usual_headers, is_whole, split

_ASKED = b"GET /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (_ASKED, True),
        (_ASKED.replace(b"GET", b"HEAD"), True),
        (_ASKED[:-1], False),
        (_ASKED + b"\r\n", False),
        (_ASKED + b"x", False),
        (_ASKED + _ASKED, False),
        (b"\r\n" + _ASKED, False),
        (_ASKED.replace(b"GET", b"get"), False),
        (_ASKED.replace(b"GET", b"POST"), False),
        (_ASKED.replace(b"/v2/", b"/readyz"), False),
        (_ASKED.replace(b"\r\n", b"\n"), False),
        (_ASKED.replace(b"Host: x", b"Host: x\r\nAccept: " + b"y" * LONGEST), False),
        (b"", False),
    ],
)
def test_whole_requests(data: bytes, whole: bool) -> None:
    """One head, from its first byte to its last."""
    assert is_whole(data) is whole


_HOST = (b"Host", b"x")


@pytest.mark.parametrize(
    ("headers", "usual"),
    [
        ([_HOST], True),
        ([], False),
        ([_HOST, _HOST], False),
        ([(b"HOST", b"x"), (b"accept", b"a"), (b"Accept", b"b"), (b"user-agent", b"c")], True),
        ([_HOST, (b"Connection", b"Keep-Alive")], True),
        ([_HOST, (b"Connection", b"close")], False),
        ([_HOST, (b"Connection", b"upgrade")], False),
        ([_HOST, (b"User-Agent", b"a"), (b"User-Agent", b"b")], False),
        *(
            ([_HOST, (name, b"x")], False)
            for name in (
                b"Authorization",
                b"Cookie",
                b"Range",
                b"If-Range",
                b"If-None-Match",
                b"If-Match",
                b"Content-Length",
                b"Transfer-Encoding",
                b"Expect",
                b"Upgrade",
                b"Te",
                b"X-Forwarded-For",
                b"X-Forwarded-Proto",
                b"Forwarded",
                b"Via",
                b"traceparent",
                b"X-Unknown",
                b"",
            )
        ),
    ],
)
def test_usual_headers(headers: list[tuple[bytes, bytes]], usual: bool) -> None:
    """Only those that are known to change nothing."""
    assert has_usual_headers(headers) is usual


@given(st.lists(st.sampled_from([_ASKED, _ASKED.replace(b"b", b"c"), _ASKED.replace(b"GET", b"HEAD")]), max_size=6))
def test_requests_in_a_row_are_split(row: list[bytes]) -> None:
    """All of them, or none."""
    known = {*row}
    joined = b"".join(row)
    assert split(joined, known, 6) == row
    assert split(joined + _ASKED[:-1], known, 7) == []
    assert split(joined + b"GET /x HTTP/1.1\r\n\r\n", known, 7) == []
    if row:
        assert split(joined, known, len(row) - 1) == []
        assert split(joined, known - {row[-1]}, 6) == []
