"""One serving process: builds the mirror, answers on the listeners it inherits, drains on SIGTERM.

    build ──> listening ──(SIGTERM, SIGINT, or the parent is gone)──> draining ──> closed
                                                                        │
        not ready, no new connections; answers under way finish, at most `server.drain_timeout` seconds; then fills
        that are still under way are abandoned and stay as partials

Before the first connections are closed, those that have just been accepted get a moment to send their request, and all
answers of that moment say `Connection: close`: a client that has sent a request gets an answer.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TypeAlias

import uvloop
from aiohttp import web

from mirror import telemetry
from mirror.access.certificate import validity
from mirror.aio.singleflight import cancel_and_wait
from mirror.app.building import App, OpenUploads, build
from mirror.config import Config, ServerSettings
from mirror.errors import ConfigError
from mirror.heartbeat import Heartbeat
from mirror.process.listeners import InternalListener, address_of, is_local
from mirror.rounds import begin
from mirror.server.fast.ready_answers import ReadyAnswers
from mirror.server.registry.connection_limit import ConnectionLimiter
from mirror.server.registry.handler import RegistryServer

#: Seconds between the last accepted connection and the first one that is closed.
_MOMENT = 0.2
#: Seconds between two looks whether upload sessions are open.
_LOOK = 0.25
#: Connections that one other replica may have to this worker.
_MOST_OF_A_PEER = 256
#: Descriptors that the kernel's table has room for from the start: two for each of 8,000 clients. It takes 128 KiB.
_DESCRIPTORS = 16 << 10
#: The handler behind a listener: `RegistryHandler`, `Admin`.
Answers: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def run_worker(
    config: Config,
    listeners: Sequence[socket.socket],
    *,
    ready: Callable[[], None],
    parent: int | None = None,
    admin: Sequence[socket.socket] = (),
    pulse: Heartbeat | None = None,
    internal: InternalListener | None = None,
) -> None:
    """Serve until a signal or the parent's end; SIGUSR2 writes the stacks of all threads to standard error.

    `ready` is called once requests are answered; `parent` is a descriptor that reports end-of-file when the parent
    process is gone; `admin` are the listeners of the admin API; `pulse` is the worker's heartbeat cell; `internal` is
    this worker's part of the listener for other replicas. Raises `StoreError`, `ConfigError`.
    """
    _raise_descriptor_limit()
    _make_room_for_descriptors()
    # written in C: it works even while the interpreter stands still
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    uvloop.run(_serve(config, listeners, ready, parent, admin, pulse, internal))


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard one: a client takes two, and the usual soft limit of 1024 is
    meant for programs that still use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # an unlimited hard limit may be more than the kernel allows one process
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_room_for_descriptors() -> None:
    """Let the kernel's table of this process's descriptors be large at once.

    Otherwise it doubles whenever it is full, at first with the 65th descriptor, and a process with threads stands still
    meanwhile, for 10 to 30 ms: the kernel waits until nobody uses the old table (`expand_fdtable` in Linux's
    fs/file.c). Clients that come together would all wait for that. The table never becomes smaller.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    last = _DESCRIPTORS - 1 if most < 0 else min(_DESCRIPTORS, most) - 1
    # without it, only the first crowd is slower
    with suppress(OSError):
        some = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, last))
        finally:
            os.close(some)


async def _serve(
    config: Config,
    listeners: Sequence[socket.socket],
    ready: Callable[[], None],
    parent: int | None,
    admin: Sequence[socket.socket],
    pulse: Heartbeat | None,
    internal: InternalListener | None = None,
) -> None:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def end(reason: str) -> None:
        if not stop.done():
            stop.set_result(reason)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number.name)
    # a terminal that closes must not cut off every pull
    loop.add_signal_handler(signal.SIGHUP, telemetry.log.info, "SIGHUP ignored")
    if parent is not None:
        loop.add_reader(parent, end, "the parent process is gone")
    tls = _tls(config.server, config.access.client_ca)
    async with build(config, pulse=pulse) as app:
        runner = _Runner(app.front, config.server, _limiter(config.server), app.front.ready)
        await runner.setup()
        sites = [_Site(runner, listener, tls) for listener in listeners]
        admin_runner = _Runner(
            app.admin,
            config.server,
            ConnectionLimiter(head=config.server.request_head_timeout, stall=config.server.client_stall_timeout),
        )
        await admin_runner.setup()
        # loopback needs no TLS: no other machine can read it
        sites += [_Site(admin_runner, listener, None if is_local(listener) else tls) for listener in admin]
        peers = None
        if internal is not None and app.storage.cluster is not None:
            peers = await _Peers.open(config, app, internal)
        for site in sites:
            await site.start()
        working = [begin(work) for work in (app.scheduler.run(), app.replication.run(), app.jobs.run())]
        ready()
        telemetry.log.info("draining", worker=os.getpid(), reason=await stop)
        app.readiness.drain()
        if pulse is not None:
            pulse.rest()
        if parent is not None:
            loop.remove_reader(parent)
        # other workers keep listening on the same addresses
        for site in sites:
            await site.stop()
        # background work is cancelled; it is started again later, or its job is marked as interrupted
        await cancel_and_wait(*working)
        runner.dismiss()
        await asyncio.sleep(_MOMENT)
        # lets answers under way finish, and closes idle connections
        await admin_runner.cleanup()
        await runner.cleanup()
        if peers is not None:
            await peers.drain(app)
    telemetry.log.info("stopped", worker=os.getpid())


class _Peers:
    """The listener for other replicas. After SIGTERM it goes on for as long as upload sessions of this replica are
    open, at most `cluster.drain` seconds: their clients come by way of other replicas then.
    """

    def __init__(self, runner: _Runner, site: _Site, drain: float) -> None:
        self._runner = runner
        self._site = site
        self._drain = drain

    def __repr__(self) -> str:
        return f"<_Peers {self._site.name}>"

    @classmethod
    async def open(cls, config: Config, app: App, internal: InternalListener) -> _Peers:
        """Begins to listen. Raises `ConfigError`."""
        # imported here: a mirror without replicas does not even load it
        from mirror.app.clustering import server_tls
        from mirror.peers.used_nonces import UsedNonces

        cluster, settings = app.storage.cluster, config.server
        if cluster is None:
            raise TypeError("a listener for replicas without a cluster")
        # the pods of a cluster often have addresses of one IPv6 subnet, and each replica may have as many
        limiter = ConnectionLimiter(
            head=settings.request_head_timeout, stall=settings.client_stall_timeout, most=_MOST_OF_A_PEER, subnet=128
        )
        runner = _Runner(cluster.front(UsedNonces(internal.nonces)), settings, limiter)
        await runner.setup()
        site = _Site(runner, internal.sockets[0], server_tls(config.cluster))
        await site.start()
        return cls(runner, site, config.cluster.drain)

    async def drain(self, app: App) -> None:
        """Returns once nothing is left to be answered."""
        await wait_for_uploads(app.uploads, self._drain)
        await self._site.stop()
        self._runner.dismiss()
        await self._runner.cleanup()


async def wait_for_uploads(
    look: Callable[[], OpenUploads], longest: float, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> None:
    """Returns once `look`, which blocks, finds no active upload session, at the latest after `longest` seconds. The log
    says what is waited for, and what is left: its clients can go on with it only once this replica is back.
    """
    end = time.monotonic() + longest
    # sessions are files, which other workers open and end
    uploads = await asyncio.to_thread(look)
    if uploads.active:
        telemetry.log.info("waiting for uploads", worker=os.getpid(), uploads=uploads.active, at_most=longest)
    while uploads.active and time.monotonic() < end:
        await sleep(_LOOK)
        uploads = await asyncio.to_thread(look)
    if uploads.open:
        telemetry.log.warning("uploads left open", worker=os.getpid(), uploads=uploads.open, active=uploads.active)


class _Runner(web.BaseRunner):
    """aiohttp's runner for our own server class."""

    def __init__(
        self,
        answers: Answers,
        settings: ServerSettings,
        limiter: ConnectionLimiter,
        ready: ReadyAnswers | None = None,
    ) -> None:
        # for aiohttp, 0 means no limit
        super().__init__(shutdown_timeout=max(settings.drain_timeout, 0.001))
        self._answers = answers
        self._settings = settings
        self._limiter = limiter
        self._ready = ready
        self._front: RegistryServer | None = None

    async def shutdown(self) -> None:
        """Nothing to do before connections are closed."""

    def dismiss(self) -> None:
        """Make every connection end after its next answer."""
        if self._front:
            self._front.dismissing = True

    def protocol(self, tls: ssl.SSLContext | None) -> Callable[[], asyncio.BaseProtocol]:
        """The factory of protocols for new connections. Raises `RuntimeError` before the runner is set up."""
        if self._front is None:
            raise RuntimeError("listening before set-up")
        return self._front if tls is None else partial(self._front.over_tls, tls)

    async def _make_server(self) -> RegistryServer:
        self._front = RegistryServer(
            self._answers,
            limiter=self._limiter,
            ready=self._ready,
            access_log=None,
            keepalive_timeout=self._settings.idle_timeout,
            lingering_time=2.0,
            tcp_keepalive=True,
        )
        return self._front

    async def _cleanup_server(self) -> None:
        """The server has no resources of its own."""


class _Site(web.BaseSite):
    """One listener. Its connections are counted before their TLS handshake, which aiohttp's own sites cannot do."""

    def __init__(self, runner: _Runner, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        super().__init__(runner)
        self._listener = listener
        self._protocol = runner.protocol(tls)

    @property
    def name(self) -> str:
        """The listener's address, for aiohttp's lists."""
        return address_of(self._listener)

    async def start(self) -> None:
        """Listen."""
        await super().start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, sock=self._listener, backlog=4096)


def _limiter(settings: ServerSettings) -> ConnectionLimiter:
    return ConnectionLimiter(
        head=settings.request_head_timeout,
        stall=settings.client_stall_timeout,
        most=settings.connections_per_client,
        unlimited=[ip_network(network) for network in settings.connections_exempt],
    )


def _tls(settings: ServerSettings, client_ca: Path | None) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # without a password callback, a key with a passphrase would make OpenSSL ask on the terminal
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: "")
        telemetry.CERTIFICATE_UNTIL.set(validity(settings.tls_certificate)[1])
    except (OSError, ValueError) as error:
        pair = f"{settings.tls_certificate} and {settings.tls_key}"
        raise ConfigError([f"server.tls_certificate, tls_key: {pair} do not belong together"]) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"access.client_ca: {client_ca} contains no certificate"]) from error
        # a client without a certificate may still log in, or stay anonymous
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
