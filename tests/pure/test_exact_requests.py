"""Which bytes are one whole request, and which headers keep one out of the table."""

from __future__ import annotations

import pytest

from mirror.server.fast.exact_requests import LONGEST, has_usual_headers, is_whole

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
