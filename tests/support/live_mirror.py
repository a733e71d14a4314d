"""The whole mirror on the test's own event loop: what `serve` builds, behind a real listener, with a clock to turn.

    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        answer = await mirror.ask("/v2/library/app/manifests/v1", method="HEAD")
        mirror.clock.forward(301)

Every test checks two things without asking for them. Each complete body matches its digest, whatever happened before
(`ask`). And at the end nothing has crashed, and no file of the store is still open.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from mirror import telemetry
from mirror.app.building import App, build
from mirror.config import Config
from mirror.eviction.reconcile import is_whole
from mirror.oci.digest import Digest
from mirror.oci.signed import signed_payload
from mirror.ports import Upstream
from mirror.server.registry.connection_limit import ConnectionLimiter
from mirror.server.registry.handler import RegistryServer
from mirror.store.local.layout import CopiesLayout
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.registry import RegistryUpstream
from tests.support.scripted import Stall

T = TypeVar("T")

#: Seconds to wait for what has to happen; nothing is judged by it.
PATIENCE: Final = 60.0

#: Mirrors of this process by the root of their store: the last one out looks for files that were left open.
_roots: Counter[str] = Counter()


class Clock:
    """Epoch seconds that stand still until they are moved."""

    def __init__(self) -> None:
        self._now = time.time()
        self._passed = 0.0

    def __call__(self) -> float:
        return self._now

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._passed += seconds

    def set(self, seconds: float) -> None:
        """Set the clock so far ahead, or back, while no time passes."""
        self._now += seconds

    def steady(self) -> float:
        """Seconds that have passed, unchanged by setting the clock."""
        return self._passed


@dataclass(frozen=True)
class Got:
    """An answer. `whole` is False where the connection broke before the end of the body."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    whole: bool

    @property
    def code(self) -> str:
        """Of an error (distribution-spec, "Error Codes")."""
        assert self.headers["Content-Type"] == "application/json", self
        [error] = json.loads(self.body)["errors"]
        assert error["message"], self
        return str(error["code"])

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def cache(self) -> str:
        """`Cache-Status` without the name of the cache."""
        return self.headers["Cache-Status"].removeprefix("mirror; ")


async def exchange(port: int, *pieces: bytes) -> bytes:
    """Send raw bytes on a new connection; returns the bytes received until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            with suppress(ConnectionError):  # it may close in the middle of nonsense
                await writer.drain()
        received = bytearray()
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                while piece := await reader.read(1 << 20):
                    received += piece
        return bytes(received)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class LiveMirror:
    """A running mirror and a client of it."""

    def __init__(
        self, app: App, config: Config, clock: Clock, port: int, output: io.StringIO, server: RegistryServer
    ) -> None:
        self.app = app
        self.server = server
        self.config = config
        self.clock = clock
        self.port = port
        self._output = output
        #: For requests that `ask` cannot send.
        self.session = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(PATIENCE)
        )

    # -------------------------------------------------------------------------------------------- asking it

    @property
    def root(self) -> Path:
        """Of its store."""
        return self.config.store.root

    async def ask(self, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Got:
        """One request; the target goes out byte for byte."""
        async with self.open(target, method=method, headers=headers) as response:
            whole, body = True, bytearray()
            try:
                async for piece in response.content.iter_any():
                    body += piece
            except (aiohttp.ClientError, ConnectionError):
                whole = False
            got = Got(response.status, response.headers, bytes(body), whole)
        if method == "GET":
            _check(target, got)
        return got

    def open(self, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Any:
        """The same, to be read piece by piece: aiohttp's response as a context manager."""
        url = URL(f"http://127.0.0.1:{self.port}{target}", encoded=True)
        return self.session.request(method, url, headers=headers, allow_redirects=False)

    async def raw(self, *pieces: bytes) -> bytes:
        """See `exchange`."""
        return await exchange(self.port, *pieces)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection; the caller closes it. Its buffer is small: who does not read stops the other side."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 14)

    # ----------------------------------------------------------------------------------------- looking at it

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line so far."""
        return [json.loads(line) for line in self._output.getvalue().splitlines()]

    def clear_log(self) -> None:
        """Forget what was logged."""
        self._output.seek(0)
        self._output.truncate()

    @property
    def log_text(self) -> str:
        """The same as it was written."""
        return self._output.getvalue()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.log if line["event"] == event]

    async def logged(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        """The lines of one kind with these values, once there are any. The line of a blob is written after it was sent:
        its client may be quicker.
        """

        def found() -> list[dict[str, Any]]:
            return [line for line in self.events(event) if all(line.get(key) == wanted[key] for key in wanted)]

        return await until(found, lambda: f"no line of {event} {wanted}")

    def blob_file(self, digest: Digest) -> Path:
        """Where the store keeps a blob: in the cache, or as a copy of a hosted one, if it has a copy."""
        layout = self.app.storage.layout
        copy = Path(CopiesLayout(layout.root).blob(digest))
        return copy if copy.exists() else Path(layout.blob(digest))

    async def landed(self, digest: Digest) -> None:
        """Returns once a blob is published and its flight is over in every respect."""
        await until(lambda: self.blob_file(digest).exists() and digest not in self.app.shared.flights.digests())

    async def idle(self) -> None:
        """Returns once nothing is being filled."""
        shared = self.app.shared
        await until(lambda: not (shared.flights.active() or shared.ahead._tasks))

    async def rebuilt(self) -> None:
        """Returns once the index knows what the disk has: it is rebuilt soon after the first start."""
        async with asyncio.timeout(PATIENCE):
            while not await is_whole(self.app.storage.index):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        """Of the client."""
        await self.session.close()


@asynccontextmanager
async def live_mirror(
    root: Path,
    upstreams: Mapping[str, str | Mapping[str, Any]],
    *,
    clock: Clock | None = None,
    before: Callable[[App], None] | None = None,
    **settings: Any,
) -> AsyncIterator[LiveMirror]:
    """`upstreams` are root URLs, or whole `[[upstream]]` tables, by name; `settings` are further ones of `Config`.

    `before` may change what was built before the first request comes.
    """
    clock = clock or Clock()
    entries = [{"name": name, **({"url": one} if isinstance(one, str) else one)} for name, one in upstreams.items()]
    store = {"root": root, "capacity": "10GB", **settings.pop("store", {})}
    content: dict[str, Any] = {"upstream": entries, "default_registry": entries[0]["name"], "store": store, **settings}
    config = Config(**content)
    output = io.StringIO()
    mirror: LiveMirror | None = None
    with _logging_to(output):
        _roots[str(root)] += 1
        try:
            async with build(config, now=clock, steady=clock.steady) as app:
                _set_clock(app, clock)
                if before:
                    before(app)
                server = RegistryServer(
                    app.front,
                    limiter=ConnectionLimiter(stall=config.server.client_stall_timeout),
                    ready=app.front.ready,
                    access_log=None,
                    keepalive_timeout=75.0,
                    lingering_time=2.0,
                )
                runner = web.ServerRunner(server, shutdown_timeout=1.0)
                await runner.setup()
                site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
                await site.start()
                mirror = LiveMirror(app, config, clock, runner.addresses[0][1], output, server)
                try:
                    yield mirror
                finally:
                    await runner.cleanup()
        finally:
            _roots[str(root)] -= 1
            if mirror:
                # last, so that clients still see what the end of the mirror does to their answers
                await mirror.aclose()
    assert mirror
    crashes = [line for line in mirror.log if "crashed" in line["event"] or "exception" in line or "logger" in line]
    assert not crashes, json.dumps(crashes, indent=1)
    if not _roots[str(root)]:
        # a thread that lists a folder is not waited for
        await until(lambda: not _open_below(root), lambda: f"files left open: {_open_below(root)}")


def _set_clock(app: App, clock: Clock) -> None:
    """Waits between two tries at an upstream take no time."""
    make = app.router._upstream_for

    def upstream_for(name: str) -> Upstream:
        upstream = make(name)
        members: tuple[Upstream, ...] = (upstream,)
        if isinstance(upstream, EndpointsUpstream):
            upstream._clock = clock
            members = upstream.members
        for member in members:
            if isinstance(member, RegistryUpstream):
                member.clocks.sleep = _no_sleep
                member.clocks.monotonic = member.clocks.now = clock
        return upstream

    app.router._upstream_for = upstream_for


async def _no_sleep(_seconds: float) -> None:
    await asyncio.sleep(0)


class _logging_to:
    """The log goes into `output` meanwhile."""

    def __init__(self, output: io.StringIO) -> None:
        self._output = output

    def __enter__(self) -> None:
        root = logging.getLogger()
        self._before = structlog.get_config(), list(root.handlers), root.level
        telemetry.set_up_logging("debug", self._output)

    def __exit__(self, *_: object) -> None:
        configuration, handlers, level = self._before
        structlog.configure(**configuration)
        root = logging.getLogger()
        root.handlers[:] = handlers
        root.setLevel(level)


def _check(target: str, got: Got) -> None:
    """The invariant: a complete body is what its digest names."""
    if got.status == 200 and got.whole and ("/blobs/" in target or "/manifests/" in target):
        digest = Digest.parse(got.headers["Docker-Content-Digest"])
        payload = signed_payload(got.body) if "/manifests/" in target else None
        fits = digest.matches(got.body) or (payload is not None and digest.matches(payload))
        assert fits, f"{target}: {len(got.body)} bytes that are not {digest}"
    if got.status >= 400:
        assert got.headers["Docker-Distribution-API-Version"] == "registry/2.0", got
        assert got.code, got


def _open_below(root: Path) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            target = os.readlink(entry)
            if target.startswith(f"{root}/"):
                found.append(target)
    return found


async def until(question: Callable[[], T | None], what: Callable[[], str] = lambda: "") -> T:
    """Ask again and again until the answer is true, for conditions that nothing announces. `what` describes the state
    if the condition never holds.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what()}"
        await asyncio.sleep(0.005)
    return answer


async def reached(gate: Stall) -> None:
    """Returns once the upstream stands at this gate."""
    assert await asyncio.to_thread(gate.reached.wait, PATIENCE), "no request reached the gate"


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that are the same each time and look like nothing."""
    return random.Random(seed).randbytes(size)
