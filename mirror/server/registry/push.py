"""Pushes and deletions (distribution-spec, "Push" and "Content Management"): one function per verb. None of them knows
how a repository stores content.

An upload session, as its client sees it:

    POST ──> 202, Location ──> PATCH … ──> 202, Range ──> PUT ?digest= ──> 201: the blob is there
      │                          │ ^                       │
      │                          v │ GET: 204, Range       └── wrong digest: 400, the session stays
      │                         416, Range: a gap; nothing was appended
      ├── ?mount= ──> 201: the blob is there, or 202
      ├── ?digest= with the blob ──> 201: the blob is there
      └── DELETE ──> 204: nothing is left
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDict

from mirror.errors import DigestInvalid, MirrorError, SizeInvalid, Unsupported, UploadBroken, UploadOutOfOrder
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.manifest import LARGEST
from mirror.oci.reference import Repo
from mirror.oci.request import Kind, RegistryRequest
from mirror.policy.access_rules import Action
from mirror.ports import BlobObject
from mirror.repository.answers import BlobContent, BlobStat
from mirror.repository.protocol import Hosted, InBucket, Pusher, Upload, Writable
from mirror.server.registry.access_control import MountSource
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.receiving import ClientBody, Receiver
from mirror.server.registry.responses import API_VERSION

#: distribution-spec, "Pushing a blob in chunks": without `bytes`, inclusive on both ends.
_CHUNK: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")

_METHODS: Final = {
    Kind.UPLOAD: ("POST",),
    Kind.MANIFEST: ("GET", "HEAD", "PUT", "DELETE"),
    Kind.BLOB: ("GET", "HEAD", "DELETE"),
}
_SESSION_METHODS: Final = ("GET", "HEAD", "PATCH", "PUT", "DELETE")


@dataclass(frozen=True, slots=True)
class PushCall:
    """One request that pushes or deletes. `source` is what it names to mount a blob from; None if it names nothing."""

    request: web.BaseRequest
    wanted: RegistryRequest
    repository: Hosted
    pusher: Pusher
    record: RequestRecord
    receiver: Receiver
    source: MountSource | None = None


class Elsewhere(Protocol):
    """Upload sessions that other replicas of a cluster have."""

    def owner(self, session: str, repo: Repo, caller: str) -> str | None:
        """The other replica that has this session; None if this one may have it."""

    async def pass_on(self, member: str, call: PushCall) -> web.StreamResponse:
        """The answer of the replica that has the session. Raises `UploadUnknown` if it does not answer, and
        `ReplicaUnavailable` if it may have taken a part of the body.
        """


@dataclass(frozen=True, slots=True)
class Pushes:
    """How pushes are answered: who receives the bodies, and who has sessions that are not here; None: nobody else."""

    receiver: Receiver
    elsewhere: Elsewhere | None = None

    async def answer(self, call: PushCall) -> web.StreamResponse:
        """Answers a push or a deletion by a caller who may do it."""
        elsewhere, session = self.elsewhere, call.wanted.session
        if elsewhere is not None and session and call.request.method in _SESSION_METHODS:
            member = elsewhere.owner(session, call.repository.repo, call.pusher.name)
            if member is not None:
                return await elsewhere.pass_on(member, call)
        return await push(call)


class PushersBlobs:
    """The blobs of a repository for a caller who may push there: also those that the caller has reserved, or may."""

    def __init__(self, repository: Writable, pusher: Pusher) -> None:
        self._repository = repository
        self._pusher = pusher

    async def blob(self, digest: Digest) -> BlobContent:
        """See `Writable.blob_for_push`."""
        return await self._repository.blob_for_push(digest, self._pusher)

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`; nothing that is only reserved."""
        return await self._repository.blob_object(digest) if isinstance(self._repository, InBucket) else None

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """See `Writable.stat_for_push`."""
        return await self._repository.stat_for_push(digest, self._pusher)


def asked_action(method: str, wanted: RegistryRequest) -> Action:
    """The action that a request asks for. To ask how far an upload session is, or to end it, belongs to the push.

    Whether a manifest PUT moves a tag is not known yet: it asks for `PUSH`, and the repository asks about `OVERWRITE`
    once it knows.
    """
    if wanted.kind is Kind.UPLOAD:
        return Action.PUSH
    if method in ("GET", "HEAD"):
        return Action.PULL
    return Action.DELETE if method == "DELETE" else Action.PUSH


async def push(call: PushCall) -> web.StreamResponse:
    """Answers any push or deletion. Raises `Unsupported` for methods that a resource does not have."""
    session = bool(call.wanted.session)
    match call.wanted.kind, call.request.method:
        case Kind.UPLOAD, "POST" if not session:
            return await begin(call)
        case Kind.UPLOAD, "GET" | "HEAD" if session:
            return status(call)
        case Kind.UPLOAD, "PATCH" if session:
            return await append(call)
        case Kind.UPLOAD, "PUT" if session:
            return await complete(call)
        case Kind.UPLOAD, "DELETE" if session:
            return await cancel(call)
        case Kind.MANIFEST, "PUT":
            return await put_manifest(call)
        case Kind.MANIFEST, "DELETE":
            return await delete_manifest(call)
        case Kind.BLOB, "DELETE":
            return await delete_blob(call)
    allowed = _SESSION_METHODS if session else _METHODS.get(call.wanted.kind, ("GET", "HEAD"))
    raise Unsupported(f"{call.request.method} is not possible here", allowed)


# ----------------------------------------------------------------------------------------------------- uploads


async def begin(call: PushCall) -> web.Response:
    """`POST`: mounts a blob, takes a whole blob, or begins a session."""
    query, digest = call.wanted.query, None
    if (algorithm := query.get("digest-algorithm")) is not None and algorithm not in HEX_LENGTHS:
        raise DigestInvalid(f"not a supported algorithm ({', '.join(HEX_LENGTHS)}): {algorithm[:40]!r}")
    if "mount" in query:
        digest = Digest.parse(query["mount"])
        call.record.action, call.record.reference = "mount", str(digest)
        if await _mount(call, digest):
            return _created(call, digest)
        call.record.action = "push"
    elif "digest" in query:
        digest = Digest.parse(query["digest"])
        if _has_body(call.request):
            return await _post_blob(call, digest)
    session = await call.repository.begin_upload(call.pusher, digest=digest)
    return web.Response(status=202, headers=_session_headers(call, session, 0))


async def _mount(call: PushCall, digest: Digest) -> bool:
    if call.source is None:
        return await call.repository.mount(digest, None, call.pusher)
    for repo in call.source.repos:
        if await call.repository.mount(digest, repo, call.pusher):
            return True
    # the answer if the source is unknown, lacks the blob, or may not be pulled by the caller
    return False


async def _post_blob(call: PushCall, digest: Digest) -> web.Response:
    """A whole blob in one request. Its client does not know the session, so no error leaves one."""
    call.record.reference = str(digest)
    body = call.receiver.body(call.request)
    session = await call.repository.begin_upload(call.pusher, body.length, digest)
    upload = await call.repository.upload(session, call.pusher)
    try:
        await _received(call, body, upload.complete(body, digest))
    except MirrorError:
        await upload.cancel()
        raise
    finally:
        await upload.close()
    return _created(call, digest)


def status(call: PushCall) -> web.Response:
    """`GET` of a session: how many bytes it has."""
    offset = call.repository.upload_offset(call.wanted.session, call.pusher)
    return web.Response(status=204, headers=_session_headers(call, call.wanted.session, offset))


async def append(call: PushCall) -> web.Response:
    """`PATCH`: adds a chunk, or as much as the client sends."""
    async with _writing(call) as upload:
        body = call.receiver.body(call.request, upload.offset)
        _check_chunk(call, upload, body)
        await _received(call, body, upload.append(body))
        return web.Response(status=202, headers=_session_headers(call, call.wanted.session, upload.offset))


async def complete(call: PushCall) -> web.Response:
    """`PUT`: adds the last chunk, if there is one, and makes the blob."""
    if "digest" not in call.wanted.query:
        raise DigestInvalid("the parameter digest is missing")
    digest = Digest.parse(call.wanted.query["digest"])
    call.record.reference = str(digest)
    async with _writing(call) as upload:
        body = call.receiver.body(call.request, upload.offset)
        _check_chunk(call, upload, body)
        await _received(call, body, upload.complete(body, digest) if body.length != 0 else upload.commit(digest))
        return _created(call, digest)


async def cancel(call: PushCall) -> web.Response:
    """`DELETE` of a session."""
    async with _writing(call) as upload:
        await upload.cancel()
    return web.Response(status=204, headers=API_VERSION)


@asynccontextmanager
async def _writing(call: PushCall) -> AsyncIterator[Upload]:
    """The session of the request, for writing."""
    upload = await call.repository.upload(call.wanted.session, call.pusher)
    try:
        yield upload
    except (DigestInvalid, SizeInvalid, UploadBroken, UploadOutOfOrder):
        # the session stays: the client learns how far it is, and can go on there
        call.record.headers = _session_headers(call, call.wanted.session, upload.offset)
        raise
    finally:
        await upload.close()


async def _received(call: PushCall, body: ClientBody, work: Awaitable[int]) -> None:
    """Waits for work that receives the body. Whatever happens, the connection can be used for the answer afterwards."""
    try:
        await work
    finally:
        body.close()
        call.record.received += body.received


def _check_chunk(call: PushCall, upload: Upload, body: ClientBody) -> None:
    """Raises `UploadOutOfOrder` if the chunk does not begin where the session ends, `SizeInvalid` if its range
    contradicts the body's length.
    """
    header = call.request.headers.get("Content-Range")
    if header is None:
        return
    chunk = _CHUNK.fullmatch(header.strip())
    if not chunk:
        raise UploadOutOfOrder("Content-Range is not FIRST-LAST", upload.offset)
    first, last = int(chunk[1]), int(chunk[2])
    if first != upload.offset:
        raise UploadOutOfOrder(f"the chunk begins at {first}, the session has {upload.offset} bytes", upload.offset)
    if last < first:
        raise SizeInvalid(f"the range {first}-{last} ends before it begins")
    if body.length is not None and body.length != last - first + 1:
        raise SizeInvalid(f"the range {first}-{last} has {last - first + 1} bytes, the body {body.length}")


# --------------------------------------------------------------------------------------------------- manifests


async def put_manifest(call: PushCall) -> web.Response:
    """`PUT` of a manifest by tag or digest, under more tags with `?tag=`."""
    wanted = call.wanted
    if wanted.reference is None:
        raise TypeError("a manifest request without a reference")
    body = call.receiver.body(call.request)
    try:
        content = await body.read(LARGEST)
        call.record.received += len(content)
        media_type = call.request.headers.get("Content-Type", "").partition(";")[0].strip() or None
        pushed = await call.repository.put_manifest(wanted.reference, wanted.tags, content, media_type, call.pusher)
    finally:
        body.close()
    call.record.digest = pushed.digest
    if pushed.moved:
        call.record.action = Action.OVERWRITE.value
    headers = CIMultiDict(
        {
            **API_VERSION,
            "Location": f"/v2/{quote(wanted.name)}/manifests/{pushed.digest}{_namespace(wanted)}",
            "Docker-Content-Digest": str(pushed.digest),
        }
    )
    if pushed.subject is not None:
        headers["OCI-Subject"] = str(pushed.subject)
    for tag in wanted.tags:
        if tag in pushed.tags:
            headers.add("OCI-Tag", tag)
    return web.Response(status=201, headers=headers)


async def delete_manifest(call: PushCall) -> web.Response:
    """`DELETE` of a tag, or of a manifest with all its tags."""
    reference = call.wanted.reference
    if isinstance(reference, Digest):
        await call.repository.delete_manifest(reference, call.pusher)
    elif reference is not None:
        await call.repository.delete_tag(reference, call.pusher)
    return web.Response(status=202, headers=API_VERSION)


async def delete_blob(call: PushCall) -> web.Response:
    """`DELETE` of a blob: the repository no longer has it."""
    await call.repository.delete_blob(call.wanted.digest, call.pusher)
    return web.Response(status=202, headers=API_VERSION)


# ----------------------------------------------------------------------------------------------------- answers


def _created(call: PushCall, digest: Digest) -> web.Response:
    headers = {
        **API_VERSION,
        "Location": f"/v2/{quote(call.wanted.name)}/blobs/{digest}{_namespace(call.wanted)}",
        "Docker-Content-Digest": str(digest),
    }
    return web.Response(status=201, headers=headers)


def _session_headers(call: PushCall, session: str, offset: int) -> dict[str, str]:
    """Where the session is and how many bytes it has. `0-0` also stands for none (distribution says it like this)."""
    return {
        **API_VERSION,
        "Location": f"/v2/{quote(call.wanted.name)}/blobs/uploads/{session}{_namespace(call.wanted)}",
        "Docker-Upload-UUID": session,
        "Range": f"0-{max(0, offset - 1)}",
    }


def _namespace(wanted: RegistryRequest) -> str:
    return f"?ns={quote(wanted.query['ns'], safe='')}" if "ns" in wanted.query else ""


def _has_body(request: web.BaseRequest) -> bool:
    """Whether the client sends a body, which may be empty. Without one, `?digest=` begins a session as well."""
    return "Content-Length" in request.headers or request._message.chunked
