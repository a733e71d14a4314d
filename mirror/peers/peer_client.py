"""Small requests to other replicas, on the event loop.

call ── is the member left alone? ──> PeerSilent, at once
   └── signed ── connected within 1 s ── answered within 2 s ── the answer is the member's ──> PeerAnswer
          ^          └────────────────────────┴──> PeerSilent: it is left alone for a while
          └── once: a connection that was kept from an earlier call ends before the answer

A process that ends, as in every reload, ends its connections, and the next request on one that was kept may be the
first to notice. That says nothing about the member, which is asked again on a new connection (RFC 9112, section 9.3.1).
So every verb must bear that a request comes twice, and each is signed anew: what was signed counts once.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from mirror import telemetry
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.policy.cluster.peer_signatures import ANSWER_HEADER, PeerRefused, content_digest

#: Seconds until a connection counts as failed, and until an answer does.
CONNECT: Final = 1.0
HEAD: Final = 2.0
#: Bytes of an answer.
_LARGEST: Final = 64 << 10
#: Seconds for which an idle connection stays open: less than the other side's `idle_timeout`.
_IDLE: Final = 15.0
_VERSION: Final = "Mirror-Version"


class PeerSilent(Exception):
    """A member did not answer, or is left alone because it did not answer before."""


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """The answer of a member; `headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class _NoAnswer(aiohttp.ClientConnectionError):
    """A connection has ended before the head of the answer, or could not be made."""


@dataclass(slots=True)
class _Way:
    """How a request goes to a member."""

    is_kept: bool = False


class PeerClient:
    """Asks other replicas. To be closed."""

    def __init__(
        self,
        signer: PeerSigner,
        health: PeerHealth,
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
        connect: float = CONNECT,
        head: float = HEAD,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`tls` shows the certificate of this replica, and `tls_name` is the name in those of the others; None for
        plain http. `connect` and `head` are seconds.
        """
        self._signer = signer
        self._health = health
        self._tls = tls
        self._tls_name = tls_name
        self._connect = connect
        self._head = head
        self._now = now
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<PeerClient {self._signer!r}>"

    async def aclose(self) -> None:
        """Close the connections. Repeatable."""
        if self._session is not None:
            await self._session.close()

    def ahead(self, member: str) -> float:
        """By how many seconds a member's clock is ahead, as far as it has said so; 0 otherwise."""
        return self._signer.ahead(member)

    async def call(
        self,
        member: str,
        verb: str,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        patience: float | None = None,
        insist: bool = False,
    ) -> PeerAnswer:
        """Sends a request with a small body; `verb` is its name in metrics, `patience` the seconds for the answer. With
        `insist`, a member is asked although it is left alone: what depends on it is worth the wait.

        Raises `PeerSilent`; `PeerRefused` if the answer is not that of the member.
        """
        ticket = self._health.admit(member)
        if ticket is None and not insist:
            telemetry.PEER_REQUESTS.labels(verb, "skipped").inc()
            raise PeerSilent(f"{member} did not answer before and is left alone for a while")
        began = self._now()
        try:
            answer = await self._ask(member, method, target, headers or {}, body, patience or self._head)
            if self._signer.learn(member, answer.status, answer.headers):
                answer = await self._ask(member, method, target, headers or {}, body, patience or self._head)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            reason = _reason(error)
            self._health.failed(member, ticket, reason)
            telemetry.PEER_REQUESTS.labels(verb, "silent").inc()
            raise PeerSilent(f"{member} does not answer: {reason}") from error
        except PeerRefused as error:
            # whatever answers there is not the member
            self._health.failed(member, ticket, str(error))
            telemetry.PEER_REQUESTS.labels(verb, "refused").inc()
            raise
        except BaseException:
            self._health.withdraw(member, ticket)
            raise
        seconds = self._now() - began
        self._health.answered(member, ticket, None, answer.headers.get(_VERSION.lower(), ""))
        telemetry.PEER_REQUESTS.labels(verb, "answered" if answer.status < 400 else "failed").inc()
        telemetry.PEER_SECONDS.labels(verb).observe(seconds)
        return answer

    async def _ask(
        self, member: str, method: str, target: str, headers: Mapping[str, str], body: bytes, patience: float
    ) -> PeerAnswer:
        way = _Way()
        async with asyncio.timeout(patience):
            try:
                return await self._exchange(self._opened(), way, member, method, target, headers, body)
            except _NoAnswer:
                if not way.is_kept:
                    raise
            # others that are kept may have ended as well
            async with self._session_of(keeps=False) as session:
                return await self._exchange(session, way, member, method, target, headers, body)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        way: _Way,
        member: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> PeerAnswer:
        sent = dict(headers)
        if body:
            sent["Mirror-Content-Digest"] = content_digest(body)
        if body or method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = str(len(body))
        signed = self._signer.sign(member, method, target, sent)
        sent["Authorization"] = signed.authorization
        async with session.request(
            method,
            URL(f"{member}{target}", encoded=True),
            headers=sent,
            data=body or None,
            allow_redirects=False,
            server_hostname=self._tls_name,
            trace_request_ctx=way,
        ) as response:
            content = await response.content.read(_LARGEST + 1)
            while len(content) <= _LARGEST and (more := await response.content.read(_LARGEST)):
                content += more
            found = {name.lower(): value for name, value in response.headers.items()}
            if response.status >= 400 and ANSWER_HEADER.lower() not in found:
                # whoever refuses does not sign: another secret, clock, version, or list of members
                raise PeerRefused("answer", f"it refuses this replica: {_shown(content)}")
            signed.check(response.status, found)
            if content and content_digest(content) != found.get("mirror-content-digest"):
                raise PeerRefused("answer", f"the content of the answer ({response.status}) was changed on the way")
            return PeerAnswer(response.status, found, content)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._session_of(keeps=True)
        return self._session

    def _session_of(self, *, keeps: bool) -> aiohttp.ClientSession:
        """`keeps`: connections stay open for the next requests."""
        connector = aiohttp.TCPConnector(
            ssl=self._tls if self._tls is not None else False,
            limit=0,
            use_dns_cache=False,
            **({"keepalive_timeout": _IDLE} if keeps else {"force_close": True}),
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_kept)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect),
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "mirror"},
            middlewares=[_send_once],
            trace_configs=[trace],
        )


async def _note_kept(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _event: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.is_kept = True


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Raises `_NoAnswer` instead of the errors after which aiohttp sends some requests again, as they were signed: they
    may have been taken, and on another connection that was kept they may fail like this again.
    """
    try:
        return await handler(request)
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError) as error:
        raise _NoAnswer(str(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _shown(content: bytes) -> str:
    """What a refusal says, for messages: it comes from nobody in particular."""
    text = content[:200].decode("ascii", "replace").strip()
    return "".join(char if char.isprintable() else "?" for char in text)
