"""Answers that are ready to be written again, by the exact bytes of the request: small ones, of content that is here.

    a request that has come before ── 200, by nothing but its bytes, the listener and content here ─> offered
                                                                                                      │ written
        ┌──────────────────── it still stands ────────────────────────────────┐                       v
        v                                                                     │                     ready
    given again: counted, logged, noted, and written to the client ───────────┴── the same bytes ─────┤
                                                                                                      │
    ended, and the request goes the ordinary way: something that the answer was made of has changed,  │
    or it was made two seconds ago, or `clear`, or it is the oldest and the table is full  <──────────┘

What an answer depends on, and how an entry follows it:

    its own bytes        method, target (`ns`), Host, Accept, Connection: they are the key. exact_requests.py has the
                         headers that a request may have; with any other (credentials, cookies, conditions, ranges,
                         X-Forwarded-For, traces, a body) it is never offered
    the connection       a table for each listener. Connections with a client certificate have none. While the server
                         is shutting down, while an answer is under way, while the client does not read, and if the
                         bytes are not exactly one request, nothing is given from the table
    rights and rules     only what a caller without credentials gets, who may not push, in repositories whose upstream
                         is not asked about callers. Rules, routes and lists of content never change while a process
                         lives (a reload starts new ones); upstreams that are replaced end all entries (`clear`)
    tags, manifests,     `Standing` (repository/standing): at each hit the facts in memory are compared with those
    links, files         that the repository would answer from now. Of hosted content the count of changes that all
                         workers share is read each time, and of a blob the file is looked at, so a change by any worker
                         or command is seen by the next request. What is deleted, and waits for collection, is
                         therefore answered by no entry; and no entry outlives two seconds, less than any grace
    the time             `Date` is that of the hit. No entry outlives the trust in its tag (`tag_ttl`)
    virtual registries,  never offered: only asking again tells whether the answer still stands
    buckets, uncertain
    answers

The table of a listener has at most `MOST` entries, and all tables together `MOST_BYTES` bytes, with all that entries
keep alive: clients choose at which address they come. The oldest entry of a full table goes, and for bytes that of the
largest table, so none takes the room of all others. Entries that have ended are removed when they are asked for, or
with the next one that is put.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp.helpers import rfc822_formatted_time

from mirror.aio.caches import CacheStats, show
from mirror.server.fast.given_answers import AnswerFacts, Given

#: Entries of one listener, at most.
MOST: Final = 4096
#: Bytes of the entries of all listeners, at most.
MOST_BYTES: Final = 32 << 20
#: Bytes of the largest answer: what is written at once, whatever the client reads (registry/writing.py).
LARGEST: Final = 16 << 10
#: Requests of one listener that are remembered before they are offered, at most.
_MOST_SEEN: Final = 4096
#: Local addresses that have a table. A listener on all addresses has one for each that clients use.
_LISTENERS: Final = 32
#: Bytes of an entry without its request, its answer and the content that it keeps alive.
_ENTRY: Final = 4 << 10
#: Bytes of the largest entry, as a share of all: one must not push out many.
_SHARE: Final = 16

_DATE: Final = b"\r\nDate: "
#: Bytes of a date (RFC 9110, 5.6.7).
_DATE_LENGTH: Final = 29


class Asking(Protocol):
    """A connection that holds the bytes of a request, and of nothing else. `client` is its address for logs."""

    client: str
    held: bytes

    def send(self, answer: bytes) -> None:
        """Send this answer, if the client is still there; nothing is held any more. Raises nothing."""

    def go_on(self) -> None:
        """Let what is held go the ordinary way. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An answer that may be given again: as long as `stands` says so. `facts` are noted at each time. `generation` is
    that of the table when the answer was made. `kept` are the bytes of the content that the offer keeps alive: also the
    answer to HEAD of a manifest keeps all of it.
    """

    stands: Callable[[], bool]
    facts: AnswerFacts
    generation: int
    kept: int = 0


class _Entry:
    """An answer, cut at its date. `whole` has the date of `second`."""

    __slots__ = ("after", "before", "facts", "second", "stands", "weight", "whole")

    def __init__(self, offer: Offer, before: bytes, after: bytes, weight: int) -> None:
        self.stands = offer.stands
        self.facts = offer.facts
        self.before = before
        self.after = after
        self.weight = weight
        self.second = -1
        self.whole = b""


class ListenerAnswers:
    """The entries of one listener; the oldest is the first. `weight` is their size in bytes. `seen` has the hashes of
    requests that were answered in the ordinary way lately.
    """

    __slots__ = ("entries", "seen", "weight")

    def __init__(self) -> None:
        self.entries: dict[bytes, _Entry] = {}
        self.weight = 0
        self.seen: set[int] = set()

    def __repr__(self) -> str:
        return f"<ListenerAnswers {len(self.entries)} of {self.weight} bytes>"

    def is_repeated(self, request: bytes) -> bool:
        """True if the request has come before. To offer an answer costs more than to note that it may be asked for
        again, and many requests come once.
        """
        number = hash(request)
        if number in self.seen:
            return True
        if len(self.seen) >= _MOST_SEEN:
            self.seen.clear()
        self.seen.add(number)
        return False

    def drop(self, request: bytes) -> None:
        """Remove an entry. Repeatable."""
        entry = self.entries.pop(request, None)
        if entry is not None:
            self.weight -= entry.weight


class ReadyAnswers:
    """The tables of one process. See the drawing of this module."""

    def __init__(
        self,
        note: Callable[[Sequence[Given]], None],
        *,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`note` is called with answers just before they are sent. `clock` is in epoch seconds, for `Date` alone."""
        self._note = note
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._listeners: dict[Hashable, ListenerAnswers] = {}
        self._asking: list[tuple[ListenerAnswers, Asking, float]] = []
        #: Counts how often all entries were ended. An answer that was made before is not put any more.
        self.generation = 0
        show("ready answers", self)

    def __repr__(self) -> str:
        entries = sum(len(each.entries) for each in self._listeners.values())
        return f"<ReadyAnswers {entries} of {len(self._listeners)} listeners>"

    def __len__(self) -> int:
        return sum(len(each.entries) for each in self._listeners.values())

    def stats(self) -> CacheStats:
        """How full the tables are."""
        return CacheStats(len(self), self._weight(), self._most_bytes)

    def _weight(self) -> int:
        return sum(each.weight for each in self._listeners.values())

    def listener(self, key: Hashable) -> ListenerAnswers | None:
        """The table for connections of this listener; None if there are too many."""
        found = self._listeners.get(key)
        if found is None and len(self._listeners) < _LISTENERS:
            found = self._listeners[key] = ListenerAnswers()
        return found

    def clear(self) -> None:
        """End all entries: what answers are made of has changed as a whole."""
        self.generation += 1
        for each in self._listeners.values():
            each.entries.clear()
            each.weight = 0

    def put(self, listener: ListenerAnswers, request: bytes, offer: Offer, written: bytes) -> None:
        """Keep an answer, as it was `written` to a client for exactly these bytes."""
        head, date = written.find(b"\r\n\r\n"), written.find(_DATE)
        if offer.generation != self.generation or len(written) > LARGEST or not 0 < date < head:
            return
        if written.find(_DATE, date + 1, head) >= 0:
            return
        at = date + len(_DATE)
        listener.drop(request)
        # the answer is there in two parts, and as a whole
        weight = _ENTRY + len(request) + 2 * len(written) + offer.kept
        if weight > self._most_bytes // _SHARE:
            return
        entry = _Entry(offer, written[:at], written[at + _DATE_LENGTH :], weight)
        entries = listener.entries
        while entries and not entries[oldest := next(iter(entries))].stands():
            listener.drop(oldest)
        while len(entries) >= self._most:
            listener.drop(next(iter(entries)))
        while self._weight() + entry.weight > self._most_bytes:
            largest = max(self._listeners.values(), key=lambda each: each.weight)
            largest.drop(next(iter(largest.entries)))
        entries[request] = entry
        listener.weight += entry.weight

    def ask(self, listener: ListenerAnswers, connection: Asking) -> None:
        """Answer the request that this connection holds, once all have been read that have arrived at the same time."""
        if not self._asking:
            asyncio.get_running_loop().call_soon(self._turn)
        self._asking.append((listener, connection, time.perf_counter()))

    def _turn(self) -> None:
        """Answers what was asked in this turn of the event loop: all is noted first, and then sent, so whoever has an
        answer finds it in the metrics and the log. An entry is compared with its facts once, after all the requests
        for it have arrived.
        """
        asking, self._asking = self._asking, []
        given: list[Given] = []
        answers: list[tuple[Asking, bytes]] = []
        # whatever fails, nobody is kept waiting
        try:
            try:
                self._look_up(asking, given, answers)
            finally:
                if given:
                    self._note(given)
        finally:
            for connection, answer in answers:
                connection.send(answer)
            for _, connection, _ in asking:
                if connection.held:
                    connection.go_on()

    def _look_up(
        self,
        asking: Sequence[tuple[ListenerAnswers, Asking, float]],
        given: list[Given],
        answers: list[tuple[Asking, bytes]],
    ) -> None:
        """Adds what is to be noted, and to be sent; lets all others go on."""
        compared: dict[_Entry, bool] = {}
        second, clock = int(self._clock()), time.perf_counter
        for listener, connection, began in asking:
            request = connection.held
            entry = listener.entries.get(request)
            stands = False
            if entry is not None:
                known = compared.get(entry)
                stands = compared[entry] = entry.stands() if known is None else known
            if entry is None or not stands:
                listener.drop(request)
                connection.go_on()
                continue
            if entry.second != second:
                entry.whole = entry.before + rfc822_formatted_time().encode() + entry.after
                entry.second = second
            given.append((entry.facts, connection.client, clock() - began))
            answers.append((connection, entry.whole))
