"""Cached blobs of other replicas, by blocking HTTP/1.1 in threads, as blobs of upstreams come.

    open ── signed request ── head, signed by the member ── first byte ──> a body, whose socket the kernel may splice
    offset ── HEAD of the same blob, on another connection ──> how far the member is

Every request has a connection of its own: one that was kept might belong to a process that has been replaced, and a
request that was signed is never sent twice. Who waits how long is for the caller to decide (`fills/peer_source.py`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from typing import Final

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamTimeout, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.peers.peer_client import CONNECT, PeerClient, PeerSilent
from mirror.peers.peer_signer import PeerSigner, SignedCall
from mirror.policy.cluster.blob_requests import GRANTED, HOPS, OFFSET, PART, SIZE, blob_target, range_headers
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.ports import Body
from mirror.upstream.http.body import HttpBody
from mirror.upstream.http.download import CONTENT, Answer, Cancel, Transfer
from mirror.upstream.http.transport import Endpoint, Timeouts, Tls

#: Seconds after which a head, or the next byte, is not waited for in any case: a member may wait in the queue of its
#: upstream for long.
_LONGEST: Final = 600.0
#: The name of a member in errors and metrics: addresses of replicas are nobody else's business.
_NAME: Final = "peer"
#: The names of the two requests in metrics.
_VERB: Final = "blob"
_OFFSET_VERB: Final = "offset"


class HttpPeerBlobs:
    """Implements `PeerBlobs`."""

    def __init__(
        self,
        signer: PeerSigner,
        client: PeerClient,
        executor: Executor,
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
    ) -> None:
        """`executor` runs the threads that wait for first bytes; each may wait for long. `tls` shows the certificate of
        this replica, and `tls_name` is the name in those of the others; None for plain http.
        """
        self._signer = signer
        self._client = client
        self._executor = executor
        self._tls = Tls() if tls is None else Tls(verify=tls, name=tls_name)
        self._transfers: dict[str, Transfer] = {}

    def __repr__(self) -> str:
        return f"<HttpPeerBlobs {self._signer!r}>"

    @asynccontextmanager
    async def open(
        self,
        member: str,
        repo: Repo,
        digest: Digest,
        start: int,
        stop: int | None = None,
        *,
        size: int | None,
        hops: int,
        heard: Callable[[], None],
        part: bool = False,
    ) -> AsyncIterator[Body]:
        """See `PeerBlobs`. Leaving the context closes the body; no thread may still read it."""
        loop, cancel, trace = asyncio.get_running_loop(), Cancel(), telemetry.trace_headers()

        def get() -> HttpBody:
            headers = {HOPS: str(hops), **trace, **({} if size is None else {SIZE: str(size)})}
            if part:
                headers[PART] = "yes"
            began = time.perf_counter()
            try:
                answer, signed = self._get(member, blob_target(repo, digest), headers, start, stop, cancel)
                body = _body_of(answer, signed, size)
            except BaseException as error:
                telemetry.PEER_REQUESTS.labels(_VERB, "left" if cancel.is_over else _result(error)).inc()
                raise
            telemetry.PEER_REQUESTS.labels(_VERB, "answered").inc()
            telemetry.PEER_SECONDS.labels(_VERB).observe(time.perf_counter() - began)
            try:
                loop.call_soon_threadsafe(heard)
                cancel.on(body)
                body.await_first()
            except BaseException:
                body.close()
                raise
            finally:
                cancel.on(None)
            return body

        opening = self._executor.submit(get)

        def leave() -> None:
            # it may still wait for a thread
            opening.cancel()
            cancel.now()

        body = await uninterrupted(asyncio.wrap_future(opening), stop=leave, unwanted=HttpBody.close)
        try:
            yield body
        finally:
            body.close()

    def _get(
        self, member: str, target: str, headers: dict[str, str], start: int, stop: int | None, cancel: Cancel
    ) -> tuple[Answer, SignedCall]:
        """The answer, and by what it is judged. A member that refuses our time is asked once more, by its own."""
        answer, signed = self._ask(member, target, headers, start, stop, cancel)
        if answer.status == 401:
            with suppress(PeerRefused):
                signed.check(answer.status, answer.fields)
                if self._signer.learn(member, answer.status, answer.fields):
                    return self._ask(member, target, headers, start, stop, cancel)
        return answer, signed

    def _ask(
        self, member: str, target: str, headers: dict[str, str], start: int, stop: int | None, cancel: Cancel
    ) -> tuple[Answer, SignedCall]:
        sent = {**headers, **range_headers(start, stop)}
        signed = self._signer.sign(member, "GET", target, sent)
        sent["Authorization"] = signed.authorization
        transfer = self._transfer(member)
        return transfer.get(f"{member}{target}", sent, start=start, stop=stop, attempts=1, cancel=cancel), signed

    def _transfer(self, member: str) -> Transfer:
        transfer = self._transfers.get(member)
        if transfer is None:
            # nothing else limits the rate: the watch of the source asks how far the member is
            times = Timeouts(connect=CONNECT, answer=_LONGEST, read=_LONGEST, lowest_rate=0.0)
            endpoint = Endpoint(_NAME, member, internal=True, tls=self._tls, timeouts=times)
            transfer = self._transfers[member] = Transfer(endpoint, most_idle=0, follows=False)
        return transfer

    async def offset(self, member: str, repo: Repo, digest: Digest) -> int | None:
        """See `PeerBlobs`."""
        try:
            answer = await self._client.call(member, _OFFSET_VERB, "HEAD", blob_target(repo, digest), {HOPS: "1"})
        except PeerSilent as error:
            raise UpstreamTimeout(str(error), upstream=_NAME) from error
        except PeerRefused as error:
            raise UpstreamInvalid(str(error), upstream=_NAME) from error
        if answer.status == 404:
            return None
        there = answer.headers.get(OFFSET.lower(), "")
        if answer.status != 200 or not there.isdecimal():
            raise _refusal(answer.status, "it does not say how far it is")
        return int(there)


def _body_of(answer: Answer, signed: SignedCall, size: int | None) -> HttpBody:
    """The body of an answer of the member that was asked. Raises `UpstreamError`."""
    body = answer.body
    try:
        try:
            signed.check(answer.status, answer.fields)
        except PeerRefused as error:
            raise UpstreamInvalid(f"{error}: {_shown(answer)}", upstream=_NAME, status=answer.status) from error
        if answer.status not in CONTENT or not isinstance(body, HttpBody):
            raise _refusal(answer.status, _shown(answer))
        if size is None and answer.fields.get(GRANTED) != "yes":
            raise UpstreamInvalid("the member does not say that the repository may have it", upstream=_NAME)
        if size is not None and body.size != size:
            raise UpstreamInvalid(f"the member has {body.size} bytes of a blob of {size}", upstream=_NAME)
    except BaseException:
        if body is not None:
            body.close()
        raise
    return body


def _result(error: BaseException) -> str:
    """The result of a request without a body, for metrics, as `PeerClient` has it."""
    if not isinstance(error, UpstreamError):
        return "silent"
    if isinstance(error, UpstreamInvalid):
        return "refused"
    return "silent" if error.status is None else "failed"


def _refusal(status: int, text: str) -> UpstreamError:
    """The error for an answer of the member that is not the blob: it is up, whatever it says."""
    message = f"the member answers {status}{f': {text}' if text else ''}"
    kind = UpstreamNotFound if status == 404 else UpstreamUnavailable
    return kind(message, upstream=_NAME, status=status)


def _shown(answer: Answer) -> str:
    text = answer.content[:200].decode("ascii", "replace").strip()
    return text if text.isprintable() else ""
