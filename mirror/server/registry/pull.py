"""GET and HEAD of everything that can be pulled: one function per resource. None of them knows where content is
stored.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence, Sized
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

from aiohttp import HttpVersion11, web

from mirror.errors import MirrorError, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import Repo
from mirror.oci.request import RegistryRequest, parse_page
from mirror.oci.span import Span, parse_ranges
from mirror.policy.send_limit import WITHHELD, may_send_of_part
from mirror.repository.answers import BlobContent, BlobStat, ManifestAnswer, Outcome, PartialContent
from mirror.repository.protocol import Fetchable, GivesParts, Readable
from mirror.server.registry.byteranges import Byteranges
from mirror.server.registry.redirects import Redirects
from mirror.server.registry.responses import (
    API_VERSION,
    age_warning,
    blob_headers,
    cache_status,
    is_unchanged,
    link_to_next,
    link_to_referrers,
    manifest_headers,
    unverified_headers,
)
from mirror.server.registry.sending import ClientGone, Sender, WaitPast, up_to

#: Most tags in one page (CVE-2023-2253: an `n` of any size caused an allocation of any size).
_MOST_TAGS = 10_000
#: Pages of referrers that are looked through for the first one with referrers of the type that is asked for: not every
#: client follows links.
_MOST_LOOKS = 8


@dataclass(slots=True)
class RequestRecord:
    """Facts about a request, gathered while it is answered, for the log and the metrics. `sent` counts bytes of the
    body; `error` is the error and its message.
    """

    outcome: Outcome = Outcome.NONE
    upstream: str | None = None
    sent: int = 0
    error: str | None = None
    #: The caller, if callers are identified.
    caller: str | None = None
    #: What the caller's token is limited to, as in a `scope` parameter; None: to nothing.
    scope: str | None = None
    #: The repository and reference of the request, once known.
    repository: str | None = None
    reference: str | None = None
    #: The digest that was answered for a manifest, and why a tag's answer may differ from upstream's.
    digest: Digest | None = None
    tag_override: str | None = None
    notes: dict[str, object] = field(default_factory=dict)
    #: What a push or deletion does, as in the audit log, and how many bytes of its body were received.
    action: str = "pull"
    received: int = 0
    #: The bytes that the client was sent to the bucket for; None if it was not.
    redirected: int | None = None
    #: What the repository answered, for whoever offers it to the fast path; None once the request is noted.
    answer: ManifestAnswer | BlobStat | None = None
    #: Headers that the answer has even if it is an error.
    headers: Mapping[str, str] = field(default_factory=dict)


class Blobs(Protocol):
    """The part of `Readable` that serves blobs."""

    async def blob(self, digest: Digest) -> BlobContent:
        """See `Readable.blob`."""

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """See `Readable.stat_blob`."""


class Listed(Protocol):
    """Repositories in the order of their names."""

    def after(self, place: str, count: int, shown: Sized) -> AsyncGenerator[Sequence[Repo], None]:
        """See `mirror.graph.listed_repositories.ListedRepositories.after`."""


def base() -> web.Response:
    """`GET /v2/`: says that this is a registry (distribution-spec, "Determining Support")."""
    return web.Response(body=b"{}", headers={**API_VERSION, "Content-Type": "application/json"})


async def manifest(
    request: web.BaseRequest, wanted: RegistryRequest, repository: Readable, record: RequestRecord
) -> web.StreamResponse:
    """A manifest or index, byte for byte as upstream has it. A HEAD sends at most a HEAD to upstream."""
    if wanted.reference is None:
        raise TypeError("a manifest request without a reference")
    head = request.method == "HEAD"
    answer = await (repository.resolve if head else repository.manifest)(wanted.reference)
    if not head and answer.outcome is Outcome.MISS and isinstance(repository, Fetchable):
        repository.fetch_ahead(answer)
    record.outcome, record.upstream, record.digest = answer.outcome, answer.upstream, answer.digest
    if answer.override is not None:
        record.tag_override = record.notes["tag"] = answer.override.value
    headers = manifest_headers(answer)
    _note_namespace(headers, wanted)
    if is_unchanged(request.headers.get("If-None-Match"), answer.digest):
        del headers["Content-Length"]
        return web.Response(status=304, headers=headers)
    record.answer = answer
    if head:
        return web.Response(headers=headers)
    record.sent = answer.size
    return web.Response(body=answer.content, headers=headers)


async def blob(
    request: web.BaseRequest,
    wanted: RegistryRequest,
    repository: Blobs,
    record: RequestRecord,
    sender: Sender,
    redirects: Redirects | None = None,
    lazy_for: str | None = None,
) -> web.StreamResponse:
    """A blob or a part of it, or where it can be read. An error after the headers breaks the connection, so that a
    short body never looks complete. `lazy_for` is the address of a client that may be sent unverified parts; None: no
    route allows them.
    """
    if request.method == "HEAD":
        blob = await repository.stat_blob(wanted.digest)
        record.outcome, record.upstream = blob.outcome, blob.upstream
        if is_unchanged(request.headers.get("If-None-Match"), wanted.digest):
            return web.Response(status=304, headers=blob_headers(wanted.digest, None, blob.outcome))
        record.answer = blob
        headers = blob_headers(wanted.digest, blob.size, blob.outcome)
        _note_namespace(headers, wanted)
        return web.Response(headers=headers)
    if redirects is not None and (redirected := await _redirect(request, wanted, repository, record, redirects)):
        return redirected
    if lazy_for is not None and (sent := await _lazy_parts(request, wanted, repository, record, sender, lazy_for)):
        return sent
    content = await repository.blob(wanted.digest)
    try:
        record.outcome, record.upstream = content.outcome, content.upstream
        if is_unchanged(request.headers.get("If-None-Match"), wanted.digest):
            return web.Response(status=304, headers=blob_headers(wanted.digest, None, content.outcome))
        header = _range_header(request, wanted)
        size = content.size
        if size is None and (header is not None or request.version < HttpVersion11):
            # without the size, neither a part can be answered nor a body without chunks be ended: wait for the whole
            # blob
            await content.wait_past(sys.maxsize)
            size = content.size
        if size is not None and size <= WITHHELD:
            # a small blob is not sent before its digest is verified: a damaged one can then still be answered with an
            # error
            with suppress(StoreError):
                await content.wait_past(0)
        spans = _spans(header, size, content)
        span = spans[0] if len(spans) == 1 else None
        several = Byteranges(spans, size) if len(spans) > 1 and size is not None else None
        headers = blob_headers(wanted.digest, size, content.outcome, span)
        _note_namespace(headers, wanted)
        if content.source:
            headers["Cache-Status"] += f"; detail={content.source}"
            record.notes["source"] = content.source
        if several:
            headers |= several.headers
            record.notes["parts"] = len(spans)
        response = web.StreamResponse(status=206 if spans else 200, headers=headers)
        if size is None:
            response.enable_chunked_encoding()
        with _broken_on_errors(request, record):
            await response.prepare(request)
            if several:
                await _send_several(request, response, content, several, record, sender)
            else:
                await _send(request, response, content, span, size, record, sender)
        return response
    finally:
        content.close()


async def _lazy_parts(
    request: web.BaseRequest,
    wanted: RegistryRequest,
    repository: Blobs,
    record: RequestRecord,
    sender: Sender,
    client: str,
) -> web.StreamResponse | None:
    """Small parts of a blob that is not here, sent before the whole can be verified; None if they must not be."""
    header = _range_header(request, wanted)
    if header is None or is_unchanged(request.headers.get("If-None-Match"), wanted.digest):
        return None
    if not isinstance(repository, GivesParts):
        return None
    content = await repository.blob_parts(wanted.digest, header, record.caller or client)
    if content is None:
        return None
    try:
        record.upstream = content.upstream
        record.notes["unverified"] = True
        parts = content.parts
        several = Byteranges(parts, content.size) if len(parts) > 1 else None
        headers = unverified_headers(wanted.digest, content.size, content.outcome, parts[0])
        _note_namespace(headers, wanted)
        if several:
            del headers["Content-Range"]
            headers |= several.headers
            record.notes["parts"] = len(parts)
        response = web.StreamResponse(status=206, headers=headers)
        with _broken_on_errors(request, record):
            await response.prepare(request)
            await _send_pieces(request, response, content, several, record, sender)
        return response
    finally:
        record.outcome = content.outcome
        await content.aclose()


async def _send_pieces(
    request: web.BaseRequest,
    response: web.StreamResponse,
    content: PartialContent,
    several: Byteranges | None,
    record: RequestRecord,
    sender: Sender,
) -> None:
    def sent(count: int) -> None:
        record.sent += count

    async def write(piece: bytes) -> None:
        await sender.write(response, piece)
        sent(len(piece))

    first = True
    for head, part in several.parts() if several else [(b"", content.parts[0])]:
        if head:
            await write(head)
        async with aclosing(content.pieces(part)) as pieces:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    await write(piece)
                else:
                    here = up_to(piece.stop)
                    await sender.send(request, response, piece.reader, piece.start, piece.stop, here, sent, first=first)
                first = False
    if several:
        await write(several.end)


async def _redirect(
    request: web.BaseRequest, wanted: RegistryRequest, repository: Blobs, record: RequestRecord, redirects: Redirects
) -> web.Response | None:
    """Sends the client to the bucket, if it may read the blob there."""
    if is_unchanged(request.headers.get("If-None-Match"), wanted.digest):
        return None
    answer = await redirects.answer(request, wanted.digest, repository)
    if answer is None:
        return None
    response, asked = answer
    record.outcome = Outcome.REDIRECTED
    record.redirected = asked
    return response


def _range_header(request: web.BaseRequest, wanted: RegistryRequest) -> str | None:
    """The `Range` header; None if there is not exactly one, or `If-Range` names other content (RFC 9110, 13.1.5)."""
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip().strip('"') != str(wanted.digest):
        return None
    ranges = request.headers.getall("Range", [])
    return ranges[0] if len(ranges) == 1 else None


def _spans(header: str | None, size: int | None, content: BlobContent) -> tuple[Span, ...]:
    """The parts to send; empty: the whole blob. Raises `RangeInvalid`, `TooManyRanges`."""
    if size is None:
        return ()
    spans = parse_ranges(header, size)
    if len(spans) > 1 and content.reader is None:
        # a blob that bypasses the store arrives once, in order, and is verified at its end: send the whole, which
        # clients that ask for several ranges also accept
        return ()
    return spans


async def _send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    content: BlobContent,
    span: Span | None,
    size: int | None,
    record: RequestRecord,
    sender: Sender,
) -> None:
    start, stop = (span.start, span.stop) if span else (0, size)

    def sent(count: int) -> None:
        record.sent += count

    try:
        reader = content.reader
        if reader is not None:
            wait_past = _guarded(content, span, size) if span is not None and size is not None else content.wait_past
            await sender.send(request, response, reader, start, stop, wait_past, sent, first=True)
            return
    except StoreError as error:
        # the store failed in mid-body: the rest comes from upstream, verified, without the store
        record.notes["store"] = str(error)
        record.outcome = Outcome.BYPASS
    sent_span = Span(start, start + record.sent) if record.sent else None
    rest = (
        None
        if stop is None and sent_span is None
        else Span(start + record.sent, stop if stop is not None else sys.maxsize)
    )
    async with aclosing(content.from_upstream(rest, sent_span)) as pieces:
        async for piece in pieces:
            await sender.write(response, piece)
            sent(len(piece))
    if stop is not None and start + record.sent != stop:
        raise StoreError(f"{start + record.sent} bytes sent, {stop} were announced")


async def _send_several(
    request: web.BaseRequest,
    response: web.StreamResponse,
    content: BlobContent,
    several: Byteranges,
    record: RequestRecord,
    sender: Sender,
) -> None:
    """Send several parts. The last bytes of each part wait until the digest of the whole is verified. If the store
    fails in mid-body, the connection breaks: the rest would cost another download of the whole, and clients retry.
    """

    def sent(count: int) -> None:
        record.sent += count

    reader = content.reader
    if reader is None:
        raise StoreError(f"the store has given up on {content.digest}")
    try:
        await sender.send_parts(
            request,
            response,
            reader,
            several.parts(),
            several.end,
            lambda span: _guarded(content, span, several.size),
            sent,
        )
    except StoreError:
        content.failed()
        raise


def _guarded(content: BlobContent, span: Span, size: int) -> WaitPast:
    """The `wait_past` for a part of a blob that is still growing: the last bytes of the part, too, wait until the
    digest of the whole is verified. Otherwise a part from the middle would be a complete answer with unverified bytes.
    """

    async def wait_past(position: int) -> int:
        limit = may_send_of_part(await content.wait_past(position), span.stop, size)
        # everything may be sent once the whole is verified, and not before
        return limit if limit > position else await content.wait_past(size - 1)

    return wait_past


@contextmanager
def _broken_on_errors(request: web.BaseRequest, record: RequestRecord) -> Iterator[None]:
    """An error while a body is sent breaks the connection. That of the client, the store or upstream is noted, and ends
    here.
    """
    try:
        yield
    except ConnectionError as error:
        record.error = f"client: {error if isinstance(error, ClientGone) else 'left before the answer'}"
        _break(request)
    except MirrorError as error:
        record.error = f"{type(error).__name__}: {error}"
        _break(request)
    except BaseException:
        _break(request)
        raise


def _break(request: web.BaseRequest) -> None:
    """Abort the connection: after the headers, this is the only way to report an error."""
    if request.transport is not None:
        request.transport.abort()


async def tags(
    request: web.BaseRequest, wanted: RegistryRequest, repository: Readable, record: RequestRecord
) -> web.StreamResponse:
    """The tag list, or a page of it with `n` and `last` (distribution-spec, "Listing Tags")."""
    count, last = parse_page(wanted.query, most=_MOST_TAGS)
    listing = await repository.tags(last, count)
    record.outcome, record.upstream = listing.outcome, listing.upstream
    page = listing.items
    headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Status": cache_status(listing.outcome)}
    headers |= age_warning(listing.outcome)
    if page and listing.more:
        headers["Link"] = link_to_next(wanted.name, count, page[-1], wanted.query)
    _note_namespace(headers, wanted)
    return _json({"name": repository.repo.name, "tags": page}, headers, request, record)


async def catalog(
    request: web.BaseRequest,
    wanted: RegistryRequest,
    listed: Listed,
    record: RequestRecord,
    may_see: Callable[[Repo], bool] = lambda repo: True,
) -> web.StreamResponse:
    """The repositories in this cache, not those of the upstreams, under names that can be pulled from this mirror
    (Docker registry API); `may_see` tells which the caller may see.

    No more are listed and judged than the page needs, and others are answered meanwhile: there may be a hundred
    thousand. Raises `StoreError`.
    """
    count, last = parse_page(wanted.query, most=_MOST_TAGS)
    visible: list[str] = []
    async with aclosing(listed.after(last, count, visible)) as steps:
        # one more than the page has tells that there are more
        while len(visible) <= count and count and (step := await anext(steps, None)) is not None:
            visible += [str(repo) for repo in step if may_see(repo)]
            await asyncio.sleep(0)
    page = visible[:count]
    headers = {**API_VERSION, "Content-Type": "application/json"}
    if len(visible) > count:
        headers["Link"] = f'</v2/_catalog?n={count}&last={quote(page[-1], safe="")}>; rel="next"'
    return _json({"repositories": page}, headers, request, record)


async def referrers(
    request: web.BaseRequest, wanted: RegistryRequest, repository: Readable, record: RequestRecord
) -> web.StreamResponse:
    """A page of the referrers of a digest, as an index; an empty one if there are none (distribution-spec, "Listing
    Referrers"). `last` is the digest after which the page begins.
    """
    last, kind = wanted.query.get("last"), wanted.query.get("artifactType")
    after = None if last is None else Digest.parse(last)
    for _ in range(_MOST_LOOKS):
        listing = await repository.referrers(wanted.digest, after)
        manifests = [item.to_json() for item in listing.items if kind is None or (item.artifact_type or "") == kind]
        after = listing.items[-1].digest if listing.more and listing.items else None
        if manifests or after is None:
            break
    record.outcome, record.upstream = listing.outcome, listing.upstream
    headers = {**API_VERSION, "Content-Type": OCI_INDEX, "Cache-Status": cache_status(listing.outcome)}
    if kind is not None:
        headers["OCI-Filters-Applied"] = "artifactType"
    if after is not None:
        headers["Link"] = link_to_referrers(wanted.name, wanted.digest, str(after), wanted.query)
    headers |= age_warning(listing.outcome)
    _note_namespace(headers, wanted)
    return _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}, headers, request, record)


def _note_namespace(headers: dict[str, str], wanted: RegistryRequest) -> None:
    """Say by which `?ns=` the request was routed (distribution-spec, "Registry Proxying")."""
    namespace = wanted.query.get("ns")
    if namespace is not None and namespace.isascii():
        headers["OCI-Namespace"] = namespace


def _json(body: object, headers: dict[str, str], request: web.BaseRequest, record: RequestRecord) -> web.Response:
    text = json.dumps(body).encode()
    if request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": str(len(text))})
    record.sent = len(text)
    return web.Response(body=text, headers=headers)
