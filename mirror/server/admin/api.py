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
from mirror.oci.strict_json import read_json
from mirror.policy.access_rules import Identity
from mirror.policy.image_names import Image
from mirror.prefetch.jobs import Jobs
from mirror.prefetch.sync import Sync
from mirror.server.admin.assets import ASSETS, Asset
from mirror.server.admin.image_admin import ImageAdmin
from mirror.server.admin.operations import PREFIX, Operation, find, openapi
from mirror.server.admin.traffic_log import TrafficLog
from mirror.server.admin.worker_status import Workers
from mirror.server.registry.access_control import AccessControl
from mirror.server.registry.responses import API_VERSION, SERVER, error_response, is_unchanged
from mirror.values.platforms import parse_platforms

#: A request over TCP that changes something must carry this header. A page of another site cannot send it without a
#: CORS preflight, which the mirror does not grant (WHATWG Fetch, "CORS-safelisted request-header").
HEADER: Final = "Mirror-Admin"

#: Bytes of a request body; a list of a thousand images fits several times.
_LARGEST_BODY: Final = 1 << 20
#: Seconds within which a whole body must arrive.
_BODY_IN: Final = 30.0
_MOST_IMAGES: Final = 2000

#: Names in the audit log, if they differ from the operation's own name.
_AUDITED: Final = {"run": "sync", "cancel": "cancel"}


class AdminAudit(Protocol):
    """The log that changes are written to."""

    def record(self, **what: object) -> None:
        """Write one entry. Raises nothing."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """The JSON body and status of an answer; `location` is the path at which the client follows the operation."""

    body: Mapping[str, Any]
    status: int = 200
    location: str | None = None


@dataclass(slots=True)
class _Asked:
    """A request. `given` is the value of the `{…}` in its path. `who` is the caller, once identified; `about` are
    fields for the audit log.
    """

    request: web.BaseRequest
    given: str = ""
    who: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def image(self, image: Image) -> Image:
        """Note for the audit log which image the request is about, and return that image."""
        self.about |= {"repository": str(image.repo), "reference": str(image.reference)}
        return image


_Action = Callable[[_Asked], Awaitable[_Reply]]


class Admin:
    """Answers requests to the admin listener."""

    def __init__(
        self,
        jobs: Jobs,
        sync: Sync,
        keeping: ImageAdmin,
        workers: Workers,
        traffic: TrafficLog,
        *,
        parse_image: Callable[[str], Image],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
        config: Mapping[str, Any],
        clients: Callable[[str, str], Mapping[str, Any]],
        version: str,
        gate: AccessControl | None = None,
        audit: AdminAudit | None = None,
    ) -> None:
        """`config` is the configuration without secrets. `clients` returns the configuration of container clients for
        the mirror's URL or, if that is empty, for the `Host` of the request; it raises `RequestError`. `gate`
        authenticates and authorises callers over TCP; without it, only loopback is served.
        """
        self._jobs = jobs
        self._sync = sync
        self._keeping = keeping
        self._workers = workers
        self._traffic = traffic
        self._parse_image = parse_image
        self._status = status
        self._config = config
        self._clients = clients
        self._document = openapi(version)
        self._gate = gate
        self._audit = audit
        self._numbers = itertools.count(1)
        self._actions: dict[str, _Action] = {
            "status": self._get_status,
            "history": self._get_history,
            "flights": self._get_flights,
            "upstreams": self._get_upstreams,
            "images": self._get_images,
            "image": self._get_image,
            "purge": self._purge,
            "pins": self._get_pins,
            "pin": self._pin,
            "unpin": self._unpin,
            "plan": self._plan,
            "evict": self._evict,
            "prefetch": self._prefetch,
            "jobs": self._get_jobs,
            "job": self._get_job,
            "cancel": self._cancel,
            "sync": self._get_sync,
            "run": self._run,
            "clients": self._get_clients,
            "config": self._get_config,
            "openapi": self._get_document,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        target: str = request._message.path  # the raw target: aiohttp's URL is already decoded
        name = f"admin-{os.getpid():x}-{next(self._numbers):x}"
        operations, given = find(target.partition("?")[0])
        asked = _Asked(request, given)
        error: MirrorError | None = None
        try:
            await self._admit(asked)
            response = await self._answer(asked, target, operations, name)
        except MirrorError as caught:
            error = caught
            response = error_response(error, name)
        except Exception:
            telemetry.log.exception("admin request crashed", id=name, method=request.method, path=target[:1024])
            error = MirrorError("an unexpected error; the log has more")
            response = error_response(error, name)
        if response.status == 405:
            response.headers["Allow"] = ", ".join(_allowed(operations))
        self._tell(asked, operations.get(_method(request)), response.status, name, error)
        return response

    async def _answer(self, asked: _Asked, target: str, operations: Mapping[str, Operation], name: str) -> web.Response:
        path, _, _query = target.partition("?")
        method = _method(asked.request)
        if not operations:
            if (asset := ASSETS.get(path)) is None:
                raise NotServed("not a path of the admin API")
            if method != "GET":
                raise Unsupported(f"{method} is not possible here, only {', '.join(_allowed({}))}")
            return _page(asset, asked.request)
        operation = operations.get(method)
        if operation is None:
            raise Unsupported(f"{method} is not possible here, only {', '.join(_allowed(operations))}")
        if operation.changes:
            _refuse_without_header(asked.request)
        asked.query = _query_of(asked.request, operation)
        reply = await self._actions[operation.name](asked)
        # encoding megabytes of JSON on the event loop would delay every pull
        return _response(reply, await asyncio.to_thread(_encoded, reply), name)

    def _tell(
        self,
        asked: _Asked,
        operation: Operation | None,
        status: int,
        name: str,
        error: MirrorError | None,
    ) -> None:
        request = asked.request
        trouble = {"trouble": f"{type(error).__name__}: {error}"} if error else {}
        quiet = request.method in ("GET", "HEAD") and error is None
        level = telemetry.log.debug if quiet else telemetry.log.info
        path = request._message.path[:1024]
        level("admin request", id=name, method=request.method, path=path, status=status, caller=asked.who, **trouble)
        if self._audit is None or not ((operation and operation.changes) or status in (401, 403)):
            return
        action = _AUDITED.get(operation.name, operation.name) if operation else "admin"
        about = {**asked.about, "reason": trouble.get("trouble") or asked.about.get("reason")}
        self._audit.record(id=name, caller=asked.who, client=_client(request), action=action, status=status, **about)

    # ------------------------------------------------------------------------------------------------ who may come in

    async def _admit(self, asked: _Asked) -> None:
        """Returns only if the caller may use the admin API; `asked.who` then says who it is. Raises `Unauthorized`,
        `Denied`, `AccessUnavailable`.
        """
        request = asked.request
        _refuse_other_sites(request)
        if (user := _user_of(request)) is not None:
            asked.who = user
        elif self._gate is not None:

            def told(identity: Identity) -> None:
                asked.who = str(identity)

            await self._gate.administrator(request, told)
        elif _means_us(request.headers.get("Host", "")):
            asked.who = "loopback"
        else:
            raise Denied("the admin API is asked by the loopback address alone")

    # ------------------------------------------------------------------------------------------------- what is done

    async def _get_status(self, _asked: _Asked) -> _Reply:
        return _Reply(await self._status())

    async def _get_history(self, _asked: _Asked) -> _Reply:
        return _Reply(await asyncio.to_thread(self._traffic.history))

    async def _get_flights(self, _asked: _Asked) -> _Reply:
        return _Reply({"flights": await self._workers.flights()})

    async def _get_upstreams(self, _asked: _Asked) -> _Reply:
        return _Reply({"upstreams": await self._workers.upstreams()})

    async def _get_images(self, asked: _Asked) -> _Reply:
        return _Reply(await self._keeping.images(asked.query))

    async def _get_image(self, asked: _Asked) -> _Reply:
        return _Reply(await self._keeping.image(self._parse_image(asked.given)))

    async def _purge(self, asked: _Asked) -> _Reply:
        purged = await self._keeping.purge(asked.image(self._parse_image(asked.given)))
        asked.about |= {"bytes": purged.bytes}
        return _Reply(purged.to_json())

    async def _get_pins(self, asked: _Asked) -> _Reply:
        return _Reply(await self._keeping.pins(asked.query))

    async def _pin(self, asked: _Asked) -> _Reply:
        image = asked.image(self._parse_image(asked.given))
        pinned = await self._keeping.pin(image, await _body(asked.request, optional=True))
        asked.about |= {"reason": pinned["reason"] or None}
        return _Reply(pinned)

    async def _unpin(self, asked: _Asked) -> _Reply:
        return _Reply(await self._keeping.unpin(asked.image(self._parse_image(asked.given))))

    async def _plan(self, asked: _Asked) -> _Reply:
        return _Reply(await self._keeping.plan(asked.query))

    async def _evict(self, asked: _Asked) -> _Reply:
        dropped = await self._keeping.collect()
        asked.about |= {"bytes": dropped["bytes"]}
        return _Reply(dropped)

    async def _get_jobs(self, _asked: _Asked) -> _Reply:
        return _Reply({"jobs": await self._jobs.all()})

    async def _get_job(self, asked: _Asked) -> _Reply:
        return _Reply(await self._jobs.get(asked.given))

    async def _cancel(self, asked: _Asked) -> _Reply:
        asked.about |= {"job": asked.given[:80]}
        job = await self._jobs.cancel(asked.given)
        return _Reply(job, 202 if job.get("cancelling") else 200)

    async def _get_sync(self, _asked: _Asked) -> _Reply:
        return _Reply({"rules": await self._sync.status()})

    async def _run(self, asked: _Asked) -> _Reply:
        asked.about |= {"rule": asked.given[:100]}
        if await self._sync.busy(asked.given):
            raise AlreadyRunning(f"{asked.given} is being synced already")
        return await self._submitted(asked, "sync", {"rule": asked.given})

    async def _prefetch(self, asked: _Asked) -> _Reply:
        arguments = read_prefetch(await _body(asked.request), self._parse_image)
        asked.about |= {"images": arguments["images"]}
        return await self._submitted(asked, "prefetch", arguments)

    async def _submitted(self, asked: _Asked, kind: str, arguments: Mapping[str, Any]) -> _Reply:
        job = await self._jobs.submit(kind, arguments)
        asked.about |= {"job": job["id"]}
        return _Reply(job, 202, f"{PREFIX}/jobs/{quote(job['id'])}")

    async def _get_clients(self, asked: _Asked) -> _Reply:
        return _Reply(self._clients(asked.query.get("mirror", ""), asked.request.headers.get("Host", "")))

    async def _get_config(self, _asked: _Asked) -> _Reply:
        return _Reply(self._config)

    async def _get_document(self, _asked: _Asked) -> _Reply:
        return _Reply(self._document)


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
        mistakes.append("images: not a list of names, with one at least")
    elif len(images) > _MOST_IMAGES:
        mistakes.append(f"images: more than {_MOST_IMAGES}")
    else:
        for text in images:
            try:
                parsed.append(str(parse_image(text)))
            except RequestError as error:
                mistakes.append(f"images: {error}")
    chosen: list[str] = []
    if not _is_texts(platforms):
        mistakes.append("platforms: not a list such as ['linux/amd64']")
    else:
        try:
            chosen = [str(one) for one in parse_platforms(platforms)]
        except ValueError as error:
            mistakes.append(f"platforms: {error}")
    referrers = body.get("referrers", False)
    if not isinstance(referrers, bool):
        mistakes.append("referrers: neither true nor false")
    if mistakes:
        raise BodyInvalid("; ".join(mistakes[:20]))
    return {"images": parsed, "platforms": chosen, "referrers": referrers}


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


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
        raise BodyInvalid("the body does not come") from error
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
        raise Denied("the admin API is not for pages of other sites")
    if request.headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        # following a link to the web page is harmless
        navigating = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method == "GET"
        if not navigating:
            raise Denied("the admin API is not for pages of other sites")


def _host_of(origin: str) -> str:
    """Host and port of an origin, in lower case; empty if it has none or cannot be parsed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _refuse_without_header(request: web.BaseRequest) -> None:
    if _user_of(request) is None and HEADER not in request.headers:
        raise Denied(f"over TCP, what changes something needs the header {HEADER}: 1")


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


def _means_us(host: str) -> bool:
    try:
        named = urlsplit(f"//{host}").hostname or ""
        return named == "localhost" or ipaddress.ip_address(named).is_loopback
    except ValueError:
        return False


def _encoded(reply: _Reply) -> bytes:
    return json.dumps(reply.body, indent=1).encode() + b"\n"


def _response(reply: _Reply, body: bytes, name: str) -> web.Response:
    headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Control": "no-store", "X-Request-Id": name}
    if reply.location:
        headers["Location"] = reply.location
    return web.Response(status=reply.status, body=body, headers=headers)


def _page(asset: Asset, request: web.BaseRequest) -> web.Response:
    if is_unchanged(request.headers.get("If-None-Match"), asset.tag):
        return web.Response(status=304, headers={**SERVER, "ETag": asset.headers["ETag"]})
    return web.Response(body=asset.content, headers=asset.headers)
