"""Access control of the registry API: authentication, authorisation, and the token endpoint at which clients log in.

    request ── certificate or Authorization ──> identity ── policy ──> allowed
                  │                                            └── refused
                  └── wrong ──> 401                                  ├── anonymous ──────────> 401, and where to log in
                                                                     ├── may do nothing here ──> 404, as an unknown name
                                                                     └── may do something else ──> 403

Docker, podman and containerd ask `/token` with name and password (distribution's token specification: GET, and the
OAuth2 form of POST), and then send the token they get as a bearer. Clients that send Basic with each request are
accepted too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from mirror.access.authentication import Authentication
from mirror.access.certificate import identity_of
from mirror.access.own_tokens import IssuedTokens
from mirror.aio.caches import LruCache
from mirror.caller import on_behalf_of
from mirror.errors import Denied, DigestInvalid, NameUnknown, NotFound, RequestError, Unauthorized
from mirror.oci.authorization import CallerCredentials, presented_by, read_authorization
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.oci.request import Kind, RegistryRequest
from mirror.policy.access_rules import ANONYMOUS, Action, AuthMethod, Identity, Policy
from mirror.repository.protocol import Readable
from mirror.server.registry.connection_limit import client_key
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.responses import API_VERSION
from mirror.trust.upstream_access import Verifier

TOKEN_PATH: Final = "/token"  # noqa: S105  # a path

_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
#: Names that may appear in a challenge's `scope`. The name comes from the request path and has not been validated yet.
_SCOPED: Final = re.compile(r"[a-z0-9._:/-]{1,320}")
_LARGEST_FORM: Final = 64 * 1024
#: Seconds within which a whole form must arrive, however slowly the client sends it.
_FORM_TIME: Final = 10.0
#: The service name in challenges.
_SERVICE: Final = "mirror"
#: Verdicts that are cached; they stay valid because rules do not change while the process lives.
_MOST: Final = 20_000
#: What can be done with a repository.
_REPOSITORY_ACTIONS: Final = (Action.PULL, Action.PUSH, Action.OVERWRITE, Action.DELETE)


class AccessControl:
    """Decides who may do what. `realm` is the token endpoint's URL as clients reach it; None: derived from each
    request.
    """

    def __init__(
        self,
        authentication: Authentication,
        policy: Policy,
        issued: IssuedTokens,
        *,
        repository_of: Callable[[Repo], Readable],
        verifier_of: Callable[[str], Verifier | None] = lambda registry: None,
        realm: str | None = None,
    ) -> None:
        """`repository_of` returns the repository of a name. `verifier_of` returns the verifier of a registry whose
        upstream is asked about every caller; None for other registries.
        """
        self._repository_of = repository_of
        self._verifier_of = verifier_of
        self._authentication = authentication
        self._policy = policy
        self._issued = issued
        self._realm = realm
        self._verdicts: LruCache[tuple[Identity, Action, Repo | None], bool] = LruCache(_MOST, name="access verdicts")

    def __repr__(self) -> str:
        return f"<AccessControl {len(self._verdicts)} verdicts>"

    async def enter(self, request: web.BaseRequest, wanted: RegistryRequest, record: RequestRecord) -> Identity:
        """The caller's identity. Raises `Unauthorized` with a challenge, `AccessUnavailable`."""
        try:
            identity, _ = await self._identify(request)
        except Unauthorized as error:
            raise Unauthorized(str(error), self._challenge(request, wanted)) from error
        record.caller = _described(identity)
        # clients send `GET /v2/` to learn whether they have to log in
        asking_how = wanted.kind is Kind.BASE and "Authorization" not in request.headers
        if identity.is_anonymous and (asking_how or not self._policy.anonymous):
            raise self._unknown_caller(request, wanted)
        return identity

    async def administrator(self, request: web.BaseRequest, identified: Callable[[Identity], None]) -> Identity:
        """The caller's identity, if the caller may administer the mirror. `identified` is called with it even if
        it is then denied.

        Raises `Unauthorized` with a challenge, `Denied`, `AccessUnavailable`.
        """
        challenge = f'Basic realm="{_SERVICE} administration", charset="UTF-8"'
        try:
            identity, _ = await self._identify(request)
        except Unauthorized as error:
            raise Unauthorized(str(error), challenge) from error
        if identity.method in (AuthMethod.ANONYMOUS, AuthMethod.UPSTREAM):
            # credentials meant for an upstream prove nothing as long as that upstream has not checked them
            raise Unauthorized("log in first", challenge)
        identified(identity)
        if not self.allows(identity, Action.ADMIN, None):
            raise Denied(f"{identity} may not administer this mirror")
        return identity

    async def _identify(self, request: web.BaseRequest) -> tuple[Identity, CallerCredentials | None]:
        """The caller's identity, and the credentials in the `Authorization` header, if there are any."""
        presented = read_authorization(request.headers.getall("Authorization", []))
        if presented is not None:
            return await self._authentication.authenticate(presented, lambda: _from(request)), presented
        certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
        return identity_of(certificate) or ANONYMOUS, None

    async def admit(
        self,
        identity: Identity,
        repository: Readable,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        record: RequestRecord,
    ) -> AbstractContextManager[None]:
        """Returns only if the caller may pull from the repository. Within the returned context, upstream is called with
        the caller's credentials.

        Raises `Unauthorized` for an anonymous caller, `NameUnknown` for others, and the errors of asking upstream.
        """
        repo = repository.repo
        verifier = self._verifier_of(repo.registry)
        identity = self._proven(identity, repo)
        if not self.allows(identity, Action.PULL, repo):
            raise self._refusal(identity, request, wanted)
        if verifier is None:
            return nullcontext()
        own = _own(identity, request)
        with on_behalf_of(own):
            allowed = await verifier.may_pull(repository, own, wanted)
        if allowed:
            record.caller = str(identity)
            return on_behalf_of(own)
        raise self._refusal(identity, request, wanted)

    def authorize(
        self,
        identity: Identity,
        actions: Collection[Action],
        repo: Repo,
        request: web.BaseRequest,
        wanted: RegistryRequest,
    ) -> RegistryPusher:
        """Returns the caller of a push or a deletion, only if the rules allow all these actions with a hosted
        repository. Nothing is read, so the answer does not depend on what the repository has.

        Raises `Unauthorized` for an anonymous caller, with a challenge that asks for all that the request needs;
        `Denied` for a caller who may do something else with the repository; `NameUnknown` for others.
        """
        identity = self._proven(identity, repo)
        # all of them are judged, whatever the first verdict is: every refusal costs the same
        allowed = {action: self.allows(identity, action, repo) for action in _REPOSITORY_ACTIONS}
        missing = [action.value for action in actions if not allowed[action]]
        if not missing:
            return RegistryPusher(self, identity, request, wanted)
        if identity.is_anonymous or not any(allowed.values()):
            raise self._refusal(identity, request, wanted)
        raise Denied(f"{identity} may not {' or '.join(missing)} here")

    def pusher(
        self, identity: Identity, repo: Repo, request: web.BaseRequest, wanted: RegistryRequest
    ) -> RegistryPusher | None:
        """Returns the caller of a read, if the caller may also push to this repository; None otherwise."""
        identity = self._proven(identity, repo)
        return RegistryPusher(self, identity, request, wanted) if self.allows(identity, Action.PUSH, repo) else None

    async def may_pull(self, identity: Identity, repo: Repo, request: web.BaseRequest, wanted: RegistryRequest) -> bool:
        """True if the caller may pull from this repository, which is another one than that of the request.

        Raises `UpstreamError`, `TooManyLogins`.
        """
        verifier = self._verifier_of(repo.registry)
        identity = self._proven(identity, repo)
        if not self.allows(identity, Action.PULL, repo):
            return False
        if verifier is None:
            return True
        own = _own(identity, request)
        asked = RegistryRequest(Kind.BLOB, wanted.name, wanted.reference or _mounted(wanted))
        with on_behalf_of(own):
            try:
                return await verifier.may_pull(self._repository_of(repo), own, asked)
            except NotFound:
                return False

    def may(self, identity: Identity, action: Action, repo: Repo) -> bool:
        """True if the rules allow this; False for pulls of a registry whose upstream is asked about every caller."""
        if action is Action.PULL and self._verifier_of(repo.registry) is not None:
            return False
        return self.allows(self._proven(identity, repo), action, repo)

    def _proven(self, identity: Identity, repo: Repo) -> Identity:
        """The identity as far as it is proven for this registry: credentials that no upstream checks prove nothing."""
        if identity.method is AuthMethod.UPSTREAM and self._verifier_of(repo.registry) is None:
            return ANONYMOUS
        return identity

    def _refusal(self, identity: Identity, request: web.BaseRequest, wanted: RegistryRequest) -> RequestError:
        """The answer to a caller who may not know whether the repository exists."""
        return self._unknown_caller(request, wanted) if identity.is_anonymous else NameUnknown("no such repository")

    def _unknown_caller(self, request: web.BaseRequest, wanted: RegistryRequest) -> Unauthorized:
        return Unauthorized("log in first", self._challenge(request, wanted))

    def may_see(self, identity: Identity, repo: Repo) -> bool:
        """True if a listing for this caller may name the repository. A repository whose upstream is asked about every
        caller is never listed.
        """
        return self.may(identity, Action.PULL, repo)

    def allows(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """The policy's verdict, cached."""
        if identity.own is not None:
            # the rules do not use the caller's own credentials, and the cache must not store them
            identity = replace(identity, own=None)
        key = (identity, action, repo)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = self._policy.allows(identity, action, repo)
        return verdict

    # --------------------------------------------------------------------------------- the token endpoint

    async def token(self, request: web.BaseRequest, record: RequestRecord) -> web.Response:
        """Answer `GET` with Basic, or `POST` with an OAuth2 form. The token carries the identity; the rules decide what
        it may do.

        A caller that presents a token of ours gets the same token back: with a new one, a deleted account could renew
        its access for ever. Raises `Unauthorized`, `RequestError`, `AccessUnavailable`.
        """
        presented: CallerCredentials | None = None
        if request.method == "POST":
            presented = await _read_form(request)
            identity = await self._authentication.authenticate(presented, lambda: _from(request))
        elif request.method == "GET":
            identity, presented = await self._identify(request)
        else:
            raise RequestError("the token endpoint takes GET and POST")
        record.caller = _described(identity)
        if identity.is_anonymous and not self._policy.anonymous:
            raise Unauthorized("log in first", f'Basic realm="{_SERVICE}"')
        lifetime = self._issued.seconds_left(presented) if presented is not None else None
        if presented is None or lifetime is None:
            token, lifetime = self._issued.issue(identity), self._issued.lifetime
        else:
            token = presented.secret
        issued_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "token": token,
            "access_token": token,
            "expires_in": int(lifetime),
            "issued_at": issued_at,
        }
        headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Control": "no-store"}
        return web.Response(body=json.dumps(body).encode(), headers=headers)

    def _challenge(self, request: web.BaseRequest, wanted: RegistryRequest) -> str:
        """A Bearer challenge with the token endpoint and the scope to ask for (distribution's token specification)."""
        scopes = " ".join(f"repository:{name}:{actions}" for name, actions in _needed(request.method, wanted))
        scope = f',scope="{scopes}"' if scopes else ""
        return f'Bearer realm="{self._realm or _reached_at(request)}",service="{_SERVICE}"{scope}'


class RegistryPusher:
    """The caller of one request to a hosted repository; see `mirror.repository.protocol.Pusher`."""

    def __init__(
        self, access: AccessControl, identity: Identity, request: web.BaseRequest, wanted: RegistryRequest
    ) -> None:
        self._access = access
        self._identity = identity
        self._request = request
        self._wanted = wanted

    def __repr__(self) -> str:
        return f"<RegistryPusher {self.name}>"

    @property
    def name(self) -> str:
        """The caller as in logs and records."""
        return str(self._identity)

    def may(self, action: Action, repo: Repo) -> bool:
        """See `Pusher.may`."""
        return self._access.may(self._identity, action, repo)

    async def may_pull(self, repo: Repo) -> bool:
        """See `Pusher.may_pull`. Raises also `TooManyLogins`."""
        return await self._access.may_pull(self._identity, repo, self._request, self._wanted)


def _needed(method: str, wanted: RegistryRequest) -> list[tuple[str, str]]:
    """The names and actions that a token needs for this request. A mount needs two repositories. Names that cannot be
    in a challenge are left out.
    """
    if wanted.kind is Kind.UPLOAD or method in ("PUT", "POST", "PATCH"):
        needed = [(wanted.name, "pull,push")]
        if "mount" in wanted.query and "from" in wanted.query:
            needed.append((wanted.query["from"], "pull"))
    else:
        needed = [(wanted.name, "delete" if method == "DELETE" else "pull")]
    return [(name, actions) for name, actions in needed if _SCOPED.fullmatch(name)]


def _mounted(wanted: RegistryRequest) -> Digest | None:
    """The digest that a request wants to mount; None if it is not valid."""
    try:
        return Digest.parse(wanted.query.get("mount", ""))
    except DigestInvalid:
        return None


def _own(identity: Identity, request: web.BaseRequest) -> CallerCredentials | None:
    """The caller's own credentials with the client's address: the identity was made without it."""
    return replace(identity.own, client=_from(request)) if identity.own else None


def _described(identity: Identity) -> str:
    """The identity as logged. Credentials for an upstream that have not been checked yet are marked as such."""
    return f"{identity} (not verified)" if identity.method is AuthMethod.UPSTREAM else str(identity)


def _from(request: web.BaseRequest) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return client_key(peer, ()) or ""


def _reached_at(request: web.BaseRequest) -> str:
    """The token endpoint's URL at the host and scheme by which the client reached us. A client can forge these headers,
    but the answer goes to that client alone. Raises `RequestError` if there is no usable `Host`.
    """
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise RequestError("no usable Host header, and no access.realm is set")
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
    return f"{'https' if secure else 'http'}://{host}{TOKEN_PATH}"


async def _read_form(request: web.BaseRequest) -> CallerCredentials:
    """The credentials in an OAuth2 form (RFC 6749, 4.3 and 6) as containerd and Docker send it. Raises
    `RequestError`.
    """
    try:
        async with asyncio.timeout(_FORM_TIME):
            content = await request.content.read(_LARGEST_FORM + 1)
            while len(content) <= _LARGEST_FORM and (more := await request.content.read(_LARGEST_FORM)):
                content += more
    except TimeoutError as error:
        raise RequestError(f"the form did not arrive within {_FORM_TIME:.0f} s") from error
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
