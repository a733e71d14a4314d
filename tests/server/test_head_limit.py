"""Heads are limited, and the bodies that arrive with them are not taken for heads."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from mirror.server.registry.head_limit import MOST_HEAD, BoundedHeads, reason_in

_NEXT = b"GET /v2/ HTTP/1.1\r\nHost: m\r\n\r\n"


def _heads() -> BoundedHeads:
    loop = asyncio.get_running_loop()
    return BoundedHeads(HttpRequestParser(BaseProtocol(loop), loop, 1 << 16, max_field_size=MOST_HEAD))


def _targets(heads: BoundedHeads, *pieces: bytes) -> list[str]:
    """Of the requests that come out, in order; a refused one is `refused`."""
    return [
        message.path if isinstance(message, RawRequestMessage) else "refused"
        for piece in pieces
        for message, _ in heads.feed_data(piece)[0]
    ]


@pytest.mark.parametrize("size", [10, MOST_HEAD + 1, 60_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_arrives_with_its_head(size: int, chunked: bool) -> None:
    """Whatever its size: the next request is read, in the same piece or in a later one."""
    content = b"\r\n\r\n".join([b"x" * (size // 2), b"y" * (size - size // 2 - 4)])
    if chunked:
        request = b"PUT /a HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            size,
            content,
        )
    else:
        request = b"PUT /a HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n%b" % (size, content)
    assert _targets(_heads(), request, _NEXT) == ["/a", "/v2/"]
    assert _targets(_heads(), request + _NEXT, _NEXT) == ["/a", "/v2/", "/v2/"]
    assert _targets(_heads(), request + _NEXT[:10], _NEXT[10:]) == ["/a", "/v2/"]


async def test_a_head_that_begins_behind_a_body_is_limited() -> None:
    """What follows a body in the same piece counts for the next head."""
    body = b"PUT /a HTTP/1.1\r\nHost: m\r\nContent-Length: 40000\r\n\r\n" + bytes(40_000)
    endless = b"GET / HTTP/1.1\r\n" + b"".join(b"Name-%d: %b\r\n" % (n, b"x" * 1000) for n in range(60))
    assert _targets(_heads(), body + endless) == ["/a", "refused"]


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        (b"Authorization: Bearer secret" + b"y" * MOST_HEAD, f"Got more than {MOST_HEAD} bytes when reading"),
        (b"secret" + b"y" * MOST_HEAD + b": x", f"Got more than {MOST_HEAD} bytes when reading"),
        (b"Authorization: Basic secret\x01", "Invalid header value char"),
        (b"se cret: x", "Invalid header token"),
        (b"GET http://user:secret@host:99999999/v2/ HTTP/1.1", "Invalid target"),
        (b"GET http://user:secret@[host/\x9b HTTP/1.1", "Invalid target"),
        (b"GET /v2/secret\x01 HTTP/1.1", "Invalid target"),
        (b"GET /v2/secret" + b"y" * 8190 + b" HTTP/1.1", "Got more than 8190 bytes when reading"),
        (b"SECRET /v2/secret HTTP/1.1", "Invalid method encountered"),
        (b"GET /v2/secret HTTP/7.1", "Bad status line"),
    ],
)
async def test_the_reason_of_a_refusal_shows_no_bytes_of_the_request(request_text: bytes, reason: str) -> None:
    """It is logged, and a header or a target may hold a password."""
    is_line = b" HTTP/" in request_text
    head = request_text + b"\r\nHost: m\r\n\r\n" if is_line else b"GET / HTTP/1.1\r\nHost: m\r\n" + request_text
    with pytest.raises(HttpProcessingError) as refused:
        _heads().feed_data(head + b"\r\n\r\n")
    assert reason_in(refused.value) == reason
