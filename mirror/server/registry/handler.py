"""The handler of every request to the registry API: parse, route, answer, log.

It uses aiohttp's low-level server. There are only six kinds of path, and aiohttp's router, middlewares and signals
would cost more than most answers do.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, Final, Protocol, cast

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from prometheus_client import Counter

from mirror import telemetry
from mirror.errors import Denied, MirrorError, NotServed, RequestError, Unsupported, UpstreamError
from mirror.inspect.recent_answers import RecentAnswers
from mirror.oci.reference import Repo
from mirror.oci.request import Kind, RegistryRequest, parse_request
from mirror.policy.access_rules import ANONYMOUS, Action, Identity
from mirror.policy.clients.networks import UNIX
from mirror.repository.answers import ManifestAnswer, Outcome
from mirror.repository.caches import weight
from mirror.repository.protocol import Readable, is_hosted
from mirror.repository.router import Router
from mirror.repository.standing.lasting import is_lasting
from mirror.server.fast.exact_requests import END, LONGEST, has_usual_headers, is_whole
from mirror.server.fast.given_answers import AnswerFacts, GivenAnswers, requests_of, seconds_of, sent_of
from mirror.server.fast.ready_answers import ListenerAnswers, Offer, ReadyAnswers
from mirror.server.fast.written_answer import WatchedWriter
from mirror.server.registry import pull, push
from mirror.server.registry.access_control import TOKEN_PATH, AccessControl
from mirror.server.registry.body_rest import RestOfBody
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.connection_limit import ConnectionLimiter
from mirror.server.registry.handshake import Handshake
from mirror.server.registry.head_limit import MOST_HEAD, BoundedHeads, reason_in
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.receiving import Receiver, expects_continue
from mirror.server.registry.redirects import Redirects
from mirror.server.registry.responses import error_response
from mirror.server.registry.sending import ClientGone, Sender
from mirror.server.registry.virtual_pushes import check_way, mount_source, visible_blobs, writable_of
from mirror.server.registry.visitor import VirtualVisitor
from mirror.server.registry.writing import PIECE, PieceWriter, Unsent
from mirror.virtual.virtual_repository import VirtualRepository

#: Statuses that go to the audit log even if the caller and the repository are unknown.
_REFUSED: Final = frozenset({401, 403, 429})

#: The kind of requests of which only failures are shown: an upload that succeeds is seen by its blob.
_UPLOAD: Final = Kind.UPLOAD.value
#: `RequestRecord.action` of everything but pushes and deletions.
_PULL: Final = Action.PULL.value

#: A page beside the API, such as `/readyz`. Pages are found by their path; probes and scrapers may add a query.
Page = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Audit(Protocol):
    """The log that accesses are written to."""

    def record(self, **fields: object) -> None:
        """Write one entry. Raises nothing."""


#: What a request's answer may be given again by, if it may.
_OFFER: Final = web.RequestKey("offer", Offer)


class RegistryHandler:
    """Answers requests. `pages` are served beside the API by their exact path."""

    def __init__(
        self,
        router: Router,
        sender: Sender,
        pages: Mapping[str, Page],
        *,
        log_requests: bool,
        access: AccessControl | None = None,
        audit: Audit | None = None,
        recent: RecentAnswers | None = None,
        pushes: push.Pushes | None = None,
        addresses: ClientAddresses | None = None,
        redirects: Redirects | None = None,
    ) -> None:
        """Without `access`, every client that reaches the mirror may pull everything, and nobody may push. `audit`
        records each access and refusal, `recent` each answer about a repository. `redirects` sends clients to the
        bucket.
        """
        self._router = router
        self._sender = sender
        self._pages = pages
        self._log_requests = log_requests
        self._access = access
        self._audit = audit
        self._recent = recent
        self._pushes = pushes or push.Pushes(Receiver(0.0))
        self._addresses = addresses or ClientAddresses()
        self._redirects = redirects
        self._gives_parts = router.gives_parts
        #: Requests are numbered. Most numbers are never logged, so they are formatted as identifiers only when needed.
        self._numbers = itertools.count(time.time_ns() // 1_000_000)
        self._name = f"{os.getpid():x}"
        given = GivenAnswers(lambda: self._id(next(self._numbers)), recent, audit.record if audit is not None else None)
        #: Small answers that were given a moment ago, for the servers of this handler.
        self.ready = ReadyAnswers(given.note)
        router.when_forgotten(self.ready.clear)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        target: str = request._message.path  # the raw target: aiohttp's URL is already decoded
        if not target.startswith("/v2") and (page := self._pages.get(target.partition("?")[0])):
            return await page(request)
        number = next(self._numbers)
        if (span := telemetry.request_span(request.method, target.partition("?")[0], request.headers)) is None:
            return await self._respond(request, target, number)
        with span:
            return await self._respond(request, target, number, span)

    async def _respond(
        self, request: web.BaseRequest, target: str, number: int, span: telemetry.TraceSpan | None = None
    ) -> web.StreamResponse:
        began = time.perf_counter()
        record = RequestRecord()
        kind = "other"
        response: web.StreamResponse | None = None
        try:
            if request.version < HttpVersion10:
                raise RequestError("not a request of HTTP/1.0 or later")
            if self._access is not None and target.partition("?")[0] == TOKEN_PATH:
                kind = "token"
                response = await self._access.token(request, record)
            else:
                wanted = _parse(target)
                kind = wanted.kind.value
                response = _checked(await self._answer(request, wanted, record))
                if span is None and record.answer is not None and response.status == 200:
                    self._offer(request, target, wanted, record)
        except MirrorError as error:
            record.error = f"{type(error).__name__}: {error}"
            if isinstance(error, UpstreamError):
                record.upstream = error.upstream
            response = error_response(error, self._id(number), head=request.method == "HEAD", more=record.headers)
        except asyncio.CancelledError:
            record.error = "cancelled: the mirror is stopping"
            raise
        except Exception as error:
            telemetry.log.exception("request crashed", id=self._id(number), method=request.method, path=target[:1024])
            record.error = f"unexpected {type(error).__name__}"
            response = error_response(MirrorError("an unexpected error; the log has more"), self._id(number))
        finally:
            record.answer = None
            self._log(request, target, kind, response, record, time.perf_counter() - began, number)
            if span is not None:
                _note(span, kind, response, record, self._id(number))
        return response

    def _offer(self, request: web.BaseRequest, target: str, wanted: RegistryRequest, record: RequestRecord) -> None:
        """Offers an answer to the fast path, if this request may be answered there at all. The rights of the caller are
        judged in the same turn of the event loop as whether the answer stands, and neither takes from the request
        anything but its bytes.
        """
        connection, answer, reference, access = request.protocol, record.answer, wanted.reference, self._access
        if not isinstance(connection, _Connection) or connection.asked is None or reference is None:
            return
        message = request._message
        if message.version != HttpVersion11 or message.should_close or not has_usual_headers(message.raw_headers):
            return
        head = request.method == "HEAD"
        if head is not (request.method != "GET") or record.error is not None:
            return
        repository = self._router.resolve(wanted.name, host=request.headers.get("Host"), ns=wanted.query.get("ns"))
        if not is_lasting(repository) or str(repository.repo) != record.repository:
            return
        if access is not None and not (
            record.caller == str(ANONYMOUS)
            and access.is_settled(ANONYMOUS, repository.repo)
            and access.allows(ANONYMOUS, Action.PULL, repository.repo)
        ):
            return
        if isinstance(answer, ManifestAnswer):
            standing = repository.manifest_stands(reference, answer, head=head)
        elif head and answer is not None and self._blobs_for(ANONYMOUS, repository, request, wanted) is repository:
            standing = repository.blob_stands(wanted.digest, answer)
        else:
            return
        if standing is None:
            return
        # as it is when the request has been noted: nobody changes it any more, and it must not keep the answer alive
        noted = replace(record, answer=None)
        line, audited = None, None
        if self._log_requests:
            line = self._line(request, target, 200, noted, 0.0, "")
        if self._audit is not None:
            audited = self._audited(request, wanted.kind.value, 200, noted, "")
        kind = wanted.kind.value
        facts = AnswerFacts(
            kind, request.method, noted, standing.used, line, audited, _notices(kind, request.method, 200, noted)
        )
        kept = weight(answer.manifest) if isinstance(answer, ManifestAnswer) and answer.manifest is not None else 0
        request[_OFFER] = Offer(standing.stands, facts, self.ready.generation, kept)

    def _id(self, number: int) -> str:
        return f"{self._name}-{number:x}"

    async def _answer(
        self, request: web.BaseRequest, wanted: RegistryRequest, record: RequestRecord
    ) -> web.StreamResponse:
        access = self._access
        identity = await access.enter(request, wanted, record) if access is not None else ANONYMOUS
        if request.method not in ("GET", "HEAD") or wanted.kind is Kind.UPLOAD:
            return await self._push(request, wanted, identity, record)
        if wanted.kind is Kind.BASE:
            return pull.base()
        if wanted.kind is Kind.CATALOG:
            listed = self._router.repositories
            if access is None:
                return await pull.catalog(request, wanted, listed, record)
            return await pull.catalog(request, wanted, listed, record, lambda repo: access.may_see(identity, repo))
        if wanted.reference is not None:
            record.reference = str(wanted.reference)
        repository = self._router.resolve(wanted.name, host=request.headers.get("Host"), ns=wanted.query.get("ns"))
        if isinstance(repository, VirtualRepository):
            return await self._visit(request, wanted, repository, record, identity)
        record.repository = str(repository.repo)
        if access is None:
            return await self._pull(request, wanted, repository, record)
        with await access.admit(identity, repository, request, wanted, record):
            return await self._pull(request, wanted, repository, record, identity)

    async def _push(
        self, request: web.BaseRequest, wanted: RegistryRequest, identity: Identity, record: RequestRecord
    ) -> web.StreamResponse:
        action = push.asked_action(request.method, wanted)
        record.action = action.value
        if wanted.kind not in (Kind.UPLOAD, Kind.MANIFEST, Kind.BLOB):
            raise Unsupported(f"{request.method} is not possible here")
        if wanted.reference is not None:
            record.reference = str(wanted.reference)
        host, ns = request.headers.get("Host"), wanted.query.get("ns")
        repository = self._router.resolve(wanted.name, host=host, ns=ns)
        asked: Repo | None = None
        if isinstance(repository, VirtualRepository):
            asked = _note_asked(repository, record)
            if repository.parts.learn is not None:
                await repository.learn_names()
            virtual, repository = repository, writable_of(repository, self._access, identity, request, wanted)
        record.repository = str(repository.repo)
        if not is_hosted(repository):
            if self._access is not None:
                self._access.refuse_stranger(identity, repository.repo, request, wanted)
            registry = repository.repo.registry
            raise Unsupported(
                f"{registry} is only cached here: push to {registry} itself, or under the name of a registry that this "
                "mirror hosts"
            )
        if self._access is None:
            raise Denied("no rule allows anybody to push here")

        source = mount_source(wanted, lambda name: self._router.resolve(name, host=host, ns=ns))
        pusher = self._access.authorize(
            identity, (action,), repository.repo, request, wanted, asked=asked, source=source
        )
        if asked is not None:
            check_way(virtual, self._access, identity, action)
        receiver = self._pushes.receiver
        call = push.PushCall(request, wanted, repository, pusher, record, receiver, source)
        return await self._pushes.answer(call)

    async def _visit(
        self,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        virtual: VirtualRepository,
        record: RequestRecord,
        identity: Identity,
    ) -> web.StreamResponse:
        """A pull under a virtual name."""
        asked = _note_asked(virtual, record)
        record.repository = str(asked)
        if virtual.parts.learn is not None:
            await virtual.learn_names()
        visitor = VirtualVisitor(self._access, identity, asked, request, wanted, record)
        repository = virtual.seen_by(visitor)
        if wanted.kind is Kind.BLOB:
            blobs = visible_blobs(repository, visitor, self._access, identity, request, wanted)
            lazy_for = self._addresses.of(request) if self._gives_parts else None
            return await pull.blob(request, wanted, blobs, record, self._sender, self._redirects, lazy_for)
        return await self._pull(request, wanted, repository, record, identity)

    async def _pull(
        self,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        repository: Readable,
        record: RequestRecord,
        identity: Identity = ANONYMOUS,
    ) -> web.StreamResponse:
        match wanted.kind:
            case Kind.MANIFEST:
                return await pull.manifest(request, wanted, repository, record)
            case Kind.BLOB:
                source = self._blobs_for(identity, repository, request, wanted)
                lazy_for = self._addresses.of(request) if self._gives_parts else None
                return await pull.blob(request, wanted, source, record, self._sender, self._redirects, lazy_for)
            case Kind.TAGS:
                return await pull.tags(request, wanted, repository, record)
            case Kind.REFERRERS:
                return await pull.referrers(request, wanted, repository, record)
        raise NotServed("not a path of this API")

    def _blobs_for(
        self, identity: Identity, repository: Readable, request: web.BaseRequest, wanted: RegistryRequest
    ) -> pull.Blobs:
        """The blobs of a repository as this caller sees them: who may push also sees what may be reserved."""
        if self._access is None or not is_hosted(repository):
            return repository
        pusher = self._access.pusher(identity, repository.repo, request, wanted)
        return repository if pusher is None else push.PushersBlobs(repository, pusher)

    def _log(
        self,
        request: web.BaseRequest,
        target: str,
        kind: str,
        response: web.StreamResponse | None,
        record: RequestRecord,
        seconds: float,
        number: int,
    ) -> None:
        status = response.status if response is not None else 499
        outcome = record.outcome.value
        requests_of(kind, status, outcome).inc()
        seconds_of(kind, outcome).observe(seconds)
        if record.sent:
            sent_of(outcome).inc(record.sent)
        if record.action != _PULL:
            _pushes(record.action, kind, status).inc()
            telemetry.RECEIVED_BYTES.inc(record.received)
        if self._recent is not None and record.repository is not None and (kind != _UPLOAD or status >= 400):
            self._recent.note(kind, request.method, status, record, seconds, self._id(number))
        for what, fields in _notices(kind, request.method, status, record):
            telemetry.notice(what, **fields)
        if self._audit is not None and (
            record.repository is not None or record.caller is not None or status in _REFUSED
        ):
            self._audit.record(**self._audited(request, kind, status, record, self._id(number)))
        if self._log_requests:
            telemetry.log.info("request", **self._line(request, target, status, record, seconds, self._id(number)))

    def _audited(
        self, request: web.BaseRequest, kind: str, status: int, record: RequestRecord, identifier: str
    ) -> dict[str, object]:
        """The fields of a line in the audit log."""
        return {
            "id": identifier,
            "caller": record.caller,
            "scope": record.scope,
            "client": self._addresses.of(request),
            "action": "login" if kind == "token" else record.action,
            "kind": kind,
            "method": request.method,
            "repository": record.repository,
            "asked": record.notes.get("asked"),
            "reference": record.reference,
            "status": status,
            "bytes": record.received if record.action != _PULL else record.sent,
            "redirected": record.redirected,
            "digest": str(record.digest) if record.action != _PULL and record.digest is not None else None,
            "reason": record.error,
        }

    def _line(
        self,
        request: web.BaseRequest,
        target: str,
        status: int,
        record: RequestRecord,
        seconds: float,
        identifier: str,
    ) -> dict[str, object]:
        """The fields of a line in the access log."""
        line: dict[str, object] = {
            "id": identifier,
            "client": self._addresses.of(request),
            "method": request.method,
            "path": target[:1024],
            "status": status,
            "bytes": record.sent,
            "cache": record.outcome.value,
            "upstream": record.upstream,
            "duration": round(seconds, 6),
            **record.notes,
        }
        if record.action != _PULL:
            line["received"] = record.received
        if record.redirected is not None:
            line["redirected"] = record.redirected
        if record.caller is not None:
            line["caller"] = record.caller
        if record.error:
            line["error"] = record.error
        return line


def _notices(
    kind: str, method: str, status: int, record: RequestRecord
) -> list[tuple[telemetry.Notice, dict[str, object]]]:
    """What is noticed of an answer."""
    if kind != "manifest" or status not in (200, 304) or record.action != _PULL:
        return []
    what: dict[str, object] = {"repository": record.repository, "reference": record.reference, "digest": record.digest}
    notices: list[tuple[telemetry.Notice, dict[str, object]]] = [(telemetry.Notice.MANIFEST_ANSWERED, what)]
    if status == 200 and method == "GET":
        notices.append((telemetry.Notice.IMAGE_PULLED, {**what, "by": record.caller}))
    return notices


def _note_asked(virtual: VirtualRepository, record: RequestRecord) -> Repo:
    """Notes the virtual name, beside the name of the member that will answer."""
    record.notes["asked"] = str(virtual.repo)
    return virtual.repo


def _checked(response: web.StreamResponse) -> web.StreamResponse:
    """The response, if its headers can be sent. Raises `MirrorError` for a header value that cannot: aiohttp would
    notice only when it is too late to send an error.
    """
    if not response.prepared:
        values = "".join(response.headers.values())
        if not (values.isascii() and values.isprintable()):
            raise MirrorError("a header of the answer has characters that no header may have")
    return response


def _note(
    span: telemetry.TraceSpan, kind: str, response: web.StreamResponse | None, record: RequestRecord, number: str
) -> None:
    span.note(
        http__response__status_code=response.status if response is not None else 499,
        mirror__kind=kind,
        mirror__cache=record.outcome.value,
        mirror__repository=record.repository,
        mirror__reference=record.reference,
        mirror__upstream=record.upstream,
        mirror__bytes=record.sent,
        mirror__received=record.received if record.action != _PULL else None,
        mirror__error=record.error,
        mirror__request=number,
    )


def _parse(target: str) -> RegistryRequest:
    return _parse_short(target) if len(target) <= _SHORT else parse_request(_origin_form(target))


#: Characters up to which parsed targets are cached: the nodes of a cluster request the same few targets.
_SHORT: Final = 512


@lru_cache(4096)
def _parse_short(target: str) -> RegistryRequest:
    return parse_request(_origin_form(target))


def _origin_form(target: str) -> str:
    """The path and query of a request target. The host of an absolute target is ignored and never contacted (RFC 9112,
    3.2.2).
    """
    if target.startswith("/"):
        return target
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    return target


def _client(request: web.BaseRequest) -> str:
    return request.remote or "unix"


@cache
def _pushes(action: str, kind: str, status: int) -> Counter:
    return telemetry.PUSHES.labels(action, kind, status)


class RegistryServer(web.Server):
    """aiohttp's server with limits: requests that cannot be parsed get the same kind of error as all others, and
    clients must read answers in time.

    While `dismissing` is true, each connection ends after its next answer.
    """

    dismissing = False

    def __init__(
        self,
        answers: Page,
        *,
        limiter: ConnectionLimiter | None = None,
        ready: ReadyAnswers | None = None,
        **more: Any,
    ) -> None:
        """`ready` are those of the handler behind `answers`; None: every request goes the ordinary way."""
        # request bodies are never decompressed; one header line may be as long as the whole head
        super().__init__(self._answer, auto_decompress=False, max_field_size=MOST_HEAD, **more)
        self.limiter = limiter or ConnectionLimiter()
        self.unsent = Unsent()
        self.ready = ready
        self._answers = answers
        self._handshakes: set[Handshake] = set()

    def __call__(self) -> _Connection:
        return _Connection(self, self.limiter, self.unsent, loop=self._loop, **self._kwargs)

    def __repr__(self) -> str:
        ending = ", each ends after its next answer" if self.dismissing else ""
        return f"<RegistryServer {len(self.connections)} connections, {len(self._handshakes)} handshakes{ending}>"

    def over_tls(self, context: ssl.SSLContext) -> Handshake:
        """The first protocol of a new connection to a TLS listener."""
        return Handshake(self, context, self.limiter, self._handshakes)

    def pre_shutdown(self) -> None:
        """Close connections without a request under way."""
        for handshake in tuple(self._handshakes):
            handshake.cancel()
        super().pre_shutdown()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        message = request._message
        if message.chunked and message.version < HttpVersion11:
            # RFC 9112, 6.1: a peer that does not know chunks would take them for the next request
            return _refused(request, 400, "HTTP/1.0 has no Transfer-Encoding")
        response = await self._answers(request)
        if not request._payload.is_eof() and not _may_follow(request):
            response.force_close()
        body = response.body if isinstance(response, web.Response) else None
        if isinstance(body, bytes) and len(body) > PIECE:
            request._payload_writer = PieceWriter(request.protocol, self._loop, self.unsent)
        elif self.ready is not None and (offer := request.get(_OFFER)) is not None:
            cast(_Connection, request.protocol).watch(request, response, offer, self.ready)
        return response

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        if self.dismissing or message.upgrade:
            # the parser ignores everything after a request to upgrade: close, so that the client does not wait for it
            message = message._replace(should_close=True)
        return super()._make_request(message, payload, protocol, writer, task)


#: Bytes of an unread body that aiohttp reads after the answer, so that the connection can take the next request.
_MOST_UNREAD: Final = 1 << 20


def _may_follow(request: web.BaseRequest) -> bool:
    """Whether another request may follow one whose body was not read to its end.

    Otherwise the connection is closed after the answer. aiohttp still reads from it for a moment (`lingering_time`):
    a socket that is closed with unread bytes is reset, and the client could lose the answer (RFC 9112, 9.6).
    """
    if expects_continue(request) or request._message.chunked:
        # a client that was not told to go on may send the body, or the next request
        return False
    return int(request.headers.get("Content-Length", "0")) - request._payload.total_bytes <= _MOST_UNREAD


#: Bytes of pipelined requests that wait behind the one being answered; above this, reading pauses.
_MOST_BEHIND: Final = 64 << 10


class _Connection(RequestHandler):
    """A connection. Between two requests, the next one may be answered at once, from the table of ready answers; the
    parser then sees nothing of it. All else goes to aiohttp.

        between requests ── bytes of a ready answer ──> written ──┬── the client reads ──> between requests
               ^                                                  └── not yet ──> watched, as every answer is
               │          ── other bytes ──> aiohttp ── answered, and exactly one request was read ───┐
               └──────────────────────────────────────────────────────────────────────────────────────┘
    """

    __slots__ = (
        "_behind",
        "_between",
        "_key",
        "_late",
        "_limiter",
        "_ready",
        "_ready_here",
        "_slow",
        "_stays",
        "_unsent",
        "asked",
        "client",
        "held",
    )

    def __init__(self, server: RegistryServer, limiter: ConnectionLimiter, unsent: Unsent, **more: Any) -> None:
        super().__init__(server, **more)
        self._parser = cast(Any, BoundedHeads(self._parser))
        self._limiter = limiter
        self._unsent = unsent
        self._stays = False
        self._key: str | None = None
        #: Bytes of the requests in `_messages`.
        self._behind = 0
        #: The timer of a head that is only partly received.
        self._late: asyncio.TimerHandle | None = None
        self._ready = server.ready
        self._ready_here: ListenerAnswers | None = None
        self.client = ""
        #: Bytes for which the table was asked in this turn of the event loop.
        self.held = b""
        #: True while every byte that has come belongs to a request that is whole.
        self._between = True
        #: The timer of an answer from the table that the client has not read yet.
        self._slow: asyncio.TimerHandle | None = None
        #: The bytes of the request under way, if they are all that came, and may be answered from the table next time.
        self.asked: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stays, key = self._limiter.enter(transport.get_extra_info("peername"))
        if stays:
            self._begin(cast(asyncio.Transport, transport), key, high=0)
        else:
            # aiohttp does not know this connection yet, and need not
            cast(asyncio.Transport, transport).abort()

    def secured(self, transport: asyncio.Transport, key: str | None) -> None:
        """Called instead of `connection_made` once the TLS handshake is done; `key` is that of
        `ConnectionLimiter.enter`.
        """
        # with 0 each write would pause and resume the transport
        self._begin(transport, key, high=1)

    def _begin(self, transport: asyncio.Transport, key: str | None, *, high: int) -> None:
        self._stays, self._key = True, key
        # a write waits until the socket has taken all of it
        transport.set_write_buffer_limits(high=high, low=0)
        super().connection_made(transport)
        peer = self.peername
        self.client = str(peer[0] if isinstance(peer, tuple) else peer or UNIX)
        # with a certificate, the caller is not anonymous
        if self._ready is not None and not transport.get_extra_info("peercert"):
            secure = transport.get_extra_info("sslcontext") is not None
            self._ready_here = self._ready.listener((secure, transport.get_extra_info("sockname")))

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._stays:
            return
        self._limiter.leave(self._key)
        self._in_time()
        self._has_read()
        super().connection_lost(exc)

    async def _drain_helper(self) -> None:
        """Every wait for the client to read happens here, whatever is being sent. Raises `ConnectionError`."""
        # an answer behind one from the table: the client is dropped once, and this answer knows why
        self._has_read()
        try:
            async with asyncio.timeout(self._limiter.stall):
                await super()._drain_helper()
        except TimeoutError as error:
            self.drop("stalled")
            raise ClientGone("read nothing for too long") from error

    def drop(self, reason: str) -> None:
        """End the connection without waiting for the client to read the rest."""
        self._limiter.dropped(reason, self.peername)
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._stays:
            return
        here, ready = self._ready_here, self._ready
        if here is None or ready is None:
            self._receive(data)
        elif self.held:
            # behind a request that the table was asked for in this turn of the event loop
            self.held += data
        elif self._between and len(data) <= LONGEST and data in here.entries and self._may_ask():
            self.held = data
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            ready.ask(here, self)
        else:
            self._pass_on(data)

    def _may_ask(self) -> bool:
        """Whether a request may be answered from the table now: no other one is under way."""
        return (
            self._is_waiting()
            and not (self._paused or self._close or self._force_close or self.transport is None)
            and not cast(RegistryServer, self._manager).dismissing
        )

    def send(self, answer: bytes) -> None:
        """See `Asking`."""
        self.held = b""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(answer)
        if self._paused:
            # a client gets as long to read this answer as any other
            self._slow = self._loop.call_later(self._limiter.stall, self._has_stalled, transport)

    def go_on(self) -> None:
        """See `Asking`."""
        data, self.held = self.held, b""
        if self.transport is not None:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        """Gives bytes to aiohttp, and watches how they are answered."""
        before = self._request_count
        is_first = self._between and self._is_waiting()
        here = self._ready_here
        self.asked = data if is_first and here is not None and is_whole(data) and here.is_repeated(data) else None
        self._receive(data)
        self._look_whether_between(data, before)

    def _receive(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        self._behind = self._behind + len(data) if self._messages else 0
        if self._behind > _MOST_BEHIND and not self._buffer_paused:
            self._pause_reading_for_buffer()
        if self._request_count != before:
            self._in_time()
        elif self._late is None and data and self._is_waiting():
            # no answer is under way and no request is complete: these bytes begin the head of one
            self._late = self._loop.call_later(self._limiter.head, self._too_late)

    def resume_writing(self) -> None:
        """Called once the client has read all that was written."""
        super().resume_writing()
        self._has_read()

    def _has_read(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _has_stalled(self, transport: asyncio.Transport) -> None:
        self._slow = None
        self._limiter.dropped("stalled", self.peername)
        # aiohttp may have closed it as idle meanwhile, which waits for the client as well
        transport.abort()

    def _look_whether_between(self, data: bytes, before: int) -> None:
        """After aiohttp's parser got `data`: whether it is at the beginning of a request now."""
        came = self._request_count - before
        if came != 1:
            self.asked = None
        if self._buffer_paused or self._upgraded:
            # the parser may have kept some of it
            self._between = False
        elif came:
            last = self._messages[-1][1] if self._messages else None
            # the last bytes of an end may have come alone
            ends = (data.endswith(END) or END.endswith(data)) if data else self._between
            self._between = last is EMPTY_PAYLOAD and ends
        elif data:
            self._between = False

    def watch(self, request: web.BaseRequest, response: web.StreamResponse, offer: Offer, ready: ReadyAnswers) -> None:
        """Put this answer in the table as soon as it is written, if the connection goes on after it."""
        asked, here = self.asked, self._ready_here
        self.asked = None
        if asked is None or here is None or response.keep_alive is False:
            return
        request._payload_writer = WatchedWriter(self, self._loop, partial(ready.put, here, asked, offer))

    def _is_waiting(self) -> bool:
        # bytes that follow the last ones of a TLS handshake arrive before aiohttp's task has begun to wait
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())

    def _resume_reading_if_drained(self) -> None:
        """Called for each request taken from the queue, while reading is paused."""
        if self._behind > _MOST_BEHIND and self._messages:
            return
        self._behind = 0
        super()._resume_reading_if_drained()

    # -------------------------------------------------------------------- the socket, lent for a body (receiving.py)

    def lend(self, body: StreamReader) -> tuple[int, bytes] | None:
        """See `Lender.lend`."""
        transport = self.transport
        if transport is None or self.ssl_context is not None:
            return None
        plain = transport.get_extra_info("socket")
        if plain is None:
            return None
        try:
            socket = os.dup(plain.fileno())
        except OSError:
            # no descriptor is free; the body can also come through the transport
            return None
        self._pause_reading_for_buffer()
        pieces = []
        # if the parser has stopped because the body's buffer was full, reading makes it go on with what it has
        while piece := body.read_nowait():
            pieces.append(piece)
        return socket, b"".join(pieces)

    def give_back(self, body: StreamReader, rest: int) -> None:
        """See `Lender.give_back`."""
        if self.transport is None:
            return
        if rest:
            self._parser = cast(Any, RestOfBody(body, rest, self._parse_after))
        else:
            self._parser = cast(Any, self._new_parser())
            body.feed_eof()
        self._resume_reading_for_buffer()

    def _parse_after(self, data: bytes) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        parser = self._new_parser()
        self._parser = cast(Any, parser)
        return parser.feed_data(data)

    def _new_parser(self) -> BoundedHeads:
        """A parser like the connection's first one, at the beginning of a request."""
        return BoundedHeads(
            HttpRequestParser(
                self,
                self._loop,
                self._read_bufsize,
                max_line_size=self.max_line_size,
                max_field_size=self.max_field_size,
                max_headers=self.max_headers,
                payload_exception=RequestPayloadError,
                auto_decompress=False,
                max_msg_queue_size=self._max_msg_queue_size,
            )
        )

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self.drop("slow")

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Called for an error behind a request that was answered, as when aiohttp reads the rest of its body."""
        error = more.get("exc_info")
        if isinstance(error, RequestPayloadError):
            # whoever read the body has counted and answered it
            telemetry.log.info("malformed request", client=self.client, error=f"not a body that can be read: {error}")
        else:
            super().log_exception(*args, **more)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called for requests that the HTTP parser refused, and for handlers that raise, which ours do not."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if status >= 500:
            telemetry.log.error("connection crashed", reason=repr(exc))
        else:
            return _refused(request, status, reason_in(exc))
        response = error_response(MirrorError("an unexpected error; the log has more"), "-")
        response.set_status(status)
        response.force_close()
        return response


def _refused(request: web.BaseRequest, status: int, reason: str) -> web.Response:
    error = RequestError(f"not a request that can be read: {reason}")
    requests_of("malformed", status, Outcome.NONE.value).inc()
    telemetry.log.info("malformed request", client=_client(request), status=status, error=str(error))
    response = error_response(error, "-")
    response.set_status(status)
    response.force_close()
    return response
