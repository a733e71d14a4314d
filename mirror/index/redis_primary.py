"""Connections to the server that has the mirror's keys now: behind Sentinels and in a Cluster that changes.

    unknown ── find(): all nodes are asked at once ──> known ── connections follow it
       ^                                                │
       └── forget(): it is silent, refuses to be one ───┤
                     of the primaries, or is loading    │
                          known ── moved(): MOVED ──────┘

All keys of one client of Redis have one hash tag, and so one slot: in a Cluster, too, there is exactly one server to
talk to, and scripts may have any number of keys. Nothing here repeats a call. A caller that gives up does not end the
search, which lasts a second, or the budget if that is longer: the next caller has its result.

A Sentinel or a node may be cut off from the others and name a server that is not the primary any more. So what the
majority says is believed, and a server is used only if it says itself that it is a primary (`HELLO`, which every user
may send). A primary that was cut off itself, or asleep, says so until it hears of the fail-over: what it acknowledges
until then is lost. Nothing relies on that (docs/decisions/0055).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from mirror.aio.closing import close_all
from mirror.aio.singleflight import SingleFlight, cancel_and_wait
from mirror.index.redis_address import Place, RedisAddress, RedisKind, RedisTls, no_connection, place_text

#: Seconds that a search may last in any case, and seconds that it waits for the other nodes once one has answered.
_PATIENCE: Final = 1.0
_OTHERS: Final = 0.2
#: Nodes of a Cluster that are asked.
_MOST_NODES: Final = 16
#: Replies of a server that is no primary (any more), or not yet.
_NOT_SERVING: Final = (ReadOnlyError, ClusterDownError, BusyLoadingError)


#: What redis-py raises for bytes that are no reply of Redis, besides its own `InvalidResponse`.
_GARBLED: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@contextmanager
def understood() -> Iterator[None]:
    """Whatever redis-py makes of bytes that no Redis sends is an `InvalidResponse`, which is a `RedisError`."""
    try:
        yield
    except _GARBLED as error:
        raise InvalidResponse("the server does not answer as a Redis") from error


class PrimaryUnknown(RedisConnectionError):
    """No node says where the primary is. The message is ours and has no secret."""


class NotPrimary(RedisConnectionError):
    """The server that was named as the primary says that it is none. The message is ours."""


class Primary:
    """Finds the server that has the keys of one slot. Belongs to one event loop."""

    def __init__(self, address: RedisAddress, tag: str, patience: float) -> None:
        """`tag` is the hash tag of all keys; it matters in a Cluster. A search lasts at most `patience` seconds."""
        self._address = address
        self._patience = patience
        self._slot = key_slot(f"{{{tag}}}".encode())
        self._place: Place | None = None
        #: Nodes of a Cluster that answered lately, besides those of the address.
        self._known: tuple[Place, ...] = ()
        self._search = SingleFlight()

    def __repr__(self) -> str:
        return f"<Primary {place_text(self._place) if self._place else 'unknown'}>"

    @property
    def place(self) -> Place | None:
        """Where it was last; None if that is not known, or not believed any more."""
        return self._place

    async def find(self) -> Place:
        """Where the primary is. Raises `PrimaryUnknown`."""
        if self._place is None:
            self._place = await self._search.run("primary", self._look)
        return self._place

    def forget(self, place: Place) -> None:
        """The server at `place` is of no use: the next call of `find` looks again."""
        if self._place == place:
            self._place = None

    def moved(self, old: Place, new: Place) -> None:
        """The server at `old` says that the keys are at `new` now."""
        if self._place in (old, None):
            self._place = new

    async def aclose(self) -> None:
        """End a search that is under way. Repeatable."""
        await self._search.aclose()

    async def _look(self) -> Place:
        nodes = tuple(dict.fromkeys((*self._address.nodes, *self._known)))[:_MOST_NODES]
        ask = self._ask_sentinel if self._address.kind is RedisKind.SENTINEL else self._ask_node
        answers: list[Place] = []
        failures: list[PrimaryUnknown] = []
        pending = {asyncio.create_task(_asked(ask, node)) for node in nodes}
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        try:
            while pending and loop.time() < until:
                done, pending = await asyncio.wait(
                    pending, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
                for result in (task.result() for task in done):
                    if isinstance(result, PrimaryUnknown):
                        failures.append(result)
                    else:
                        until = min(until, loop.time() + _OTHERS)
                        answers.append(result)
                if (agreed := named_by_most(answers, len(nodes))) is not None:
                    return agreed
        finally:
            await cancel_and_wait(*pending)
        if answers:
            [(place, _)] = Counter(answers).most_common(1)
            return place
        # a server that is down says less than one that refuses
        raise min(failures, key=_is_down) if failures else PrimaryUnknown(f"no {self._what} answers in time")

    @property
    def _what(self) -> str:
        return "Sentinel" if self._address.kind is RedisKind.SENTINEL else "node of the Cluster"

    async def _ask_sentinel(self, node: Place) -> Place:
        service = self._address.service
        reply = await ask_node(self._address, node, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        if not isinstance(reply, list) or len(reply) != 2 or not _text(reply[1]).isdecimal():
            raise PrimaryUnknown(f"the Sentinels do not know the service {service}")
        return _text(reply[0]), int(reply[1])

    async def _ask_node(self, node: Place) -> Place:
        slots = read_slots(await ask_node(self._address, node, "CLUSTER", "SLOTS"), node)
        self._known = tuple(dict.fromkeys(place for _, _, places in slots for place in places))
        for first, last, places in slots:
            if first <= self._slot <= last and places:
                return places[0]
        raise PrimaryUnknown("no node of the Cluster has the slot of the mirror's keys")


def named_by_most(answers: Sequence[Place], asked: int) -> Place | None:
    """What more than half of all that were asked have named; None if there is no such place (yet)."""
    for place, votes in Counter(answers).items():
        if votes * 2 > asked:
            return place
    return None


def read_slots(reply: object, node: Place) -> list[tuple[int, int, list[Place]]]:
    """What `node` answered to `CLUSTER SLOTS`: the first and last slot of each range, and the servers that have it, the
    primary first. Raises `PrimaryUnknown` if it is no such answer.
    """
    try:
        return [
            # no host: the same as the one that was asked
            (int(first), int(last), [(_text(each[0] or node[0]), int(each[1])) for each in servers])
            for first, last, *servers in reply  # type: ignore[attr-defined]
        ]
    except (TypeError, ValueError, IndexError):
        raise PrimaryUnknown(f"{place_text(node)} gave no list of slots") from None


async def ask_node(address: RedisAddress, node: Place, *command: str) -> Any:
    """The reply of one node or Sentinel, on a connection of its own. Raises `PrimaryUnknown`, without secrets."""
    is_sentinel = address.kind is RedisKind.SENTINEL and command[0] == "SENTINEL"
    kind = Connection if address.tls is None else _TlsConnection
    connection = kind(host=node[0], port=node[1], **address.options(sentinel=is_sentinel))
    try:
        with understood():
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has no types there
            await connection.send_command(*command)
            return await connection.read_response()
    except (RedisError, OSError) as error:
        raise PrimaryUnknown(f"{place_text(node)}: {_why(error, command[0])}") from error
    finally:
        await connection.disconnect(nowait=True)


async def _asked(ask: Callable[[Place], Any], node: Place) -> Place | PrimaryUnknown:
    try:
        place: Place = await ask(node)
    except PrimaryUnknown as error:
        return error
    return place


def _is_down(failure: PrimaryUnknown) -> bool:
    return no_connection(failure) == os.strerror(errno.ECONNREFUSED)


def _why(error: Exception, command: str) -> str:
    text = str(error)
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        return "user name or password is missing or wrong"
    if isinstance(error, NoPermissionError):
        return f"the user may not send {command}"
    if "unknown command" in text and command == "SENTINEL":
        return "it is no Sentinel"
    if "cluster support disabled" in text or "unknown command" in text:
        return "it is no node of a Cluster" if command == "CLUSTER" else "it is no Redis server"
    return no_connection(error) or f"it failed: {type(error).__name__}"


class _TlsConnection(Connection):
    """A connection with TLS, whose files may be replaced. See `redis.asyncio.Connection`."""

    def __init__(self, *, tls: RedisTls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._tls.context()}


class _FollowingConnection(Connection):
    """A connection to wherever the primary is when it is taken from the pool. See `redis.asyncio.Connection`."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    @property
    def _place(self) -> Place:
        return self.host, self.port

    async def connect(self) -> None:
        remembered = self._primary.place
        place = await self._primary.find()
        if self.is_connected:
            if place == self._place:
                return
            await self.disconnect(nowait=True)
        try:
            await self._connect_to(place)
        except RedisError:
            if remembered is None:
                raise
            # it was the primary when it was used last: after a fail-over another one is
            await self._connect_to(await self._primary.find())

    async def _connect_to(self, place: Place) -> None:
        self.host, self.port = place
        try:
            await super().connect()  # type: ignore[no-untyped-call]  # redis-py has no types there
        except BaseException:
            self._primary.forget(place)
            raise

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health=check_health)
        await self.send_command("HELLO", check_health=False)
        if said_of(await self.read_response()).get("role") != "master":
            raise NotPrimary("the server that was named as the primary of Redis says that it is none")

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        place = self._place
        try:
            return await super().read_response(*arguments, **options)
        except MovedError as error:
            host, port = error.node_addr
            if host and host != "?":
                self._primary.moved(place, (host, int(port)))
            else:
                self._primary.forget(place)
            raise
        except BaseException as error:
            # other refusals are answers of a primary; NOREPLICAS may be one that is cut off
            if not isinstance(error, ResponseError) or isinstance(error, _NOT_SERVING) or "NOREPLICAS" in str(error):
                self._primary.forget(place)
            if isinstance(error, _NOT_SERVING):
                await self.disconnect(nowait=True)
            raise


class _FollowingTlsConnection(_FollowingConnection, _TlsConnection):
    """Likewise with TLS."""


def said_of(reply: object) -> dict[str, str]:
    """The text values of the answer to `HELLO`: `role`, `mode`, `version` and others."""
    words = reply if isinstance(reply, list) else []
    return {_text(name): _text(value) for name, value in zip(words[::2], words[1::2], strict=False)}


class RedisPool(ConnectionPool):
    """Connections to the server of one hash tag, wherever it is. `primary` is None for a single server.

    A caller waits for a free connection for as long as its own time-out lets it. In redis-py's own pool that waits,
    a caller that gives up at the moment when a connection becomes free takes the news with it, and the next one waits
    in vain (`asyncio.Condition`).
    """

    def __init__(self, address: RedisAddress, tag: str, *, connections: int, budget: float) -> None:
        """Up to `connections` connections; a search for the primary lasts at least as long as a call may (`budget`, in
        seconds).
        """
        options: Mapping[str, Any] = address.options()
        self.primary: Primary | None = None
        kind: Any
        if address.kind is not RedisKind.SINGLE:
            self.primary = Primary(address, tag, max(_PATIENCE, budget))
            kind = _FollowingConnection if address.tls is None else _FollowingTlsConnection
            options = {**options, "primary": self.primary}
        elif address.socket:
            kind, options = UnixDomainSocketConnection, {**options, "path": address.socket}
        else:
            [(host, port)] = address.nodes
            kind = Connection if address.tls is None else _TlsConnection
            options = {**options, "host": host, "port": port}
        super().__init__(max_connections=connections, connection_class=kind, **options)
        self._free = asyncio.Semaphore(connections)

    async def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        """A connection that is open, once one is free. Raises `RedisError`, `OSError`."""
        await self._free.acquire()
        try:
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        except BaseException:
            self._free.release()
            raise
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Give a connection back."""
        try:
            await super().release(connection)
        finally:
            self._free.release()

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses. Waits for nothing: whoever takes one meanwhile opens another."""
        for connection in list(self._get_free_connections()):
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close all connections, and end a search for the primary. Repeatable."""
        await close_all(*(() if self.primary is None else (self.primary.aclose,)), super().aclose)


def _text(raw: object) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
