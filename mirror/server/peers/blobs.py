"""Gives cached blobs to other replicas: from the store, or from the growing file while they arrive.

    GET ──┬─ it says the size ── head, at once ── may it have it, where is it? ── bytes … ──> done
          │                                                └── no, an error ──> the connection breaks
          └─ it does not ─────── may it have it, where is it? ──┬── head, `Mirror-Granted` ── bytes … ──> done
                                                                └── 404, 503, …
    HEAD ── how far is it? ──> `Mirror-Offset`, 404

A replica that says the size has the right already, and its answer must not wait for an upstream: its patience is that
for a process, not for a registry. To any other, the answer is that of this replica's own upstream, for the same
repository. As to clients, the last bytes are sent when the digest of the whole is verified; a small
part that a replica asks for as such comes at once, unverified, if the route here says so too.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing, nullcontext
from typing import Final, Protocol

from aiohttp import web

from mirror import telemetry
from mirror.errors import BlobUnknown, MirrorError, RangeInvalid, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.oci.span import Span
from mirror.policy.cluster.blob_requests import (
    GRANTED,
    OFFSET,
    PATH,
    BlobRequest,
    blob_target,
    is_loop,
    parse_blob_request,
)
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.repository.answers import BlobContent, PartialContent
from mirror.server.peers.peer_front import PeerRequest, PeerVerb
from mirror.server.registry.sending import Sender, up_to

_OCTETS: Final = "application/octet-stream"


class BlobsForPeers(Protocol):
    """The cached blobs of one repository (`ProxiedBlobs`)."""

    async def blob(self, digest: Digest) -> BlobContent:
        """See `Readable.blob`."""

    async def part_for_peer(self, digest: Digest, part: Span, size: int, by: str) -> PartialContent | None:
        """A part that may be sent unverified; None if it is to be sent like any other bytes."""

    async def offset(self, digest: Digest) -> int | None:
        """How many bytes of the blob could be sent now; None if it is neither here nor fetched."""

    def waits_for(self, digest: Digest) -> str:
        """The member from which the blob is fetched now; empty if it is fetched from none."""


class FindBlobs(Protocol):
    """Finds the blobs of a repository (`Router.for_peer`)."""

    def __call__(self, repo: Repo, *, hops: int, besides: Collection[str]) -> BlobsForPeers | None:
        """None if no blobs of this repository are given to other replicas."""


class PeerBlobAnswers:
    """Answers `blob` of the internal listener."""

    def __init__(self, find: FindBlobs, sender: Sender) -> None:
        self._find = find
        self._sender = sender

    def __repr__(self) -> str:
        return "<PeerBlobAnswers>"

    def verb(self) -> PeerVerb:
        """The verb that is answered here."""
        return PeerVerb(PATH, frozenset({"GET", "HEAD"}), self)

    async def __call__(self, peer: PeerRequest) -> web.StreamResponse:
        """Answers a request. Raises `PeerRefused`, and before the head `MirrorError`."""
        try:
            wanted = parse_blob_request(peer.rest, peer.request.headers)
        except ValueError as error:
            raise PeerRefused("request", str(error), 400) from error
        if is_loop(wanted):
            return _text(508, f"{wanted.hops} replicas wait for this answer")
        blobs = self._find(wanted.repo, hops=wanted.hops, besides=(peer.call.sender,))
        if blobs is None:
            raise BlobUnknown(f"no blobs of {wanted.repo} are given to other replicas")
        if peer.request.method == "HEAD":
            offset = await blobs.offset(wanted.digest)
            if offset is None:
                raise BlobUnknown(f"{wanted.digest} is neither here nor fetched")
            return web.Response(headers={OFFSET: str(offset)})
        if blobs.waits_for(wanted.digest) == peer.call.sender:
            return _text(508, "this replica waits for that one")
        path = blob_target(wanted.repo, wanted.digest)
        with telemetry.request_span("GET", path, peer.request.headers) or nullcontext() as span:
            try:
                response = await (self._at_once if wanted.size is not None else self._granted)(peer, wanted, blobs)
            except ConnectionError:
                # it has left; nobody reads this
                _abort(peer)
                response = _text(400, "the other replica has left")
            if span is not None:
                span.note(http__response__status_code=response.status, mirror__peer=peer.call.sender)
            return response

    async def _at_once(self, peer: PeerRequest, wanted: BlobRequest, blobs: BlobsForPeers) -> web.StreamResponse:
        response = await _begin(peer, wanted, wanted.size)
        if wanted.is_part and await self._send_part(peer, wanted, blobs, response):
            return response
        try:
            content = await blobs.blob(wanted.digest)
        except MirrorError as error:
            _break(peer, wanted, error)
            return response
        except BaseException:
            _abort(peer)
            raise
        try:
            if content.size not in (None, wanted.size):
                raise StoreError(f"{wanted.digest} has {content.size} bytes here, and {wanted.size} there")
            await self._send(peer, response, content, wanted.start, _end(wanted, wanted.size))
        except MirrorError as error:
            _break(peer, wanted, error)
        finally:
            content.close()
        return response

    async def _send_part(
        self, peer: PeerRequest, wanted: BlobRequest, blobs: BlobsForPeers, response: web.StreamResponse
    ) -> bool:
        """Sends a small part as it comes, unverified. False if it must be sent in the ordinary way."""
        if wanted.size is None or wanted.stop is None:
            return False
        try:
            content = await blobs.part_for_peer(
                wanted.digest, Span(wanted.start, wanted.stop), wanted.size, peer.call.sender
            )
            if content is None:
                return False
            try:
                await self._send_pieces(peer, response, content)
            finally:
                await content.aclose()
        except MirrorError as error:
            _break(peer, wanted, error)
        except BaseException:
            _abort(peer)
            raise
        return True

    async def _send_pieces(self, peer: PeerRequest, response: web.StreamResponse, content: PartialContent) -> None:
        sent = telemetry.PEER_SENT_BYTES.inc
        first = True
        async with aclosing(content.pieces(content.parts[0])) as pieces:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    await self._sender.write(response, piece)
                    sent(len(piece))
                else:
                    here = up_to(piece.stop)
                    await self._sender.send(
                        peer.request, response, piece.reader, piece.start, piece.stop, here, sent, first=first
                    )
                first = False

    async def _granted(self, peer: PeerRequest, wanted: BlobRequest, blobs: BlobsForPeers) -> web.StreamResponse:
        content = await blobs.blob(wanted.digest)
        try:
            if content.reader is None:
                raise StoreError(f"the store of this replica cannot take {wanted.digest}")
            if content.size is not None and wanted.start >= max(content.size, 1):
                raise RangeInvalid("the range begins after the end of the blob", content.size)
            response = await _begin(peer, wanted, content.size, {GRANTED: "yes"})
            try:
                # without a size no part can be named: the whole is sent
                start = wanted.start if content.size is not None else 0
                await self._send(peer, response, content, start, _end(wanted, content.size))
            except MirrorError as error:
                _break(peer, wanted, error)
            return response
        finally:
            content.close()

    async def _send(
        self, peer: PeerRequest, response: web.StreamResponse, content: BlobContent, start: int, stop: int | None
    ) -> None:
        """Raises `MirrorError`."""
        if content.reader is None:
            # each replica would cause a download of its own here: it can do that itself
            raise StoreError(f"the store of this replica cannot take {content.digest}")
        try:
            sent = telemetry.PEER_SENT_BYTES.inc
            await self._sender.send(
                peer.request, response, content.reader, start, stop, content.wait_past, sent, first=True
            )
        except StoreError:
            content.failed()
            raise
        except MirrorError:
            raise
        except BaseException:
            _abort(peer)
            raise


async def _begin(
    peer: PeerRequest, wanted: BlobRequest, size: int | None, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    """Sends the head. `size` is that of the whole blob in bytes; None: not known."""
    response = web.StreamResponse(headers={"Content-Type": _OCTETS, **(headers or {})})
    if size is None:
        response.enable_chunked_encoding()
    else:
        stop = size if wanted.stop is None else min(wanted.stop, size)
        if wanted.start or stop < size:
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {wanted.start}-{stop - 1}/{size}"
        response.headers["Content-Length"] = str(stop - wanted.start)
    peer.seal(response)
    await response.prepare(peer.request)
    return response


def _end(wanted: BlobRequest, size: int | None) -> int | None:
    """Where what is sent ends; None: with the blob, whose size is not known."""
    return size if wanted.stop is None or size is None else min(wanted.stop, size)


def _break(peer: PeerRequest, wanted: BlobRequest, error: MirrorError) -> None:
    """After the head, a broken connection is the only way to say that no more comes."""
    telemetry.log.info(
        "blob not sent to peer",
        peer=peer.call.sender,
        repository=str(wanted.repo),
        digest=str(wanted.digest),
        reason=f"{type(error).__name__}: {error}",
    )
    _abort(peer)


def _abort(peer: PeerRequest) -> None:
    if peer.request.transport is not None:
        peer.request.transport.abort()


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
