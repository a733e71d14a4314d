"""Blobs over blocking sockets, against an upstream that sends exactly what a test says."""

from __future__ import annotations

import contextlib
import gc
import gzip
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mirror.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from mirror.ports import Body
from mirror.upstream.http.body import HttpBody
from mirror.upstream.http.download import Answer, Cancel, DialFailed, Transfer
from mirror.upstream.http.transport import Endpoint
from tests.support.certificates import Certificate
from tests.support.registry_upstream import endpoint
from tests.support.scripted import Close, Request, Reset, Script, Scripted, Stall, Step, chunked, head, reply

CONTENT = bytes(range(256)) * 4096
HALF = len(CONTENT) // 2


@pytest.fixture
def upstream() -> Iterator[Scripted]:
    with Scripted() as scripted:
        yield scripted


@pytest.fixture
def open_transfer() -> Iterator[Callable[..., Transfer]]:
    opened: list[Transfer] = []

    def build(upstream: Scripted, **settings: Any) -> Transfer:
        more = {"clock": settings["clock"]} if "clock" in settings else {}
        transfer = Transfer(endpoint("test", upstream.url, **settings), **more)
        opened.append(transfer)
        return transfer

    yield build
    for transfer in opened:
        transfer.close()


@pytest.fixture
def transfer(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> Transfer:
    return open_transfer(upstream)


def body_of(answer: Answer) -> HttpBody:
    assert isinstance(answer.body, HttpBody), answer
    return answer.body


def read_all(body: Body, size: int = 256 * 1024) -> bytes:
    """To the end that the body itself tells."""
    content, room = bytearray(), memoryview(bytearray(size))
    while count := body.readinto(room):
        content += room[:count]
    return bytes(content)


def read_until_error(body: Body) -> tuple[bytes, UpstreamUnavailable]:
    content, room = bytearray(), memoryview(bytearray(64 * 1024))
    try:
        while count := body.readinto(room):
            content += room[:count]
    except UpstreamUnavailable as failure:
        return bytes(content), failure
    pytest.fail(f"it ended well after {len(content)} bytes")


def open_descriptors() -> set[str]:
    """What each is, such as `socket:[12345]`: numbers are taken again by other threads at any moment."""
    descriptors = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            descriptors.add(os.readlink(f"/proc/self/fd/{number}"))
    return descriptors


def test_a_whole_blob(upstream: Scripted, transfer: Transfer) -> None:
    """Size known beforehand, every byte, identity asked for, headers passed on."""
    upstream.on("/blob", reply(200, CONTENT))
    body = body_of(transfer.get(f"{upstream.url}/blob", {"Authorization": "Bearer x"}))
    assert (body.start, body.size) == (0, len(CONTENT))
    assert read_all(body) == CONTENT
    assert body.readinto(memoryview(bytearray(1))) == 0
    body.close()
    (request,) = upstream.requests
    assert request.header("Accept-Encoding") == "identity"
    assert request.header("Authorization") == "Bearer x"
    assert request.header("Host") == f"127.0.0.1:{upstream.port}"
    assert request.header("Range") is None


def test_bytes_are_given_as_they_come(upstream: Scripted, transfer: Transfer) -> None:
    """A read returns what is there and does not wait for its buffer to be full."""
    stall = Stall()
    upstream.on("/blob", head(200, {"Content-Length": "10"}), b"hello", stall, b"world")
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    room = memoryview(bytearray(100))
    first = body.readinto(room)
    while first < 5:
        first += body.readinto(room[first:])
    assert bytes(room[:first]) == b"hello"
    stall.release()
    assert read_all(body) == b"world"
    body.close()


def test_a_connection_is_used_again(upstream: Scripted, transfer: Transfer) -> None:
    """Length-framed and chunked bodies, empty ones and errors leave the connection fit for the next request."""
    upstream.on("/blob", reply(200, CONTENT))
    upstream.on("/chunked", head(200, {"Transfer-Encoding": "chunked"}), chunked(b"a", CONTENT))
    upstream.on("/empty", reply(200))
    upstream.on("/redirect", reply(307, b"over there", {"Location": "/blob"}))
    for path, content in (("blob", CONTENT), ("chunked", b"a" + CONTENT), ("empty", b""), ("redirect", CONTENT)):
        body = body_of(transfer.get(f"{upstream.url}/{path}", {}))
        assert read_all(body) == content
        body.close()
    assert transfer.get(f"{upstream.url}/none", {}).status == 404
    assert upstream.connections == 1


def test_an_exchange_that_is_given_up_dials_no_more(
    upstream: Scripted, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection has waited for it, and ends as if upstream had closed it just before."""
    gate = Stall()
    upstream.on("/blob", reply(200, CONTENT))
    upstream.on("/silent", gate, reply(200, CONTENT))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert read_all(body) == CONTENT
    body.close()
    dialled: list[object] = []
    monkeypatch.setattr(transfer, "_connect", lambda *asked: dialled.append(asked))
    cancel = Cancel()

    def give_up() -> None:
        gate.reached.wait(60)
        cancel.now()

    giving_up = threading.Thread(target=give_up)
    giving_up.start()
    with pytest.raises(UpstreamUnavailable):
        transfer.get(f"{upstream.url}/silent", {}, cancel=cancel)
    giving_up.join()
    gate.release()
    assert not dialled


def test_an_unread_body_ends_its_connection(upstream: Scripted, transfer: Transfer) -> None:
    """What is left of an answer never becomes the head of the next one."""
    upstream.on("/blob", reply(200, CONTENT))
    body_of(transfer.get(f"{upstream.url}/blob", {})).close()
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert read_all(body) == CONTENT
    body.close()
    body.close()
    assert upstream.connections == 2


def test_a_connection_that_upstream_closed_is_replaced(upstream: Scripted, transfer: Transfer) -> None:
    """An idle connection may end at any moment; nobody notices."""
    upstream.once("/blob", reply(200, b"one"), Close())
    upstream.once("/blob", reply(200, b"two"))
    for content in (b"one", b"two"):
        body = body_of(transfer.get(f"{upstream.url}/blob", {}))
        assert read_all(body) == content
        body.close()
    assert upstream.connections == 2


def test_a_connection_that_breaks_on_reuse_is_replaced(upstream: Scripted, transfer: Transfer) -> None:
    """It looked alive, took the request and said nothing: a GET can be sent again."""
    upstream.once("/blob", reply(200, b"one"))
    upstream.once("/blob", Close())
    upstream.once("/blob", reply(200, b"two"))
    for content in (b"one", b"two"):
        body = body_of(transfer.get(f"{upstream.url}/blob", {}))
        assert read_all(body) == content
        body.close()
    assert len(upstream.requests) == 3


def test_what_is_left_of_an_answer_is_not_the_next_one(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 3: bytes beyond the length that come only once the connection is used again are no answer of it."""
    upstream.once("/blob", reply(200, b"one"))
    upstream.once("/blob", b"bytes of the first answer", Close())
    upstream.once("/blob", reply(200, b"two"))
    for content in (b"one", b"two"):
        body = body_of(transfer.get(f"{upstream.url}/blob", {}))
        assert read_all(body) == content
        body.close()
    assert [request.connection for request in upstream.requests] == [0, 0, 1]


@pytest.mark.parametrize("ending", [Close(), Reset()])
def test_a_body_cut_short(upstream: Scripted, transfer: Transfer, ending: Close | Reset) -> None:
    """Faults rows 1 and 8: fewer bytes than announced are an error after the bytes that came, by FIN or RST."""
    upstream.on("/blob", head(200, {"Content-Length": str(len(CONTENT))}), CONTENT[:HALF], ending)
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    content, failure = read_until_error(body)
    assert CONTENT.startswith(content)
    assert isinstance(ending, Reset) or len(content) == HALF
    assert f"of {len(CONTENT)}" in str(failure)
    body.close()


@pytest.mark.parametrize(
    "sent",
    [
        chunked(b"hello", end=False),
        chunked(b"hello", end=False) + b"0\r\n",
        chunked(b"hello", end=False) + b"10\r\nwor",
        b"5\r\nhello\r",
        b"5\r\nhelloworld",
        chunked(b"hello", end=False) + b"zz\r\n",
        chunked(b"hello", end=False) + b"-1\r\n",
        chunked(b"hello", end=False) + b"0\r\n" + b"X: y\r\n" * 1000,
    ],
)
def test_a_chunked_body_cut_short(upstream: Scripted, transfer: Transfer, sent: bytes) -> None:
    """Faults row 1: without a whole last chunk there is no end, and broken chunks are not guessed at."""
    upstream.on("/blob", head(200, {"Transfer-Encoding": "chunked"}), sent, Close())
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert body.size is None
    content, _ = read_until_error(body)
    assert content.startswith(b"hello")
    body.close()


def test_a_chunked_body(upstream: Scripted, transfer: Transfer) -> None:
    """Extensions and trailers are passed over; no size is known beforehand."""
    sent = b"5;name=value\r\nhello\r\n0\r\nX-Trailer: y\r\n\r\n"
    upstream.on("/blob", head(200, {"Transfer-Encoding": "Chunked"}), sent)
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert body.size is None
    assert read_all(body) == b"hello"
    assert body.plain_socket() is None
    body.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_without_length(upstream: Scripted, transfer: Transfer, version: str) -> None:
    """Faults row 2: the end of the connection is the end, and no size is claimed: the digest decides."""
    upstream.on("/blob", head(200, version=version), CONTENT, Close())
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert body.size is None
    assert read_all(body) == CONTENT
    body.close()
    assert transfer.get(f"{upstream.url}/none", {}).status == 404
    assert upstream.connections == 2


def test_bytes_beyond_the_length(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 3: they are not given out, and the connection is not used again."""
    upstream.once("/blob", reply(200, b"hello" + b"HTTP/1.1 200 X\r\nContent-Length: 4\r\n\r\nevil", length=5))
    upstream.once("/blob", reply(200, b"world"))
    for content in (b"hello", b"world"):
        body = body_of(transfer.get(f"{upstream.url}/blob", {}))
        assert read_all(body) == content
        body.close()
    assert upstream.connections == 2


def test_bytes_that_come_later(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 3: an idle connection on which something has come is not used again."""
    gate, sent = Stall(), Stall()
    evil = b"HTTP/1.1 200 X\r\nContent-Length: 4\r\n\r\nevil"
    upstream.once("/blob", reply(200, b"hello"), gate, evil, sent)
    upstream.once("/blob", reply(200, b"world"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert read_all(body) == b"hello"
    body.close()
    gate.release()
    assert sent.reached.wait(30)
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert read_all(body) == b"world"
    body.close()


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Content-Length", "5, 6")],
        [("Content-Length", "-5")],
        [("Content-Length", "+5")],
        [("Content-Length", "5x")],
        [("Content-Length", "9" * 40)],
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "gzip, chunked")],
    ],
)
def test_an_ambiguous_length(upstream: Scripted, transfer: Transfer, headers: list[tuple[str, str]]) -> None:
    """Faults row 3: an answer that two readers could end at two places is refused."""
    upstream.on("/blob", head(200, headers), b"hello")
    with pytest.raises(UpstreamInvalid):
        transfer.get(f"{upstream.url}/blob", {})


def test_a_repeated_equal_length_is_one(upstream: Scripted, transfer: Transfer) -> None:
    """RFC 9110, 8.6 allows it."""
    upstream.on("/blob", head(200, [("Content-Length", "5"), ("content-length", "5")]), b"hello")
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    assert read_all(body) == b"hello"
    body.close()


@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "br", ""])
def test_a_coding_of_the_file_itself(upstream: Scripted, transfer: Transfer, coding: str) -> None:
    """Faults row 5: identity was asked for, so the bytes are the blob as it is stored, whatever is said of them."""
    packed = gzip.compress(bytes(200_000) + CONTENT)
    for content in (packed, CONTENT, b"\x1f\x8b", b""):
        upstream.on("/blob", reply(200, content, {"Content-Encoding": coding}))
        body = transfer.get(f"{upstream.url}/blob", {}).body
        assert body
        assert (body.start, body.size, read_all(body)) == (0, len(content), content)
        body.close()


@pytest.mark.parametrize("content", [gzip.compress(CONTENT), b"\x28\xb5\x2f\xfd" + CONTENT, b"{" + CONTENT])
def test_a_coding_of_the_way(upstream: Scripted, transfer: Transfer, content: bytes) -> None:
    """Faults row 5: a blob that is compressed itself, or is JSON, was encoded on the way: what is in it is the blob."""
    upstream.on("/blob", reply(200, gzip.compress(content), {"Content-Encoding": "gzip"}))
    body = transfer.get(f"{upstream.url}/blob", {}).body
    assert body
    assert (body.start, body.size, read_all(body)) == (0, None, content)
    assert body.readinto(memoryview(bytearray(10))) == 0
    body.close()


@pytest.mark.parametrize(
    ("sent", "trouble"),
    [
        (gzip.compress(b"{" + os.urandom(200_000))[:-1], "is cut short"),
        (gzip.compress(b"{" + os.urandom(200_000))[:150_000] + b"\xff" * 100_000, "is not valid gzip"),
        (gzip.compress(b"{" + bytes(100 << 20)), "decompresses to far too many bytes"),
    ],
    ids=["cut", "broken", "bomb"],
)
def test_an_encoded_blob_that_is_none(upstream: Scripted, transfer: Transfer, sent: bytes, trouble: str) -> None:
    """Faults rows 5 and 82: it is not believed, and does not fill the disk."""
    upstream.on("/blob", reply(200, sent, {"Content-Encoding": "gzip"}))
    body = transfer.get(f"{upstream.url}/blob", {}).body
    assert body
    with pytest.raises(UpstreamInvalid, match=trouble):
        read_all(body)
    body.close()


def test_a_part_of_what_is_encoded(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 5: it says nothing about the blob, which is asked for from its beginning."""
    upstream.on("/blob", lambda request: _encoded_part(request))
    answer = transfer.get(f"{upstream.url}/blob", {}, start=5)
    assert answer.body
    assert (answer.body.start, read_all(answer.body)) == (0, CONTENT)
    answer.body.close()
    assert [request.header("Range") for request in upstream.requests] == ["bytes=5-", None]


def _encoded_part(request: Request) -> Script:
    if not request.header("Range"):
        return reply(200, CONTENT)
    return reply(206, CONTENT[5:], {"Content-Encoding": "gzip", "Content-Range": f"bytes 5-{len(CONTENT) - 1}/*"})


def test_a_drip(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 6: a body below the lowest rate over the window is given up, though each byte is in time."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # each read lasts a second, so a kibibyte a read is the lowest that will do
        return now[0]

    upstream.on("/blob", reply(200, CONTENT))
    for size, enough in ((2048, True), (512, False)):
        body = body_of(open_transfer(upstream, clock=clock).get(f"{upstream.url}/blob", {}))
        room, given = memoryview(bytearray(size)), 0
        try:
            while count := body.readinto(room):
                given += count
        except UpstreamTimeout:
            assert not enough
            assert 0 < given <= 59 * size
        else:
            assert enough
            assert given == len(CONTENT)
        body.close()


def test_a_stall(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 7: no byte for the read time-out is a time-out, for plain and for chunked bodies."""
    stall = Stall()
    # what comes does so at once: a busy upstream takes longer than this between two steps
    upstream.on("/plain", head(200, {"Content-Length": "10"}) + b"hello", stall)
    upstream.on("/chunked", head(200, {"Transfer-Encoding": "chunked"}) + chunked(b"hello", end=False), stall)
    transfer = open_transfer(upstream, read_timeout=0.05)
    for path in ("plain", "chunked"):
        body = body_of(transfer.get(f"{upstream.url}/{path}", {}))
        content, failure = read_until_error(body)
        assert content == b"hello"
        assert isinstance(failure, UpstreamTimeout)
        body.close()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_a_head_that_does_not_come(upstream: Scripted, open_transfer: Callable[..., Transfer], sent: bytes) -> None:
    """Faults row 7: the whole head has one time-out."""
    upstream.on("/blob", sent, Stall())
    with pytest.raises(UpstreamTimeout):
        open_transfer(upstream, answer_timeout=0.05).get(f"{upstream.url}/blob", {})


def test_a_head_that_drips(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 6: a byte now and then does not make the head's time longer."""
    now = [0.0]

    def clock() -> float:
        now[0] += 11.0
        return now[0]

    def drip(_request: Request) -> list[bytes]:
        return [head(102) for _ in range(5)]

    upstream.on("/blob", drip)
    with pytest.raises(UpstreamTimeout):
        open_transfer(upstream, answer_timeout=10, clock=clock).get(f"{upstream.url}/blob", {})


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", UpstreamUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", UpstreamUnavailable),
        (b"SSH-2.0-OpenSSH\r\n", UpstreamInvalid),
        (b"HTTP/2 200\r\n\r\n", UpstreamInvalid),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, UpstreamInvalid),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, UpstreamInvalid),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", UpstreamInvalid),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", UpstreamInvalid),
        (head(102) * 100, UpstreamInvalid),
    ],
)
def test_a_head_that_is_none(upstream: Scripted, transfer: Transfer, sent: bytes, error: type[Exception]) -> None:
    """Whatever comes instead of an answer is one of our errors."""
    upstream.on("/blob", sent, Close())
    with pytest.raises(error):
        transfer.get(f"{upstream.url}/blob", {})


def test_a_range(upstream: Scripted, transfer: Transfer) -> None:
    """The part from an offset on; the size is that of the whole."""
    upstream.on("/blob", reply(206, b"world", {"Content-Range": "bytes 5-9/10"}))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=5))
    assert (body.start, body.size) == (5, 10)
    assert read_all(body) == b"world"
    body.close()
    assert upstream.requests[0].header("Range") == "bytes=5-"


def test_a_range_that_is_ignored(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 22: a 200 begins at 0, and says so."""
    upstream.on("/blob", reply(200, b"helloworld"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=5))
    assert (body.start, body.size) == (0, 10)
    assert read_all(body) == b"helloworld"
    body.close()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": "bytes 6-9/10"},
        {"Content-Range": "bytes 5-20/10"},
        {"Content-Range": "bytes */10"},
        {"Content-Range": "junk"},
        {"Content-Type": "multipart/byteranges; boundary=x"},
    ],
)
def test_a_bad_content_range(upstream: Scripted, transfer: Transfer, headers: dict[str, str]) -> None:
    """Faults row 22: a part that is not the one asked for is not believed; the whole is asked for instead."""
    upstream.once("/blob", reply(206, b"xxxxx", headers))
    upstream.once("/blob", reply(200, b"helloworld"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=5))
    assert body.start == 0
    assert read_all(body) == b"helloworld"
    body.close()
    assert [request.header("Range") for request in upstream.requests] == ["bytes=5-", None]


def test_a_part_that_was_never_asked_for(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 22: a 206 to a plain GET is the beginning, if it is one; without a Content-Range it is the whole."""
    upstream.once("/blob", reply(206, b"x", {"Content-Range": "bytes 0-0/10"}))
    body = transfer.get(f"{upstream.url}/blob", {}).body
    assert body
    assert (body.start, body.size) == (0, 10)
    content, failure = read_until_error(body)
    assert (content, "shorter" in str(failure)) == (b"x", True)
    body.close()
    upstream.once("/blob", reply(206, CONTENT))
    body = transfer.get(f"{upstream.url}/blob", {}).body
    assert body
    assert (body.size, read_all(body)) == (len(CONTENT), CONTENT)
    body.close()
    upstream.on("/blob", reply(206, b"x", {"Content-Range": "bytes 1-1/10"}))
    with pytest.raises(UpstreamInvalid):
        transfer.get(f"{upstream.url}/blob", {})


def test_lengths_that_contradict_each_other(upstream: Scripted, transfer: Transfer) -> None:
    """Faults rows 3 and 22: Content-Range and Content-Length must agree."""
    upstream.on("/blob", reply(206, b"worl", {"Content-Range": "bytes 5-9/10"}))
    with pytest.raises(UpstreamInvalid):
        transfer.get(f"{upstream.url}/blob", {}, start=5)


def test_a_part_shorter_than_the_rest(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 22: a server may send less than was asked; that is no end of the blob."""
    upstream.on("/blob", reply(206, b"wor", {"Content-Range": "bytes 5-7/10"}))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=5))
    content, _ = read_until_error(body)
    assert content == b"wor"
    body.close()


@pytest.mark.parametrize(("start", "stop", "sent"), [(0, 3, b"hel"), (2, 5, b"llo"), (5, 10, b"world"), (8, 20, b"ld")])
def test_a_part_with_an_end(upstream: Scripted, transfer: Transfer, start: int, stop: int, sent: bytes) -> None:
    """It ends properly where it was asked to, and its connection is used again."""
    upstream.on("/blob", reply(206, sent, {"Content-Range": f"bytes {start}-{start + len(sent) - 1}/10"}))
    for _ in range(2):
        body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=start, stop=stop))
        assert (body.start, body.stop, body.size) == (start, min(stop, 10), 10)
        assert read_all(body) == sent
        body.close()
    assert upstream.requests[0].header("Range") == f"bytes={start}-{stop - 1}"
    assert upstream.connections == 1


@pytest.mark.parametrize("total", ["10", "*"])
def test_a_part_that_ends_early(upstream: Scripted, transfer: Transfer, total: str) -> None:
    """Faults rows 1 and 22: a server may send less than was asked for, but not less than it says."""
    upstream.once("/blob", reply(206, b"hell", {"Content-Range": f"bytes 0-3/{total}"}))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, stop=6))
    assert body.stop == 4
    assert read_all(body) == b"hell"
    body.close()
    headers = {"Content-Range": f"bytes 0-5/{total}", "Transfer-Encoding": "chunked"}
    upstream.once("/blob", head(206, headers), chunked(b"hell"), Close())
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, stop=6))
    assert read_until_error(body)[0] == b"hell"
    body.close()


@pytest.mark.parametrize(
    ("status", "headers"),
    [(200, {}), (206, {"Content-Range": "bytes 0-9/10"}), (206, {"Content-Range": "bytes 0-9/*"})],
)
def test_a_part_that_goes_on(upstream: Scripted, transfer: Transfer, status: int, headers: dict[str, str]) -> None:
    """Faults row 22: the body says beforehand that more comes than was asked for."""
    upstream.on("/blob", reply(status, b"helloworld", headers))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, stop=6))
    assert (body.start, body.stop) == (0, 10)
    assert read_all(body) == b"helloworld"
    body.close()


@pytest.mark.parametrize("refusal", [reply(416), reply(206, b"hello", {"Content-Range": "bytes 1-5/10"})])
def test_a_first_part_that_is_refused(upstream: Scripted, transfer: Transfer, refusal: list[Step]) -> None:
    """Faults row 22: the whole is asked for instead."""
    upstream.once("/blob", refusal)
    upstream.once("/blob", reply(200, b"helloworld"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, stop=5))
    assert read_all(body) == b"helloworld"
    body.close()
    assert [request.header("Range") for request in upstream.requests] == ["bytes=0-4", None]


def test_a_whole_that_breaks_off_is_no_refusal(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 22: the next part that is refused is asked for as a whole again."""
    for whole in ([Close()], [Close()], reply(403), reply(200, b"not asked for")):
        upstream.once("/blob", reply(403, b"", {"Connection": "close"}))
        upstream.once("/blob", whole)
    for _ in range(4):
        assert transfer.get(f"{upstream.url}/blob", {}, stop=5).status == 403
    asked = [request.header("Range") for request in upstream.requests]
    assert asked == ["bytes=0-4", None] * 3 + ["bytes=0-4"]


def test_a_first_part_that_is_encoded(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 5: a part of an encoded body cannot be decoded, so that the whole is asked for."""
    packed = gzip.compress(CONTENT)
    upstream.once(
        "/blob", reply(206, packed[:5], {"Content-Range": f"bytes 0-4/{len(packed)}", "Content-Encoding": "gzip"})
    )
    upstream.once("/blob", reply(200, packed, {"Content-Encoding": "gzip"}))
    body = transfer.get(f"{upstream.url}/blob", {}, stop=5).body
    assert body
    assert read_all(body) == packed
    body.close()


def test_nothing_is_left_of_a_blob(upstream: Scripted, transfer: Transfer) -> None:
    """A partial that is whole already: 416 with the same size is an empty rest."""
    upstream.on("/blob", reply(416, b"", {"Content-Range": "bytes */10"}))
    body: Body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=10))
    assert (body.start, body.size) == (10, 10)
    assert read_all(body) == b""


def test_a_partial_that_is_too_long(upstream: Scripted, transfer: Transfer) -> None:
    """416 with another size: what we have is not of this blob, so it comes from the beginning."""
    upstream.once("/blob", reply(416, b"", {"Content-Range": "bytes */10"}))
    upstream.once("/blob", reply(200, b"helloworld"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}, start=11))
    assert body.start == 0
    assert read_all(body) == b"helloworld"
    body.close()


def test_a_redirect_to_another_host(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 15: nothing of ours goes there; the signed URL arrives byte for byte, the range with it."""
    signed = "/cdn/a%2Fb%7E?X-Sig=%2b+~%2F&e=1//..;x"
    with Scripted() as cdn:
        upstream.on("/blob", reply(307, b"", {"Location": f"{cdn.url}{signed}", "Set-Cookie": "a=b"}))
        cdn.on("*", reply(206, b"world", {"Content-Range": "bytes 5-9/10"}))
        headers = {"Authorization": "Bearer canary", "Cookie": "canary", "X-Own": "canary", "User-Agent": "agent"}
        body = body_of(transfer.get(f"{upstream.url}/blob", headers, start=5))
        assert read_all(body) == b"world"
        body.close()
        (request,) = cdn.requests
        assert request.target == signed
        assert request.header("Range") == "bytes=5-"
        assert request.header("User-Agent") == "agent"
        assert request.header("Host") == f"127.0.0.1:{cdn.port}"
        assert "canary" not in str(request.headers)
        assert request.header("Cookie") is None


def test_a_redirect_within_the_host(upstream: Scripted, transfer: Transfer) -> None:
    """The same origin keeps what it was given."""
    upstream.on("/blob", reply(302, b"", {"Location": "elsewhere?x"}))
    upstream.on("/elsewhere", reply(200, b"hello"))
    body = body_of(transfer.get(f"{upstream.url}/blob", {"Authorization": "Bearer x"}))
    assert read_all(body) == b"hello"
    body.close()
    assert [request.header("Authorization") for request in upstream.requests] == ["Bearer x", "Bearer x"]


def test_a_redirect_loop(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 14: five hops, then an error."""
    upstream.on("*", reply(307, b"", {"Location": "/blob"}))
    with pytest.raises(UpstreamInvalid, match="redirects"):
        transfer.get(f"{upstream.url}/blob", {})
    assert len(upstream.requests) == 6


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data", "http://[fe80::1]/", "file:///etc/passwd", ""]
)
def test_a_redirect_to_where_nobody_may_go(upstream: Scripted, transfer: Transfer, location: str) -> None:
    """Faults row 72: metadata services and the like, even for an upstream on loopback."""
    upstream.on("/blob", reply(307, b"", {"Location": location}))
    with pytest.raises(UpstreamInvalid):
        transfer.get(f"{upstream.url}/blob", {})


def test_a_public_upstream_leads_nobody_inside(upstream: Scripted) -> None:
    """Faults row 72: a redirect to loopback is refused where the upstream is not there itself."""
    transfer = Transfer(Endpoint("test", "https://registry.example.com"))
    with pytest.raises(UpstreamInvalid):
        transfer.get(f"{upstream.url}/blob", {})
    transfer.close()
    assert upstream.connections == 0


def test_errors_are_read_to_a_bound(upstream: Scripted, transfer: Transfer) -> None:
    """An error's text is kept up to 64 KiB, however long it is."""
    upstream.on("/blob", reply(500, b"x" * 1_000_000))
    answer = transfer.get(f"{upstream.url}/blob", {})
    assert answer.status == 500
    assert answer.content == b"x" * 65536
    assert answer.body is None


def test_no_connection(open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 21: a refused dial and a name that does not exist are failed dials."""
    with Scripted() as gone:
        pass
    with pytest.raises(DialFailed):
        open_transfer(gone).get(f"{gone.url}/blob", {})
    with pytest.raises(DialFailed):
        open_transfer(gone).get("http://name.invalid/blob", {})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


def test_tls(certificate: Certificate, open_transfer: Callable[..., Transfer]) -> None:
    """Bodies over TLS, connections used again, never handed out as plain sockets."""
    with Scripted(tls=certificate.server()) as upstream:
        upstream.on("/blob", reply(200, CONTENT))
        upstream.on("/chunked", head(200, {"Transfer-Encoding": "chunked"}), chunked(CONTENT))
        transfer = open_transfer(upstream, verify=certificate.client())
        for path in ("blob", "chunked", "blob"):
            body = body_of(transfer.get(f"{upstream.url}/{path}", {}))
            body.readinto(memoryview(bytearray(1)))
            assert body.plain_socket() is None
            assert read_all(body) == CONTENT[1:]
            body.close()
        assert upstream.connections == 1


def test_tls_cut_short(certificate: Certificate, open_transfer: Callable[..., Transfer]) -> None:
    """Faults rows 1 and 7 over TLS: cut and stalled bodies are noticed there too."""
    with Scripted(tls=certificate.server()) as upstream:
        upstream.on("/cut", head(200, {"Content-Length": "10"}) + b"hello", Close())
        upstream.on("/stalled", head(200, {"Content-Length": "10"}) + b"hello", Stall())
        for path, error, patience in (("cut", UpstreamUnavailable, 60.0), ("stalled", UpstreamTimeout, 0.2)):
            transfer = open_transfer(upstream, verify=certificate.client(), read_timeout=patience)
            body = body_of(transfer.get(f"{upstream.url}/{path}", {}))
            content, failure = read_until_error(body)
            assert content == b"hello"
            assert type(failure) is error
            body.close()


def test_tls_that_is_not_trusted(certificate: Certificate, open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 21: a certificate of nobody we know is a failed dial, and nothing was sent."""
    with Scripted(tls=certificate.server()) as upstream:
        with pytest.raises(DialFailed, match="certificate"):
            open_transfer(upstream).get(f"{upstream.url}/blob", {"Authorization": "x"})
        assert not upstream.requests


@pytest.mark.parametrize("over_tls", [False, True])
def test_abort_ends_a_blocked_read(
    certificate: Certificate, open_transfer: Callable[..., Transfer], over_tls: bool
) -> None:
    """From another thread, at once, though the read time-out is far away; repeatable, also with close."""
    with Scripted(tls=certificate.server() if over_tls else None) as upstream:
        stall = Stall()
        upstream.on("/blob", head(200, {"Content-Length": "10"}), b"hello", stall)
        body = body_of(open_transfer(upstream, verify=certificate.client()).get(f"{upstream.url}/blob", {}))
        caught: list[BaseException] = []
        first = threading.Event()

        def read() -> None:
            room = memoryview(bytearray(5))
            got = 0
            try:
                while True:
                    got += body.readinto(room)
                    if got == 5:
                        first.set()
            except UpstreamUnavailable as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert first.wait(30)
        body.abort()
        thread.join(20)
        assert not thread.is_alive()
        body.abort()
        body.close()
        body.abort()
        assert "aborted" in str(caught[0])
        with pytest.raises(UpstreamUnavailable):
            body.readinto(memoryview(bytearray(5)))


def test_close_under_a_reader(upstream: Scripted, transfer: Transfer) -> None:
    """Closing while a thread reads wakes it; the descriptor is let go by the reader, not under it."""
    stall = Stall()
    upstream.on("/blob", head(200, {"Content-Length": "10"}), stall)
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    caught: list[BaseException] = []
    begun = threading.Event()

    def read() -> None:
        begun.set()
        try:
            body.readinto(memoryview(bytearray(5)))
        except UpstreamUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(30)
    body.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_the_plain_socket(upstream: Scripted, transfer: Transfer) -> None:
    """Bytes may be taken from the socket itself once the buffer is drained; the count is kept, the connection too."""
    upstream.on("/blob", reply(200, CONTENT))
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    content = bytearray()
    room = memoryview(bytearray(1000))
    while (plain := body.plain_socket()) is None:
        content += room[: body.readinto(room)]
    while plain is not None:
        descriptor, remaining = plain
        assert remaining == len(CONTENT) - len(content)
        piece = os.read(descriptor, min(remaining, 10_000))
        content += piece
        body.advance(len(piece))
        plain = body.plain_socket()
    assert bytes(content) == CONTENT
    assert body.readinto(room) == 0
    body.close()
    assert transfer.get(f"{upstream.url}/none", {}).status == 404
    assert upstream.connections == 1


def test_the_plain_socket_of_a_body_cut_short(upstream: Scripted, transfer: Transfer) -> None:
    """Faults row 1: an early end of the socket, told by `advance(0)`, is the same error."""
    upstream.on("/blob", head(200, {"Content-Length": "10"}), b"hello", Close())
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    room = memoryview(bytearray(1))
    while (plain := body.plain_socket()) is None:
        body.readinto(room)
    while piece := os.read(plain[0], 100):
        body.advance(len(piece))
    with pytest.raises(UpstreamUnavailable, match="closed"):
        body.advance(0)
    body.close()


def test_the_plain_socket_has_a_time_out(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> None:
    """Faults row 7: a system call on it blocks no longer than the read time-out, and `readinto` then says the same."""
    upstream.on("/blob", head(200, {"Content-Length": "10"}) + b"hello", Stall())
    body = body_of(open_transfer(upstream, read_timeout=0.05).get(f"{upstream.url}/blob", {}))
    room = memoryview(bytearray(1))
    while (plain := body.plain_socket()) is None:
        body.readinto(room)
    for _ in range(plain[1] - 5):
        body.advance(len(os.read(plain[0], 1)))
    with pytest.raises(BlockingIOError):
        os.read(plain[0], 100)
    with pytest.raises(UpstreamTimeout):
        body.readinto(room)
    body.close()


def test_a_lent_socket_is_not_closed_under_its_borrower(upstream: Scripted, transfer: Transfer) -> None:
    """Its descriptor's number stays taken until nobody holds the body: bytes of a stranger can not get in."""
    upstream.on("/blob", head(200, {"Content-Length": "10"}), b"hello", Stall())
    body = body_of(transfer.get(f"{upstream.url}/blob", {}))
    room = memoryview(bytearray(1))
    while (plain := body.plain_socket()) is None:
        body.readinto(room)
    which = os.readlink(f"/proc/self/fd/{plain[0]}")
    body.close()
    assert os.readlink(f"/proc/self/fd/{plain[0]}") == which
    while os.read(plain[0], 100):
        pass  # shut down: what has come, then the end
    del body
    gc.collect()
    assert which not in open_descriptors()


def test_redirects_and_bodies_leave_no_descriptor(upstream: Scripted, open_transfer: Callable[..., Transfer]) -> None:
    """After errors of every kind and `close`, as many descriptors are open as before."""
    before = open_descriptors()
    transfer = open_transfer(upstream)
    upstream.on("/gzip", head(200, {"Content-Length": "10", "Content-Encoding": "gzip"}), b"\x1f\x8b", Close())
    upstream.on("/loop", reply(307, b"", {"Location": "/loop"}))
    upstream.on("/cut", head(200, {"Content-Length": "10"}), b"x", Close())
    upstream.on("/odd", head(200, {"Content-Length": "x"}), Close())
    upstream.on("/range", reply(206, b"x", {"Content-Range": "bytes 9-9/10"}), Close())
    for path in ("gzip", "loop", "cut", "odd", "range", "none"):
        try:
            answer = transfer.get(f"{upstream.url}/{path}", {}, start=5)
        except UpstreamInvalid:
            continue
        if answer.body:
            read_until_error(answer.body)
            answer.body.close()
    transfer.close()
    upstream.stop()
    assert not {target for target in open_descriptors() - before if target.startswith("socket:")}
