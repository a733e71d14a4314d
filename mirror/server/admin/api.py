"""The admin API and the web page: they show the mirror's state and change it. They have their own listener and are
never on the public one. The table of operations is in `operations.py`.

    request ── from a page of another site? ──> 403
       ├── unix socket: file permissions decide ───────────────────────────────────────> done, as `unix:<user>`
       └── TCP ──┬─ rules name administrators ── caller identified? ── no ──> 401; not allowed ──> 403
                 └─ no such rules: loopback only (`config/checks.py`), with a loopback `Host` ──> done
                       an operation that changes something needs a header that no page of another site can send

Operations that change something and refusals (401, 403) are written to the audit log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

from aiohttp import web

from mirror import telemetry
from mirror.errors import (
    AlreadyRunning,
    BodyInvalid,
    BodyTooLarge,
    Denied,
    MirrorError,
    NotServed,
    RequestError,
    Unsupported,
)
from mirror.events.event_replies import ResentJson
from mirror.inspect.as_json import PinJson, PurgedJson, VictimsJson
from mirror.oci.reference import Repo
from mirror.oci.strict_json import read_json
from mirror.policy.access_rules import Identity
from mirror.policy.image_names import Image
from mirror.prefetch.job_record import JobJson
from mirror.prefetch.jobs import Jobs
from mirror.prefetch.sync import Sync
from mirror.replication.copy_run import CopiedJson
from mirror.replication.replications import Replications
from mirror.retention.retention_replies import RetentionRoundJson
from mirror.server.admin.assets import ASSETS, Asset
from mirror.server.admin.copy_admin import CopyAdmin, audited_fields
from mirror.server.admin.event_admin import EventAdmin
from mirror.server.admin.hosted_admin import DeletedJson, HostedAdmin, UndeletedJson
from mirror.server.admin.image_admin import ImageAdmin
from mirror.server.admin.mirror_status import MirrorStatus
from mirror.server.admin.operations import PREFIX, Operation, find, openapi
from mirror.server.admin.query_values import boolean
from mirror.server.admin.replies import MOST_IMAGES, ClientsJson, JobsJson, ReplicationJson, SyncRulesJson
from mirror.server.registry.access_control import AccessControl
from mirror.server.registry.request_steps import RequestSteps
from mirror.server.registry.responses import API_VERSION, SERVER, error_response, is_unchanged
from mirror.values.platforms import parse_platforms

#: A request over TCP that changes something must carry this header. A page of another site cannot send it without a
#: CORS preflight, which the mirror does not grant (WHATWG Fetch, "CORS-safelisted request-header").
HEADER: Final = "Mirror-Admin"

#: Bytes of a request body; a list of a thousand images fits several times.
_LARGEST_BODY: Final = 1 << 20
#: Seconds within which a whole body must arrive.
_BODY_IN: Final = 30.0

#: Names in the audit log, if they differ from the operation's own name.
_AUDITED: Final = {"run": "sync", "retain": "retention", "cancel": "cancel", "resend": "events"}


class AdminAudit(Protocol):
    """The log that changes are written to."""

    def record(self, **fields: object) -> None:
        """Write one entry. Raises nothing."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """The reply to a request that is not done yet; `location` is the path at which the client follows it."""

    body: JobJson
    location: str | None = None


@dataclass(slots=True)
class _Call:
    """A request. `value` is that of the `{…}` in its path. `caller` is set once the caller is identified, `identity` if
    rules say what that caller may do. `audited` are fields for the audit log.
    """

    request: web.BaseRequest
    value: str = ""
    caller: str | None = None
    identity: Identity | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    audited: dict[str, Any] = field(default_factory=dict)


_Action = Callable[[_Call], Awaitable[Mapping[str, Any] | _Accepted]]


@dataclass(frozen=True, slots=True)
class ShownSettings:
    """What the API shows of the configuration. `config` is all of it, without secrets. `clients` returns the
    configuration of container clients for the mirror's URL or, if that is empty, for the `Host` of the request; it
    raises `RequestError`.
    """

    config: Mapping[str, Any]
    clients: Callable[[str, str], ClientsJson]


@dataclass(frozen=True, slots=True)
class BackgroundWork:
    """What runs in the background, and can be asked for."""

    jobs: Jobs
    sync: Sync
    replications: Replications


class Admin:
    """Answers requests to the admin listener."""

    def __init__(
        self,
        work: BackgroundWork,
        images: ImageAdmin,
        status: MirrorStatus,
        hosted: HostedAdmin,
        copies: CopyAdmin,
        events: EventAdmin,
        *,
        parse_image: Callable[[str], Image],
        settings: ShownSettings,
        access: AccessControl | None = None,
        audit: AdminAudit | None = None,
    ) -> None:
        """`access` authenticates and authorises callers over TCP; without it, only loopback is served."""
        jobs = work.jobs
        self._jobs = jobs
        self._sync = work.sync
        self._replications = work.replications
        self.images = images
        self.hosted = hosted
        self.copies = copies
        self._events = events
        self._status = status
        self._parse_image = parse_image
        self._settings = settings
        self._access = access
        self._audit = audit
        self._document: Mapping[str, Any] | None = None
        self._numbers = itertools.count(1)
        self._actions: dict[str, _Action] = {
            "status": lambda _: status.status(),
            "history": lambda _: status.history(),
            "flights": lambda _: status.flights(),
            "upstreams": lambda _: status.upstreams(),
            "caches": lambda _: status.caches(),
            "images": lambda call: images.images(call.query),
            "image": lambda call: images.image(parse_image(call.value)),
            "purge": self._purge,
            "repositories": lambda call: hosted.repositories.page(call.query),
            "delete": self._delete,
            "deleted": lambda call: hosted.deleted(call.query),
            "damaged": lambda call: hosted.damaged(call.query),
            "undelete": self._undelete,
            "collection": lambda _: hosted.collection(),
            "collect": lambda _: hosted.collect(),
            "retention": lambda _: hosted.retention.last(),
            "retention_plan": lambda call: hosted.retention.plan(call.query),
            "retain": self._retain,
            "events": lambda call: events.events(call.query),
            "resend": self._resend,
            "pins": lambda call: images.pins(call.query),
            "pin": self._pin,
            "unpin": lambda call: images.unpin(self._image(call)),
            "plan": lambda call: images.plan(call.query),
            "evict": self._evict,
            "prefetch": self._prefetch,
            "copy": self._copy,
            "jobs": self._list_jobs,
            "job": lambda call: jobs.get(call.value),
            "cancel": self._cancel,
            "sync": self._list_rules,
            "run": self._run,
            "replication": self._list_replications,
            "replicate": self._replicate,
            "clients": self._list_clients,
            "config": self._get_config,
            "openapi": self._get_document,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        target: str = request._message.path  # the raw target: aiohttp's URL is already decoded
        number = f"admin-{os.getpid():x}-{next(self._numbers):x}"
        operations, value = find(target.partition("?")[0])
        call = _Call(request, value)
        error: MirrorError | None = None
        try:
            await self._identify(call, operations.get(_method(request)))
            response = await self._answer(call, target, operations, number)
        except MirrorError as caught:
            error = caught
            response = error_response(error, number)
        except Exception:
            telemetry.log.exception("admin request crashed", id=number, method=request.method, path=target[:1024])
            error = MirrorError("an unexpected error; the log has more")
            response = error_response(error, number)
        if response.status == 405:
            response.headers["Allow"] = ", ".join(_allowed(operations))
        self._log(call, operations.get(_method(request)), response.status, number, error)
        return response

    async def _answer(self, call: _Call, target: str, operations: Mapping[str, Operation], number: str) -> web.Response:
        path, _, _query = target.partition("?")
        method = _method(call.request)
        if not operations:
            if (asset := ASSETS.get(path)) is None:
                raise NotServed("not a path of the admin API")
            if method != "GET":
                raise Unsupported(f"{method} is not possible here, only {', '.join(_allowed({}))}")
            return _asset_response(asset, call.request)
        operation = operations.get(method)
        if operation is None:
            raise Unsupported(f"{method} is not possible here, only {', '.join(_allowed(operations))}")
        if operation.changes:
            _refuse_without_header(call.request)
        call.query = _query_of(call.request, operation)
        reply = await self._actions[operation.name](call)
        status, location = (202, reply.location) if isinstance(reply, _Accepted) else (200, None)
        body = reply.body if isinstance(reply, _Accepted) else reply
        headers = {
            **API_VERSION,
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Request-Id": number,
        }
        if location is not None:
            headers["Location"] = location
        # encoding megabytes of JSON on the event loop would delay every pull
        return web.Response(status=status, body=await asyncio.to_thread(_encoded, body), headers=headers)

    def _log(
        self, call: _Call, operation: Operation | None, status: int, number: str, error: MirrorError | None
    ) -> None:
        request = call.request
        failure = {"error": f"{type(error).__name__}: {error}"} if error else {}
        quiet = request.method in ("GET", "HEAD") and error is None
        level = telemetry.log.debug if quiet else telemetry.log.info
        path = request._message.path[:1024]
        level(
            "admin request", id=number, method=request.method, path=path, status=status, caller=call.caller, **failure
        )
        if self._audit is None or not ((operation and operation.changes) or status in (401, 403)):
            return
        action = _AUDITED.get(operation.name, operation.name) if operation else "admin"
        about = {**call.audited, "reason": failure.get("error") or call.audited.get("reason")}
        self._audit.record(
            id=number, caller=call.caller, client=_client(request), action=action, status=status, **about
        )

    async def _identify(self, call: _Call, operation: Operation | None) -> None:
        """Returns only if the caller may use the admin API for this operation, and sets `call.caller`. Raises
        `Unauthorized`, `Denied`, `AccessUnavailable`.
        """
        request = call.request
        _refuse_other_sites(request)
        if (user := _user_of(request)) is not None:
            call.caller = user
        elif self._access is not None:

            def identified(identity: Identity) -> None:
                call.caller = str(identity)

            judge = self._access.known_caller if operation and operation.by_rights else self._access.administrator
            call.identity = await judge(request, identified)
        elif _is_loopback(request.headers.get("Host", "")):
            call.caller = "loopback"
        else:
            raise Denied("without a login, the admin API answers only requests to a loopback address")

    # -------------------------------------------------------------------------------------------------- operations

    def _image(self, call: _Call) -> Image:
        """The image in the path, which the audit log then names."""
        image = self._parse_image(call.value)
        call.audited |= {"repository": str(image.repo), "reference": str(image.reference)}
        return image

    async def _purge(self, call: _Call) -> PurgedJson:
        purged = await self.images.purge(self._image(call))
        call.audited |= {"bytes": purged["bytes"]}
        return purged

    async def _delete(self, call: _Call) -> DeletedJson:
        repo, image = self._hosted_image(call)
        at_once, force, dry_run = (boolean(call.query, name) for name in ("now", "force", "dry_run"))
        call.audited |= {"now": at_once or None, "forced": force or None, "dry_run": dry_run or None}
        caller = call.caller or ""
        steps = _first_step(call)
        deleted = await self.hosted.delete(
            repo, image, caller, at_once=at_once, force=force, dry_run=dry_run, steps=steps
        )
        call.audited |= {"manifests": len(deleted["manifests"]), "bytes": deleted["bytes"]}
        return deleted

    async def _undelete(self, call: _Call) -> UndeletedJson:
        repo, image = self._hosted_image(call)
        return await self.hosted.undelete(repo, image, call.caller or "", steps=_first_step(call))

    def _hosted_image(self, call: _Call) -> tuple[Repo, Image | None]:
        """The hosted repository in the path, and the image in it, which the audit log then names."""
        repo, image = self.hosted.parse(call.value, repository=boolean(call.query, "repository"))
        call.audited |= {"repository": str(repo), "reference": str(image.reference) if image else None}
        return repo, image

    async def _pin(self, call: _Call) -> PinJson:
        pinned = await self.images.pin(self._image(call), await _body(call.request, optional=True))
        call.audited |= {"reason": pinned["reason"] or None}
        return pinned

    async def _evict(self, call: _Call) -> VictimsJson:
        victims = await self.images.collect()
        call.audited |= {"bytes": victims["bytes"]}
        return victims

    async def _retain(self, call: _Call) -> RetentionRoundJson:
        done = await self.hosted.retention.run(call.query, call.caller or "")
        call.audited |= {"tags": done["tags"], "manifests": done["manifests"], "complete": done["complete"]}
        return done

    async def _resend(self, call: _Call) -> ResentJson:
        resent = await self._events.resend(call.query)
        call.audited |= {"endpoint": call.query.get("endpoint"), "events": resent["resent"]}
        return resent

    async def _list_jobs(self, _call: _Call) -> JobsJson:
        return {"jobs": await self._jobs.all()}

    async def _cancel(self, call: _Call) -> JobJson | _Accepted:
        call.audited |= {"job": call.value[:80]}
        job = await self._jobs.cancel(call.value)
        return _Accepted(job) if job.get("cancelling") else job

    async def _list_rules(self, _call: _Call) -> SyncRulesJson:
        return {"rules": await self._sync.status()}

    async def _run(self, call: _Call) -> _Accepted:
        call.audited |= {"rule": call.value[:100]}
        if await self._sync.busy(call.value):
            raise AlreadyRunning(f"{call.value} is being synced already")
        return await self._submit(call, "sync", {"rule": call.value})

    async def _list_replications(self, _call: _Call) -> ReplicationJson:
        return {"rules": await self._replications.status()}

    async def _replicate(self, call: _Call) -> _Accepted:
        call.audited |= {"rule": call.value[:100]}
        if await self._replications.busy(call.value):
            raise AlreadyRunning(f"{call.value} is running already")
        return await self._submit(call, "replicate", {"rule": call.value})

    async def _prefetch(self, call: _Call) -> _Accepted:
        arguments = read_prefetch(await _body(call.request), self._parse_image)
        call.audited |= {"images": arguments["images"]}
        return await self._submit(call, "prefetch", arguments)

    async def _submit(self, call: _Call, kind: str, arguments: Mapping[str, Any]) -> _Accepted:
        job = await self._jobs.submit(kind, arguments)
        call.audited |= {"job": job["id"]}
        return _Accepted(job, f"{PREFIX}/jobs/{quote(job['id'])}")

    async def _copy(self, call: _Call) -> CopiedJson:
        order = self.copies.read(await _body(call.request), call.caller or "", call.identity)
        call.audited |= {**audited_fields(order), "dry_run": order.dry_run or None}
        copied = await self.copies.copy(order, call.identity)
        call.audited |= audited_fields(order, copied)
        return copied

    async def _list_clients(self, call: _Call) -> ClientsJson:
        return self._settings.clients(call.query.get("mirror", ""), call.request.headers.get("Host", ""))

    async def _get_config(self, _call: _Call) -> Mapping[str, Any]:
        return self._settings.config

    async def _get_document(self, _call: _Call) -> Mapping[str, Any]:
        if self._document is None:
            self._document = await asyncio.to_thread(openapi, self._status.version)
        return self._document


def read_prefetch(body: object, parse_image: Callable[[str], Image]) -> dict[str, Any]:
    """The arguments of a prefetch job, validated, with full image names. Raises `BodyInvalid` with the mistakes, at
    most 20 of them.
    """
    if not isinstance(body, dict):
        raise BodyInvalid('not an object such as {"images": ["alpine:3.20"]}')
    mistakes = [f"{name[:40]!r}: no such field" for name in body if name not in ("images", "platforms", "referrers")]
    images, platforms = body.get("images"), body.get("platforms", [])
    parsed: list[str] = []
    if not _is_texts(images) or not images:
        mistakes.append("images: must be a list with at least one name")
    elif len(images) > MOST_IMAGES:
        mistakes.append(f"images: more than {MOST_IMAGES}")
    else:
        for text in images:
            try:
                parsed.append(str(parse_image(text)))
            except RequestError as error:
                mistakes.append(f"images: {error}")
    chosen: list[str] = []
    if not _is_texts(platforms):
        mistakes.append("platforms: must be a list such as ['linux/amd64']")
    else:
        try:
            chosen = [str(platform) for platform in parse_platforms(platforms)]
        except ValueError as error:
            mistakes.append(f"platforms: {error}")
    referrers = body.get("referrers", False)
    if not isinstance(referrers, bool):
        mistakes.append("referrers: must be true or false")
    if mistakes:
        raise BodyInvalid("; ".join(mistakes[:20]))
    return {"images": parsed, "platforms": chosen, "referrers": referrers}


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _first_step(call: _Call) -> RequestSteps:
    """Those of a request that has not stood still until now. Raises `StaleRequest`."""
    steps = RequestSteps.of(call.request)
    steps.go_on()
    return steps


async def _body(request: web.BaseRequest, *, optional: bool = False) -> object:
    """The parsed JSON body; None if it is empty and `optional`. Raises `BodyInvalid`, `BodyTooLarge`."""
    received = bytearray()
    try:
        async with asyncio.timeout(_BODY_IN):
            async for piece in request.content.iter_any():
                received += piece
                if len(received) > _LARGEST_BODY:
                    raise BodyTooLarge(f"more than {_LARGEST_BODY} bytes")
    except TimeoutError as error:
        raise BodyInvalid(f"the body did not arrive within {_BODY_IN:.0f} s") from error
    if optional and not received:
        return None
    try:
        read = read_json(bytes(received))
        # half of a surrogate pair is valid JSON but no valid text (RFC 8259, 8.2): it could not be encoded later
        json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BodyInvalid("not JSON in UTF-8") from error
    return read


def _query_of(request: web.BaseRequest, operation: Operation) -> dict[str, str]:
    """The query parameters by name. Raises `RequestError` for a parameter that the operation does not have, or that is
    repeated.
    """
    query = dict(request.query)
    unknown = [name for name in query if name not in operation.query]
    if unknown:
        raise RequestError(f"{unknown[0][:40]!r}: no such parameter")
    if len(request.query) > len(query):
        raise RequestError(f"{', '.join(query)}: a parameter is given more than once")
    return query


def _method(request: web.BaseRequest) -> str:
    """The method that the request is answered as. HEAD is answered like GET; the library omits the body (RFC 9110,
    9.3.2).
    """
    return "GET" if request.method == "HEAD" else request.method


def _allowed(operations: Mapping[str, Operation]) -> list[str]:
    """The methods of a path, for `Allow`; without operations the path is that of a file."""
    methods = list(operations) or ["GET"]
    return [*methods, "HEAD"] if "GET" in methods else methods


def _refuse_other_sites(request: web.BaseRequest) -> None:
    """Raise `Denied` for a request that a page of another site made. Such a page can make a browser send requests here,
    but not without these headers (WHATWG Fetch, "Origin header"; W3C, "Fetch Metadata Request Headers").
    """
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
    if origin is not None and (not host or _host_of(origin) != host.lower()):
        raise Denied("pages of other sites may not use the admin API")
    if request.headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        # following a link to the web page is harmless
        navigating = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method == "GET"
        if not navigating:
            raise Denied("pages of other sites may not use the admin API")


def _host_of(origin: str) -> str:
    """Host and port of an origin, in lower case; empty if it has none or cannot be parsed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _refuse_without_header(request: web.BaseRequest) -> None:
    if _user_of(request) is None and HEADER not in request.headers:
        raise Denied(f"over TCP, a request that changes something needs the header {HEADER}: 1")


def _user_of(request: web.BaseRequest) -> str | None:
    """The user at the other end of our unix socket, as `unix:<name>` (unix(7), SO_PEERCRED); None if the request came
    over TCP.
    """
    transport = request.transport
    connected = transport.get_extra_info("socket") if transport else None
    if connected is None or connected.family != socket.AF_UNIX:
        return None
    try:
        peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", peer)[1]
        return f"unix:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"unix:{uid}"
    except OSError:
        return "unix:?"


def _client(request: web.BaseRequest) -> str:
    return request.remote or "unix"


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, indent=1).encode() + b"\n"


def _asset_response(asset: Asset, request: web.BaseRequest) -> web.Response:
    if is_unchanged(request.headers.get("If-None-Match"), asset.tag):
        return web.Response(status=304, headers={**SERVER, "ETag": asset.headers["ETag"]})
    return web.Response(body=asset.content, headers=asset.headers)
