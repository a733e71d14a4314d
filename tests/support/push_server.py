"""The registry's front over one hosted repository in memory, behind a real listener.

async with push_server() as server:
    answer = await server.ask("POST", "/v2/app/blobs/uploads/")
    assert answer.status == 202
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from mirror.errors import NameUnknown
from mirror.oci.reference import Repo, check_name
from mirror.policy.access_rules import Action, AuthMethod, Identity
from mirror.server.registry.handler import RegistryHandler, RegistryServer
from mirror.server.registry.push import Elsewhere, Pushes
from mirror.server.registry.receiving import Receiver
from tests.support.live_mirror import PATIENCE, exchange
from tests.support.memory_writable import FreePusher, MemoryWritable


@dataclass(frozen=True)
class Answered:
    """An answer, whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class _Router:
    """One hosted repository, and the names of those to mount from."""

    #: See `Router`.
    gives_parts = False

    def __init__(self, repository: MemoryWritable) -> None:
        self.repository = repository

    def when_forgotten(self, forgotten: Callable[[], None]) -> None:
        """See `Router`; nothing is forgotten here."""

    def resolve(self, name: str, *, host: str | None, ns: str | None) -> Any:
        check_name(name)
        if name == "unknown":
            raise NameUnknown("no such repository")
        return self.repository if name == self.repository.repo.name else MemoryWritable(Repo("corp", name))


class _Gate:
    """Lets everybody in as alice, and keeps what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Action, ...]] = []
        self.refuse: Exception | None = None

    async def enter(self, request: web.BaseRequest, wanted: object, record: Any) -> Identity:
        record.caller = "user:alice"
        return Identity("alice", AuthMethod.PASSWORD)

    async def admit(self, *_: object) -> Any:
        return nullcontext()

    def authorize(self, identity: Identity, actions: tuple[Action, ...], *_: object, **_more: object) -> FreePusher:
        self.asked.append(actions)
        if self.refuse is not None:
            raise self.refuse
        return FreePusher(str(identity))

    def pusher(self, identity: Identity, *_: object) -> FreePusher:
        return FreePusher(str(identity))


class _Audit:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def record(self, **fields: object) -> None:
        self.lines.append(fields)


class PushServer:
    """A running front and a client of it."""

    def __init__(
        self, repository: MemoryWritable, gate: _Gate, audit: _Audit, front: RegistryServer, port: int
    ) -> None:
        self.repository = repository
        self.gate = gate
        self.front = front
        self.audit = audit.lines
        self.port = port
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE))

    async def ask(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        secure: bool = False,
    ) -> Answered:
        """One request; the target goes out byte for byte. A body that is an iterator is sent in chunks."""
        scheme = "https" if secure else "http"
        url = URL(f"{scheme}://127.0.0.1:{self.port}{target}", encoded=True)
        if isinstance(body, bytes) and len(body) > 1 << 20:
            # aiohttp warns of large bytes
            body = io.BytesIO(body)
        async with self.session.request(method, url, data=body, headers=headers, ssl=False) as response:
            return Answered(response.status, response.headers, await response.read())

    async def begin(self) -> str:
        """A new session; returns its location."""
        answer = await self.ask("POST", "/v2/app/blobs/uploads/")
        assert answer.status == 202, answer
        return answer.headers["Location"]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection; the caller closes it."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, *pieces: bytes) -> bytes:
        """See `exchange`."""
        return await exchange(self.port, *pieces)


@asynccontextmanager
async def push_server(
    *,
    lowest: float = 0.0,
    window: float = 30.0,
    tls: ssl.SSLContext | None = None,
    elsewhere: Elsewhere | None = None,
) -> AsyncIterator[PushServer]:
    """`lowest` and `window` are those of `Receiver`; `elsewhere` has the sessions of other replicas."""
    repository, gate, audit = MemoryWritable(Repo("corp", "app")), _Gate(), _Audit()
    handler = RegistryHandler(
        cast(Any, _Router(repository)),
        cast(Any, None),
        {},
        log_requests=False,
        access=cast(Any, gate),
        audit=audit,
        pushes=Pushes(Receiver(lowest, window=window), elsewhere),
    )
    front = RegistryServer(handler, access_log=None, lingering_time=2.0)
    loop = asyncio.get_running_loop()
    if tls is None:
        listener = await loop.create_server(front, "127.0.0.1", 0)
    else:
        listener = await loop.create_server(lambda: front.over_tls(tls), "127.0.0.1", 0)
    server = PushServer(repository, gate, audit, front, listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        await server.session.close()
        listener.close()
        await front.shutdown(1.0)
