"""The one gate before everything: who is calling, what they may, and the token endpoint that clients log in at.

    request ── certificate or Authorization ──> identity ── policy ──> allowed
                         │                                    └── refused ── anonymous ──> 401, with the way to `/token`
                         └── wrong ──> 401                                └── somebody ──> 404, as for an unknown name

Docker, podman and containerd ask `/token` with name and password (distribution's token specification: GET, and the
OAuth2 form of POST), and then send what they get as a bearer. Tools that send Basic with each request are let in, too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from mirror.access.authentication import Authentication
from mirror.access.certificate import identity_of
from mirror.access.own_tokens import IssuedTokens
from mirror.caller import acting_for
from mirror.errors import Denied, NameUnknown, RequestError, Unauthorized
from mirror.oci.authorization import CallerCredentials, presented_by, read_authorization
from mirror.oci.reference import Repo
from mirror.oci.request import Kind, RegistryRequest
from mirror.policy.access import ANONYMOUS, Action, AuthMethod, Identity, Policy
from mirror.repository.protocol import Repository
from mirror.server.registry.connection_limit import client_key
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.responses import API_VERSION
from mirror.trust.upstream_access import Verifier

__all__ = ["TOKEN_PATH", "AccessControl"]

TOKEN_PATH: Final = "/token"  # noqa: S105  # a path

_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
#: What may stand in a challenge's `scope`: the name comes from the path, and is checked only by who looks for it.
_SCOPED: Final = re.compile(r"[a-z0-9._:/-]{1,320}")
_LARGEST_FORM: Final = 64 * 1024
#: Seconds that one may take to come, however its bytes are dripped.
_FORM_TIME: Final = 10.0
#: What clients are told that they log in to.
_SERVICE: Final = "mirror"
#: Verdicts that are kept; rules are the same as long as the process lives.
_MOST: Final = 20_000


class AccessControl:
    """`realm` is the token endpoint's URL as clients reach it; None: as they have reached us."""

    def __init__(
        self,
        authentication: Authentication,
        policy: Policy,
        issued: IssuedTokens,
        *,
        verifier_of: Callable[[str], Verifier | None] = lambda registry: None,
        realm: str | None = None,
    ) -> None:
        """`verifier_of` gives the verifier of a registry that is asked about every caller."""
        self._verifier_of = verifier_of
        self._authentication = authentication
        self._policy = policy
        self._issued = issued
        self._realm = realm
        self._verdicts: dict[tuple[Identity, Action, Repo | None], bool] = {}

    async def enter(self, request: web.BaseRequest, wanted: RegistryRequest, told: RequestRecord) -> Identity:
        """Who is calling. Raises `Unauthorized` with a challenge, `AccessUnavailable`."""
        try:
            identity = await self._identity(request)
        except Unauthorized as error:
            raise Unauthorized(str(error), self._challenge(request, wanted)) from error
        told.who = _called(identity)
        # `GET /v2/` is how clients learn that there is something to log in to
        asking_how = wanted.kind is Kind.BASE and "Authorization" not in request.headers
        if identity.is_anonymous and (asking_how or not self._policy.anonymous):
            raise self._unknown_caller(request, wanted)
        return identity

    async def administrator(self, request: web.BaseRequest, told: Callable[[Identity], None]) -> Identity:
        """Who is calling, if they may administer the mirror; `told` of them also if they may not.

        Raises `Unauthorized` with a challenge, `Denied`, `AccessUnavailable`.
        """
        challenge = f'Basic realm="{_SERVICE} administration", charset="UTF-8"'
        try:
            identity = await self._identity(request)
        except Unauthorized as error:
            raise Unauthorized(str(error), challenge) from error
        if identity.means in (AuthMethod.ANONYMOUS, AuthMethod.UPSTREAM):
            # what somebody would show an upstream that nobody has asked says nothing
            raise Unauthorized("who is asking?", challenge)
        told(identity)
        if not self.allows(identity, Action.ADMIN, None):
            raise Denied(f"{identity} may not administer this mirror")
        return identity

    async def _identity(self, request: web.BaseRequest) -> Identity:
        lines = request.headers.getall("Authorization", [])
        if not lines and request.transport is not None:
            certified = identity_of(request.transport.get_extra_info("peercert"))
            if certified is not None:
                return certified
        return await self._authentication.identify(lines, lambda: _from(request))

    async def admit(
        self,
        identity: Identity,
        repository: Repository,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        told: RequestRecord,
    ) -> AbstractContextManager[None]:
        """Returns where they may pull from it; within what is returned, upstream is asked on their behalf.

        Raises `Unauthorized` for who has not said who they are, `NameUnknown` for others, and what asking upstream
        raises.
        """
        repo = repository.repo
        verifier = self._verifier_of(repo.registry)
        if verifier is None:
            # credentials of an upstream that nobody has asked say nothing
            identity = ANONYMOUS if identity.means is AuthMethod.UPSTREAM else identity
            self.require(identity, Action.PULL, repo, request, wanted)
            return nullcontext()
        self.require(identity, Action.PULL, repo, request, wanted)
        # out of a token they come from wherever that was given
        own = replace(identity.own, client=_from(request)) if identity.own else None
        with acting_for(own):
            allowed = await verifier.may_pull(repository, own, wanted)
        if allowed:
            told.who = str(identity)
            return acting_for(own)
        if identity.is_anonymous:
            raise self._unknown_caller(request, wanted)
        raise NameUnknown("no such repository")

    def require(
        self, identity: Identity, action: Action, repo: Repo, request: web.BaseRequest, wanted: RegistryRequest
    ) -> None:
        """Returns where they may. Raises `Unauthorized` for who has not said who they are, `NameUnknown` for others."""
        if self.allows(identity, action, repo):
            return
        if identity.is_anonymous:
            raise self._unknown_caller(request, wanted)
        raise NameUnknown("no such repository")

    def _unknown_caller(self, request: web.BaseRequest, wanted: RegistryRequest) -> Unauthorized:
        return Unauthorized("who is asking?", self._challenge(request, wanted))

    def may_see(self, identity: Identity, repo: Repo) -> bool:
        """Whether a list may name this repository. One that upstream is asked about for every caller is on no list."""
        if self._verifier_of(repo.registry) is not None:
            return False
        return self.allows(ANONYMOUS if identity.means is AuthMethod.UPSTREAM else identity, Action.PULL, repo)

    def allows(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """The policy's verdict."""
        if identity.own is not None:
            # rules do not look at it, and what is remembered must not hold it
            identity = replace(identity, own=None)
        key = (identity, action, repo)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= _MOST:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._policy.allows(identity, action, repo)
        return verdict

    # --------------------------------------------------------------------------------- the token endpoint

    async def token(self, request: web.BaseRequest, told: RequestRecord) -> web.Response:
        """`GET` with Basic, or an OAuth2 form by `POST`; the token says who it is for, rules say what they may.

        Whoever shows a token of ours gets the same one: with another, an account that is gone could go on for ever.
        Raises `Unauthorized`, `RequestError`, `AccessUnavailable`.
        """
        presented: CallerCredentials | None = None
        if request.method == "POST":
            presented = await _read_form(request)
            identity = await self._authentication.ask(presented, lambda: _from(request))
        elif request.method == "GET":
            identity = await self._identity(request)
            presented = read_authorization(request.headers.getall("Authorization", []))
        else:
            raise RequestError("the token endpoint takes GET and POST")
        told.who = _called(identity)
        if identity.is_anonymous and not self._policy.anonymous:
            raise Unauthorized("who is asking?", f'Basic realm="{_SERVICE}"')
        left = self._issued.left(presented) if presented is not None else None
        if presented is None or left is None:
            token, left = self._issued.issue(identity), self._issued.lifetime
        else:
            token = presented.secret
        issued_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "token": token,
            "access_token": token,
            "expires_in": int(left),
            "issued_at": issued_at,
        }
        headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Control": "no-store"}
        return web.Response(body=json.dumps(body).encode(), headers=headers)

    def _challenge(self, request: web.BaseRequest, wanted: RegistryRequest) -> str:
        """distribution's token specification: where to ask, and for what."""
        scope = f',scope="repository:{wanted.name}:pull"' if _SCOPED.fullmatch(wanted.name) else ""
        return f'Bearer realm="{self._realm or _reached_at(request)}",service="{_SERVICE}"{scope}'


def _called(identity: Identity) -> str:
    """For the log: what somebody says of themselves, and nobody has judged so far, is told as that."""
    return f"{identity} (not verified)" if identity.means is AuthMethod.UPSTREAM else str(identity)


def _from(request: web.BaseRequest) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return client_key(peer, ()) or ""


def _reached_at(request: web.BaseRequest) -> str:
    """Only ever told to the one who said it."""
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise RequestError("no usable Host header, and no access.realm is set")
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
    return f"{'https' if secure else 'http'}://{host}{TOKEN_PATH}"


async def _read_form(request: web.BaseRequest) -> CallerCredentials:
    """OAuth2 (RFC 6749, 4.3 and 6) as containerd and Docker send it."""
    try:
        async with asyncio.timeout(_FORM_TIME):
            content = await request.content.read(_LARGEST_FORM + 1)
            while len(content) <= _LARGEST_FORM and (more := await request.content.read(_LARGEST_FORM)):
                content += more
    except TimeoutError as error:
        raise RequestError("the form does not come") from error
    if len(content) > _LARGEST_FORM:
        raise RequestError("the form is too large")
    try:
        form = dict(parse_qsl(content.decode(), max_num_fields=32))
    except ValueError as error:
        raise RequestError("not a form") from error
    match form.get("grant_type"):
        case "password":
            return presented_by(form.get("username", ""), form.get("password", ""))
        case "refresh_token":
            return CallerCredentials(bearer=form.get("refresh_token", ""))
    raise RequestError("grant_type is neither password nor refresh_token")
