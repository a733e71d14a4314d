"""The admin API: what is going on, and what shall be done. On a listener of its own, never on the public one.

    GET    /admin/v1/status               version, worker, store, downloads under way
    POST   /admin/v1/prefetch             {"images": […], "platforms": […], "referrers": false} -> 202 and a job
    GET    /admin/v1/jobs                 all jobs, the newest first
    GET    /admin/v1/jobs/<id>            one, with its progress and result
    DELETE /admin/v1/jobs/<id>            cancel it; 202 while it ends, 200 once it is over
    GET    /admin/v1/sync                 the sync rules, with last result and next run
    POST   /admin/v1/sync/<name>/run      run one now -> 202 and a job

There is no authentication: who can connect to the listener (a unix socket of this user, or the loopback address) may do
everything. Pages of a browser on the same machine may not: what carries an `Origin`, or a foreign `Host`, is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

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
from mirror.policy.images import Image
from mirror.policy.platforms import parse_platforms
from mirror.server.answers import API_VERSION, error_response
from mirror.transfer.jobs import Jobs
from mirror.transfer.schedule import Sync

__all__ = ["Admin"]

_PREFIX: Final = "/admin/v1/"
#: In bytes; a list of a thousand images fits several times.
_LARGEST_BODY: Final = 1 << 20
#: Seconds that a body may take to come.
_BODY_IN: Final = 30.0
_MOST_IMAGES: Final = 2000


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a request is answered with; `location` is where to look on."""

    body: Mapping[str, Any]
    status: int = 200
    location: str | None = None


_Action = Callable[[web.BaseRequest], Awaitable[_Reply]]


class Admin:
    """Answers requests to the admin listener."""

    def __init__(
        self,
        jobs: Jobs,
        sync: Sync,
        *,
        parse_image: Callable[[str], Image],
        status: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._jobs = jobs
        self._sync = sync
        self._parse_image = parse_image
        self._status = status
        self._numbers = itertools.count(1)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        target: str = request._message.path  # as it came: aiohttp's URL is already decoded
        name = f"admin-{os.getpid():x}-{next(self._numbers):x}"
        allowed: list[str] = []
        try:
            _refuse_browsers(request)
            actions = self._actions(target.partition("?")[0])
            allowed += actions
            if request.method not in actions:
                raise Unsupported(f"{request.method} is not possible here, {' and '.join(actions)} is")
            reply = await actions[request.method](request)
        except MirrorError as error:
            response: web.StreamResponse = error_response(error, name)
            telemetry.log.info(
                "admin request", id=name, method=request.method, path=target[:1024], status=response.status,
                trouble=f"{type(error).__name__}: {error}",
            )  # fmt: skip
        except Exception:
            telemetry.log.exception("admin request crashed", id=name, method=request.method, path=target[:1024])
            response = error_response(MirrorError("an unexpected error; the log has more"), name)
        else:
            response = _response(reply, name)
            level = telemetry.log.debug if request.method == "GET" else telemetry.log.info
            level("admin request", id=name, method=request.method, path=target[:1024], status=response.status)
        if response.status == 405:
            response.headers["Allow"] = ", ".join(allowed)
        return response

    def _actions(self, path: str) -> dict[str, _Action]:
        """What can be done with a path, by method. Raises `NotServed`."""
        if not path.startswith(_PREFIX):
            raise NotServed("not a path of the admin API")
        first, _, rest = path.removeprefix(_PREFIX).partition("/")
        if not rest:
            single: dict[str, dict[str, _Action]] = {
                "status": {"GET": self._get_status},
                "prefetch": {"POST": self._prefetch},
                "jobs": {"GET": self._get_jobs},
                "sync": {"GET": self._get_sync},
            }
            if first in single:
                return single[first]
        elif first == "jobs" and "/" not in rest:
            job = unquote(rest)
            return {"GET": lambda _: self._get_job(job), "DELETE": lambda _: self._cancel(job)}
        elif first == "sync" and rest.endswith("/run"):
            # names hold slashes; whether they are escaped does not matter
            rule = unquote(rest.removesuffix("/run"))
            return {"POST": lambda _: self._run(rule)}
        raise NotServed("not a path of the admin API")

    # ------------------------------------------------------------------------------------------------- what is done

    async def _get_status(self, _request: web.BaseRequest) -> _Reply:
        return _Reply(await self._status())

    async def _get_jobs(self, _request: web.BaseRequest) -> _Reply:
        return _Reply({"jobs": await self._jobs.all()})

    async def _get_job(self, name: str) -> _Reply:
        return _Reply(await self._jobs.get(name))

    async def _cancel(self, name: str) -> _Reply:
        job = await self._jobs.cancel(name)
        return _Reply(job, 202 if job.get("cancelling") else 200)

    async def _get_sync(self, _request: web.BaseRequest) -> _Reply:
        return _Reply({"rules": await self._sync.status()})

    async def _run(self, name: str) -> _Reply:
        if await asyncio.to_thread(self._sync.busy, name):
            raise AlreadyRunning(f"{name} is being synced already")
        return await self._submitted("sync", {"rule": name})

    async def _prefetch(self, request: web.BaseRequest) -> _Reply:
        return await self._submitted("prefetch", read_prefetch(await _body(request), self._parse_image))

    async def _submitted(self, kind: str, arguments: Mapping[str, Any]) -> _Reply:
        job = await self._jobs.submit(kind, arguments)
        return _Reply(job, 202, f"{_PREFIX}jobs/{quote(job['id'])}")


def read_prefetch(body: object, parse_image: Callable[[str], Image]) -> dict[str, Any]:
    """What shall be prefetched, checked and in full names. Raises `BodyInvalid` with every mistake."""
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


async def _body(request: web.BaseRequest) -> object:
    """JSON. Raises `BodyInvalid`, `BodyTooLarge`."""
    received = bytearray()
    try:
        async with asyncio.timeout(_BODY_IN):
            async for piece in request.content.iter_any():
                received += piece
                if len(received) > _LARGEST_BODY:
                    raise BodyTooLarge(f"more than {_LARGEST_BODY} bytes")
    except TimeoutError as error:
        raise BodyInvalid("the body does not come") from error
    try:
        return json.loads(bytes(received))
    except (ValueError, RecursionError) as error:
        raise BodyInvalid("not JSON") from error


def _refuse_browsers(request: web.BaseRequest) -> None:
    """A page from anywhere can make a browser on this machine send requests here, but not without these marks of it
    (WHATWG Fetch, "Origin header"; for a name that was made to mean 127.0.0.1 there is its `Host`).
    """
    if "Origin" in request.headers:
        raise Denied("the admin API is not for pages of a browser")
    transport = request.transport
    address = transport.get_extra_info("sockname") if transport else None
    if not isinstance(address, tuple):
        return
    if not _means_us(request.headers.get("Host", "")):
        raise Denied("the admin API is asked by the loopback address alone")


def _means_us(host: str) -> bool:
    try:
        named = urlsplit(f"//{host}").hostname or ""
        return named == "localhost" or ipaddress.ip_address(named).is_loopback
    except ValueError:
        return False


def _response(reply: _Reply, name: str) -> web.Response:
    headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Control": "no-store", "X-Request-Id": name}
    if reply.location:
        headers["Location"] = reply.location
    return web.Response(status=reply.status, body=json.dumps(reply.body, indent=1).encode() + b"\n", headers=headers)
