"""The table of ready answers, and connections that are answered from it."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, cast

import pytest
from aiohttp import web

from mirror.aio.caches import CacheStats
from mirror.repository.answers import Outcome
from mirror.server.fast.given_answers import AnswerFacts, Given
from mirror.server.fast.ready_answers import LARGEST, ListenerAnswers, Offer, ReadyAnswers
from mirror.server.registry.connection_limit import ConnectionLimiter
from mirror.server.registry.handler import RegistryServer
from mirror.server.registry.pull import RequestRecord
from tests.support.live_mirror import _logging_to, until
from tests.support.ready_requests import request

_ASKED = request("/v2/library/app/manifests/v1")
_DATE = b"Date: Thu, 01 Jan 1970 00:00:00 GMT"
_BODY = b"x" * 100


def _written(body: bytes = _BODY) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\nServer: mirror\r\n\r\n" % (len(body), _DATE)
    return head + body


_FACTS = AnswerFacts("manifest", "GET", RequestRecord(Outcome.HIT), lambda: None, None, None)


class _Table:
    """A table with one listener, and what was noted."""

    def __init__(self, **limits: Any) -> None:
        self.noted: list[Given] = []
        self.ready = ReadyAnswers(self.noted.extend, **limits)
        here = self.ready.listener("here")
        assert here is not None
        self.here: ListenerAnswers = here
        self.stands = True

    def offer(self, stands: Callable[[], bool] | None = None) -> Offer:
        return Offer(stands or (lambda: self.stands), _FACTS, self.ready.generation)

    def put(self, asked: bytes = _ASKED, written: bytes = _written()) -> None:
        self.ready.put(self.here, asked, self.offer(), written)

    async def give(self, asked: bytes = _ASKED, listener: ListenerAnswers | None = None) -> bytes | None:
        """The answer; None if the request goes the ordinary way."""
        connection = _Asking(asked, self.noted)
        self.ready.ask(listener or self.here, connection)
        assert connection.answer is None
        await asyncio.sleep(0)
        assert connection.went_on is (connection.answer is None)
        return connection.answer


class _Asking:
    """A connection that holds a request."""

    def __init__(self, held: bytes, noted: list[Given]) -> None:
        self.held = held
        self.client = "192.0.2.1"
        self.answer: bytes | None = None
        self.went_on = False
        self._noted = noted

    def send(self, answer: bytes) -> None:
        # it is noted before anybody can have it
        assert self._noted
        self.answer, self.held = answer, b""

    def go_on(self) -> None:
        self.went_on = True


async def test_an_answer_is_given_with_the_date_of_now() -> None:
    """Everything else is as it was written."""
    table = _Table()
    assert await table.give() is None
    table.put()
    answer = await table.give()
    assert answer is not None
    date = answer[answer.index(b"Date: ") :][: len(_DATE)]
    assert answer == _written().replace(_DATE, date)
    assert abs(parsedate_to_datetime(date[6:].decode()).timestamp() - time.time()) < 3600
    assert await table.give(_ASKED + b" ") is None
    [(facts, client, seconds)] = table.noted
    assert (facts, client) == (_FACTS, "192.0.2.1")
    assert seconds >= 0


async def test_each_second_has_its_own_date() -> None:
    """The bytes are put together once a second."""
    now = [time.time()]
    table = _Table(clock=lambda: now[0])
    table.put()
    first = await table.give()
    now[0] -= 1
    again = await table.give()
    assert first is not None
    assert again is not None
    assert len(first) == len(again)


async def test_an_answer_that_does_not_stand_is_gone() -> None:
    """It does not come back when the facts do: it was asked, and ended."""
    table = _Table()
    table.put()
    table.stands = False
    assert await table.give() is None
    table.stands = True
    assert await table.give() is None
    assert (len(table.ready), table.here.weight) == (0, 0)


async def test_all_end_together() -> None:
    """And an answer that was made before the end is not put after it."""
    table = _Table()
    before = table.offer()
    table.put()
    table.ready.clear()
    assert await table.give() is None
    table.ready.put(table.here, _ASKED, before, _written())
    assert await table.give() is None
    table.put()
    assert await table.give() is not None


async def test_a_request_that_comes_once_is_not_offered() -> None:
    """Only what has come before is; and what is remembered of that is bounded."""
    here = _Table().here
    assert [here.is_repeated(_ASKED) for _ in range(3)] == [False, True, True]
    assert not here.is_repeated(_ASKED + b"x")
    for number in range(10_000):
        here.is_repeated(b"%d" % number)
    assert len(here.seen) <= 4096


async def test_an_error_keeps_nobody_waiting() -> None:
    """If one entry cannot be compared, whoever has asked before gets an answer, and all others go the ordinary way."""
    table, other = _Table(), request("/v2/library/other/manifests/v1")

    def fails() -> bool:
        raise OSError("a disk that fails")

    table.put()
    table.ready.put(table.here, other, table.offer(fails), _written())
    asking = [_Asking(asked, table.noted) for asked in (_ASKED, other, _ASKED)]
    errors: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    try:
        for connection in asking:
            table.ready.ask(table.here, connection)
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert [(each.answer is not None, each.went_on) for each in asking] == [(True, False), (False, True), (False, True)]
    assert len(table.noted) == 1
    assert [type(error) for error in errors] == [OSError]


async def test_listeners_share_nothing() -> None:
    """What was answered at one address is not answered at another; and there are not more tables than a few."""
    table = _Table()
    table.put()
    other = table.ready.listener("there")
    assert other is not None
    assert await table.give(listener=other) is None
    assert table.ready.listener("here") is table.here
    given = [table.ready.listener(number) for number in range(100)]
    assert given[0] is not None
    assert given[-1] is None


async def test_the_table_is_bounded() -> None:
    """By entries and by bytes; the oldest goes. What has ended goes with the next one that is put."""
    table = _Table(most=3)
    for number in range(5):
        table.put(b"%d" % number)
    assert [await table.give(b"%d" % number) is not None for number in range(5)] == [False, False, True, True, True]
    table.stands = False
    table.put(b"x")
    assert len(table.ready) == 1

    table = _Table(most_bytes=500_000)
    for number in range(50):
        table.put(b"%d" % number, _written(b"x" * 10_000))
    assert 400_000 < table.here.weight <= 500_000
    assert table.ready.stats() == CacheStats(len(table.ready), table.here.weight, 500_000)
    assert await table.give(b"0") is None
    assert await table.give(b"49") is not None
    # one that is large beside all others is not kept at all
    table.ready.put(table.here, b"large", replace(table.offer(), kept=60_000), _written())
    assert await table.give(b"large") is None
    table = _Table()
    table.put(written=_written(b"x" * LARGEST))
    assert not len(table.ready)


async def test_all_tables_together_are_bounded() -> None:
    """Whoever comes at many addresses of the machine gets no memory for each of them: the largest table makes room."""
    table = _Table(most_bytes=500_000)
    for number in range(50):
        table.put(b"%d" % number, _written(b"x" * 10_000))
    before = table.here.weight
    others = [table.ready.listener(number) for number in range(8)]
    for other in others:
        assert other is not None
        for number in range(5):
            table.ready.put(other, b"%d" % number, table.offer(), _written(b"x" * 10_000))
            assert table.ready.stats().bytes == sum(each.weight for each in table.ready._listeners.values()) <= 500_000
        assert await table.give(b"4", listener=other) is not None
    assert table.here.weight < before


async def test_the_first_table_leaves_room_for_the_others() -> None:
    """It may be full of answers that stand when the first client comes at another address."""
    table = _Table(most_bytes=500_000)
    for number in range(50):
        table.put(b"%d" % number, _written(b"x" * 10_000))
    other = table.ready.listener("there")
    assert other is not None
    for number in range(50):
        table.ready.put(other, b"%d" % number, table.offer(), _written(b"x" * 10_000))
    assert abs(len(other.entries) - len(table.here.entries)) <= 2


@pytest.mark.parametrize(
    "written",
    [
        _written().replace(_DATE, b"X: y"),
        _written().replace(_DATE, _DATE + b"\r\n" + _DATE),
        b"HTTP/1.1 200 OK\r\n\r\n\r\n" + _DATE,
        b"",
    ],
)
async def test_answers_without_exactly_one_date_are_not_kept(written: bytes) -> None:
    """There is no way to give them again."""
    table = _Table()
    table.put(written=written)
    assert not len(table.ready)


# ------------------------------------------------------------------------------------------------- a connection


class _Transport(asyncio.Transport):
    """Takes nothing, once it is told to."""

    def __init__(self, **extra: object) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.9", 2), **extra})
        self.protocol: Any = None
        self.takes = True
        self.written = b""
        self.aborted = self.closed = False

    def write(self, data: Any) -> None:
        self.written += data
        if not self.takes:
            self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True
        self.protocol.connection_lost(None)


async def _nothing(_request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError("this request was to be answered from the table")


class _Connected:
    """A connection to a server whose table has one answer."""

    def __init__(self, *, stall: float = 3600.0, **extra: object) -> None:
        self.table = _Table()
        key = (extra.get("sslcontext") is not None, ("192.0.2.9", 2))
        here = self.table.ready.listener(key)
        assert here is not None
        self.table.here = here
        self.table.put()
        limiter = ConnectionLimiter(stall=stall)
        self.server = RegistryServer(_nothing, limiter=limiter, ready=self.table.ready, access_log=None)
        self.transport = _Transport(**extra)
        self.protocol = self.transport.protocol = self.server()
        self.protocol.connection_made(self.transport)

    def end(self) -> None:
        self.protocol.connection_lost(None)


async def test_a_client_that_does_not_read_is_dropped_in_the_end() -> None:
    """Also if it sends nothing more, and if the time of an idle connection has passed meanwhile."""
    output = io.StringIO()
    with _logging_to(output):
        for is_idle in (False, True):
            connected = _Connected(stall=0.0)
            connected.transport.takes = False
            connected.protocol.data_received(_ASKED)
            await asyncio.sleep(0)
            assert connected.transport.written
            assert not connected.transport.aborted
            if is_idle:
                connected.protocol.force_close()
            await until(partial(getattr, connected.transport, "aborted"))


async def test_a_client_that_reads_late_stays() -> None:
    """While it does not, aiohttp has its requests; afterwards the table answers again."""
    connected = _Connected()
    connected.transport.takes = False
    connected.protocol.data_received(_ASKED)
    await asyncio.sleep(0)
    first = connected.transport.written
    assert connected.protocol._slow is not None
    connected.transport.takes = True
    connected.protocol.resume_writing()
    assert connected.protocol._slow is None
    connected.protocol.data_received(_ASKED)
    await asyncio.sleep(0)
    assert connected.transport.written == first * 2
    connected.end()


async def test_connections_with_a_certificate_have_no_table() -> None:
    """Their caller is somebody."""
    assert _Connected(sslcontext=object()).protocol._ready_here is not None
    assert _Connected(sslcontext=object(), peercert={"subject": ()}).protocol._ready_here is None


async def test_what_follows_in_the_same_turn_is_answered_behind_it() -> None:
    """Then aiohttp has both, and in their order."""
    connected = _Connected()
    connected.protocol.data_received(_ASKED)
    connected.protocol.data_received(b"GET")
    assert connected.protocol.held == _ASKED + b"GET"
    await asyncio.sleep(0)
    assert not connected.protocol.held
    assert not connected.transport.written
    assert len(connected.protocol._messages) == 1
    connected.end()


class _Guarded(dict[bytes, Any]):
    """Notes the lengths of what it is asked for."""

    def __init__(self, entries: dict[bytes, Any]) -> None:
        super().__init__(entries)
        self.lengths: list[int] = []

    def __contains__(self, key: object) -> bool:
        self.lengths.append(len(cast(bytes, key)))
        return super().__contains__(key)


async def test_bodies_are_not_looked_up() -> None:
    """To hash each piece of a large push would cost as much as to receive it."""
    connected = _Connected()
    entries = connected.table.here.entries = _Guarded(connected.table.here.entries)
    head = b"PUT /v2/corp/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    for piece in (head, b"x" * 100_000, b"x" * 300):
        connected.protocol.data_received(piece)
    connected.end()
    connected = _Connected()
    connected.table.here.entries = entries
    connected.protocol.data_received(b"x" * 100_000)
    connected.end()
    assert entries.lengths == [len(head)]


async def test_an_entry_is_compared_once_for_all_that_have_asked() -> None:
    """After the last of them has asked."""
    table, compared = _Table(), list[int]()

    def stands() -> bool:
        compared.append(1)
        return True

    table.ready.put(table.here, _ASKED, table.offer(stands), _written())
    asking = [_Asking(_ASKED, table.noted) for _ in range(5)]
    for each in asking:
        table.ready.ask(table.here, each)
    assert not compared
    await asyncio.sleep(0)
    assert len(compared) == 1
    assert len({each.answer for each in asking}) == 1
    assert len(table.noted) == 5


async def test_answers_are_sent_even_if_they_cannot_be_noted() -> None:
    """Nobody waits for an answer because of that."""

    def fail(_given: object) -> None:
        raise OSError("on purpose")

    table, caught = _Table(), list[object]()
    ready = ReadyAnswers(fail)
    here = ready.listener("here")
    assert here is not None
    ready.put(here, _ASKED, table.offer(), _written())
    table.noted.append((_FACTS, "", 0.0))
    asking = _Asking(_ASKED, table.noted)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: caught.append(context["exception"]))
    ready.ask(here, asking)
    await asyncio.sleep(0)
    assert asking.answer is not None
    assert len(caught) == 1
