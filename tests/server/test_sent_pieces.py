"""Answers that are sent in pieces: whose turn each piece is, and what is left once the client has gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from aiohttp import web

from mirror.fills.lazy_content import FilePiece
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.ports import BlobReader
from mirror.repository.answers import BlobContent, Outcome, PartialContent
from mirror.server.peers.blobs import PeerBlobAnswers
from mirror.server.peers.peer_front import PeerRequest
from mirror.server.registry import pull
from mirror.server.registry.byteranges import Byteranges
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.sending import ClientGone, Sender

_REQUEST = cast(web.BaseRequest, None)
_RESPONSE = cast(web.StreamResponse, None)


class _Sender:
    """Notes what is sent: bytes, or whether a piece of a file is the first of its answer."""

    def __init__(self) -> None:
        self.sent: list[bytes | bool] = []
        self.is_gone = False

    async def write(self, response: web.StreamResponse, piece: bytes) -> None:
        if self.is_gone:
            raise ClientGone("left")
        self.sent.append(piece)

    async def send(self, *_: object, first: bool) -> None:
        self.sent.append(first)


class _Content:
    """Parts of a blob, in pieces."""

    size = 100
    parts = (Span(0, 20), Span(50, 70))

    def __init__(self, *pieces: FilePiece | bytes) -> None:
        self._pieces = pieces

    async def pieces(self, part: Span) -> AsyncGenerator[FilePiece | bytes]:
        for piece in self._pieces:
            yield piece


def _file() -> FilePiece:
    return FilePiece(cast(BlobReader, None), 0, 10)


@pytest.mark.parametrize("begins", ["file", "bytes"])
async def test_only_the_first_piece_of_an_answer_waits_for_no_turn(begins: str) -> None:
    """However many there are: a block of 64 KiB each would be ahead of all other clients for the whole answer."""
    content = _Content(_file() if begins == "file" else b"-", _file(), b"past the store", _file())
    is_first = True if begins == "file" else b"-"
    one, several = _Sender(), _Sender()
    parts = cast(PartialContent, content)
    await pull._send_pieces(_REQUEST, _RESPONSE, parts, None, RequestRecord(), cast(Sender, one))
    assert one.sent == [is_first, False, b"past the store", False]
    heads = Byteranges(content.parts, content.size)
    await pull._send_pieces(_REQUEST, _RESPONSE, parts, heads, RequestRecord(), cast(Sender, several))
    assert [each for each in several.sent if isinstance(each, bool)].count(True) == (begins == "file")
    assert several.sent[1] == is_first


async def test_only_the_first_piece_for_a_replica_waits_for_no_turn() -> None:
    sender = _Sender()
    answers = PeerBlobAnswers(cast(Any, None), cast(Sender, sender))
    content = cast(PartialContent, _Content(_file(), _file()))
    await answers._send_pieces(cast(PeerRequest, _Peer()), _RESPONSE, content)
    assert sender.sent == [True, False]


class _Peer:
    request = _REQUEST


class _Uncached:
    """A blob that comes from upstream, past the store."""

    digest = Digest.of(b"a blob")
    outcome = Outcome.BYPASS
    reader: BlobReader | None = None
    is_closed = False

    async def from_upstream(self, span: Span | None, sent: Span | None = None) -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"more"
        finally:
            self.is_closed = True


async def test_upstream_is_left_at_once_when_the_client_has_gone() -> None:
    """Not when the garbage collector comes round: the turn at upstream is another client's."""
    sender, content = _Sender(), _Uncached()
    sender.is_gone = True
    with pytest.raises(ClientGone):
        await pull._send(
            _REQUEST, _RESPONSE, cast(BlobContent, content), None, None, RequestRecord(), cast(Sender, sender)
        )
    assert content.is_closed
