"""Answers the internal listener: only signed requests of other replicas, and only the verbs of the table.

    request ── head of at most 16 KiB ── signed by a member, for this replica, now ── nonce is new ── verb ── size ──┐
       │                                                                                                             │
       └── anything else: 4xx, with a short text that says what is wrong; counted, and logged now and then           │
                                                             answer, with a MAC over its status and headers <────────┘

Nothing of the public API is here, and nothing of this is on the public listener.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from mirror import telemetry
from mirror.errors import MirrorError, answer_for
from mirror.peers.members import ClusterMembers
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.used_nonces import NoncesFull, UsedNonces
from mirror.policy.cluster.peer_signatures import (
    ANSWER_HEADER,
    TIME_HEADER,
    PeerCall,
    PeerRefused,
    SignedParts,
    content_digest,
    sign_answer,
    verify,
)

#: Where the verbs are.
ROOT: Final = "/peer/v1/"
#: The header that says which version of the program a replica runs.
VERSION_HEADER: Final = "Mirror-Version"

_MOST_HEAD: Final = 16 << 10
#: Seconds for a small body, which follows its head at once.
_BODY: Final = 10.0
#: Seconds between two lines in the log about refused requests; metrics count every one.
_QUIET: Final = 60.0
#: Attempts to remember a nonce while another worker does so, and seconds between them.
_ATTEMPTS: Final = 20
_PAUSE: Final = 0.005


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """A request of another replica that was verified. `rest` is the raw target after the verb's own path."""

    request: web.BaseRequest
    call: PeerCall
    rest: str

    def seal(self, response: web.StreamResponse) -> None:
        """Signs an answer, which must have its final status and headers. For answers that the verb begins to send
        itself; others are sealed by the front.
        """
        response.headers[ANSWER_HEADER] = sign_answer(
            self.call.secret, response.status, self.call.nonce, response.headers
        )


#: Answers a request of another replica. `MirrorError` becomes the status that clients would get.
Answer = Callable[[PeerRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class PeerVerb:
    """One verb of the internal listener: its path below `ROOT`, which ends with `/` if more follows; the methods; and
    how many bytes a body may have, which is then signed (None: any number, and the body is not looked at).
    """

    path: str
    methods: frozenset[str]
    answer: Answer
    most_body: int | None = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path.strip("/"))

    def takes(self, path: str) -> bool:
        """True if a path, after `ROOT`, is one of this verb."""
        return path.startswith(self.path) if self.path.endswith("/") else path == self.path


class PeerFront:
    """The handler of the internal listener."""

    def __init__(
        self,
        verbs: Mapping[str, PeerVerb],
        members: ClusterMembers,
        secrets: ClusterSecrets,
        nonces: UsedNonces,
        *,
        cluster: str,
        version: str,
        doubt: Callable[[], Awaitable[None]] | None = None,
        tls_name: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`verbs` may be added to later. `version` is that of the program. `doubt` looks the members up again; None if
        they are configured. `tls_name` is a name that the certificates of peers must have; None without TLS.
        """
        self._verbs = verbs
        self._members = members
        self._secrets = secrets
        self._nonces = nonces
        self._cluster = cluster
        self._version = version
        self._doubt = doubt
        self._tls_name = tls_name
        self._now = now
        self._unlogged: Counter[str] = Counter()
        self._logged_at = float("-inf")

    def __repr__(self) -> str:
        return f"<PeerFront {self._members.own}: {', '.join(self._verbs)}>"

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request. Raises nothing but `CancelledError`, and errors of a connection that is gone."""
        try:
            call = await self._verified(request)
        except PeerRefused as error:
            return self._refuse(request, error)
        verb, response = "none", None
        try:
            found, rest = self._found(request)
            verb = found.name
            await _check_body(request, found)
            response = await found.answer(PeerRequest(request, call, rest))
        except PeerRefused as error:
            response = self._refuse(request, error)
        except MirrorError as error:
            response = _text(answer_for(error).status, f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            raise
        except Exception:
            telemetry.log.exception("request of peer crashed", peer=call.sender, verb=verb)
            response = _text(500, "an unexpected error; the log of this replica has more")
        telemetry.PEER_ANSWERS.labels(verb, response.status).inc()
        if not response.prepared:
            self._finish(response, call)
        return response

    def _finish(self, response: web.StreamResponse, call: PeerCall) -> None:
        """Signs an answer that is sent as a whole."""
        response.headers[VERSION_HEADER] = self._version
        body = response.body if isinstance(response, web.Response) else None
        if response.status not in (204, 304):
            length = len(body) if isinstance(body, bytes) else 0
            response.headers.setdefault("Content-Length", str(length))
            if isinstance(body, bytes) and body:
                response.headers["Mirror-Content-Digest"] = content_digest(body)
        response.headers[ANSWER_HEADER] = sign_answer(call.secret, response.status, call.nonce, response.headers)

    async def _verified(self, request: web.BaseRequest) -> PeerCall:
        """Raises `PeerRefused`."""
        target: str = request._message.path
        size = len(target) + sum(len(name) + len(value) + 4 for name, value in request._message.raw_headers)
        if size > _MOST_HEAD:
            raise PeerRefused("request", f"the head of the request has more than {_MOST_HEAD:,} bytes", 431)
        self._check_certificate(request)
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            if headers.setdefault(name.lower(), value) != value:
                raise PeerRefused("request", f"the header {name[:40]} is there twice", 400)
        parts = SignedParts(request.method, target, headers)
        try:
            call = self._verify(parts, headers)
        except PeerRefused as error:
            if error.reason != "member" or self._doubt is None:
                raise
            # it may have joined a moment ago
            await self._doubt()
            call = self._verify(parts, headers)
        if call.time < int(self._nonces.since(self._now())):
            raise PeerRefused("time", "the request was signed before this replica began", call=call)
        if not await self._use(call.nonce):
            raise PeerRefused("replay", "the request was taken before")
        return call

    def _verify(self, parts: SignedParts, headers: Mapping[str, str]) -> PeerCall:
        return verify(
            self._secrets.all(),
            parts,
            headers.get("authorization"),
            cluster=self._cluster,
            receiver=self._members.own,
            members=self._members.known(),
            now=self._now(),
        )

    async def _use(self, nonce: str) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                return self._nonces.use(nonce, self._now())
            except NoncesFull as error:
                if attempt == _ATTEMPTS - 1:
                    raise PeerRefused("full", str(error), 503) from error
            await asyncio.sleep(_PAUSE)
        raise AssertionError

    def _check_certificate(self, request: web.BaseRequest) -> None:
        """Whoever the authority has issued a certificate may connect; only replicas have this name."""
        if self._tls_name is None:
            return
        found = request.transport.get_extra_info("peercert") if request.transport is not None else None
        names = [value for kind, value in (found or {}).get("subjectAltName", ()) if kind == "DNS"]
        if self._tls_name.lower() not in (name.lower() for name in names):
            raise PeerRefused(
                "certificate", f"the certificate is not that of a replica: it lacks {self._tls_name}", 403
            )

    def _found(self, request: web.BaseRequest) -> tuple[PeerVerb, str]:
        """The verb that is asked for, and the rest of the target. Raises `PeerRefused`."""
        target: str = request._message.path
        if target.startswith(ROOT):
            path = target.removeprefix(ROOT)
            for verb in self._verbs.values():
                if not verb.takes(path):
                    continue
                if request.method not in verb.methods:
                    raise PeerRefused("request", f"{request.method} is no method of {verb.name}", 405)
                return verb, path.removeprefix(verb.path)
        raise PeerRefused("request", "not a path of the internal listener", 404)

    def _refuse(self, request: web.BaseRequest, error: PeerRefused) -> web.Response:
        telemetry.PEER_REFUSED.labels(error.reason).inc()
        self._unlogged[error.reason] += 1
        now = time.monotonic()
        if now - self._logged_at >= _QUIET:
            self._logged_at = now
            # an object of their own: reasons have the names of other fields, such as `time`
            counts = dict(self._unlogged)
            telemetry.log.warning(
                "peer requests refused", client=request.remote or "unix", reason=str(error), counts=counts
            )
            self._unlogged.clear()
        response = _text(error.status, str(error))
        if error.call is not None:
            response.headers[TIME_HEADER] = str(int(self._now()))
            self._finish(response, error.call)
        response.headers[VERSION_HEADER] = self._version
        # nothing more of a body is read from somebody who was refused
        response.force_close()
        return response


async def _check_body(request: web.BaseRequest, verb: PeerVerb) -> None:
    """Raises `PeerRefused` for a body that is too large or that the signature does not cover."""
    if verb.most_body is None:
        return
    if request._message.chunked:
        raise PeerRefused("request", "the length of the body is missing", 411)
    # aiohttp has checked that it is a number
    if int(request.headers.get("Content-Length", "0")) > verb.most_body:
        raise PeerRefused("request", f"the body has more than {verb.most_body:,} bytes", 413)


async def small_body(peer: PeerRequest, patience: float = _BODY) -> bytes:
    """The body of a request, whose digest is signed, within `patience` seconds. Raises `PeerRefused`."""
    try:
        async with asyncio.timeout(patience):
            content: bytes = await peer.request.read()
    except TimeoutError as error:
        # the machine of the sender may be gone: nothing else would ever end this
        raise PeerRefused("request", "the body has not come in time", 408) from error
    except (ConnectionError, ValueError) as error:
        raise PeerRefused("request", "the body broke off", 400) from error
    if content_digest(content) != peer.request.headers.get("Mirror-Content-Digest"):
        raise PeerRefused("signature", "the body is not the one that was signed", 400)
    return content


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text[:500]}\n", headers={"Server": "mirror"})
