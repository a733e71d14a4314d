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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote

from aiohttp import web

from mirror.access.authentication import Authentication
from mirror.access.certificate import identity_of
from mirror.access.own_tokens import IssuedTokens
from mirror.access.token_scopes import asked_scope
from mirror.aio.caches import LruCache
from mirror.caller import on_behalf_of
from mirror.errors import Denied, DigestInvalid, NameUnknown, NotFound, RequestError, Unauthorized
from mirror.oci.authorization import CallerCredentials, presented_by, read_authorization
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.oci.request import Kind, RegistryRequest
from mirror.policy.access_rules import ANONYMOUS, Action, AuthMethod, Identity, Policy, Scope
from mirror.policy.routing import RoutingTable
from mirror.policy.virtual.members import VirtualRules
from mirror.repository.protocol import Readable
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.connection_limit import client_key
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.request_steps import RequestSteps
from mirror.server.registry.responses import API_VERSION
from mirror.trust.upstream_access import Verifier

TOKEN_PATH: Final = "/token"  # noqa: S105  # a path

_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
#: Names that may appear in a challenge's `scope`. The name comes from the request path and has not been validated yet.
_SCOPED: Final = re.compile(r"[a-z0-9._:/-]{1,320}")
_LARGEST_FORM: Final = 64 * 1024
_MOST_FIELDS: Final = 128
#: Seconds within which a whole form must arrive, however slowly the client sends it.
_FORM_TIME: Final = 10.0
#: The service name in challenges.
_SERVICE: Final = "mirror"
#: Verdicts that are cached; they stay valid because rules do not change while the process lives.
_MOST: Final = 20_000
#: What can be done with a repository.
_REPOSITORY_ACTIONS: Final = (Action.PULL, Action.PUSH, Action.OVERWRITE, Action.DELETE)


@dataclass(frozen=True, slots=True)
class MountSource:
    """What a client names as the source of a mount: the repository `asked`, and those that it means: itself, or if it
    is virtual those of the members that answer for the name; none if there is no such repository.
    """

    asked: Repo | None = None
    repos: tuple[Repo, ...] = ()


class AccessControl:
    """Decides who may do what. `realm` is the token endpoint's URL as clients reach it; None: derived from each
    request.
    """

    def __init__(
        self,
        authentication: Authentication,
        policy: Policy,
        issued: IssuedTokens,
        table: RoutingTable,
        *,
        repository_of: Callable[[Repo], Readable],
        verifier_of: Callable[[str], Verifier | None] = lambda registry: None,
        virtual: Mapping[str, VirtualRules] | None = None,
        realm: str | None = None,
        addresses: ClientAddresses | None = None,
    ) -> None:
        """`table` says which repository a scope means, `repository_of` returns the repository of a name. `verifier_of`
        returns the verifier of a registry whose upstream is asked about every caller; None for other registries.
        `virtual` has the virtual registries, by name. `addresses` knows the clients behind proxies.
        """
        self._virtual = virtual or {}
        self._repository_of = repository_of
        self._verifier_of = verifier_of
        self._authentication = authentication
        self._policy = policy
        self._issued = issued
        self._table = table
        self._realm = realm
        self._addresses = addresses or ClientAddresses()
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
        record.scope = None if identity.scope is None else str(identity.scope)
        # clients send `GET /v2/` to learn whether they have to log in
        asking_how = wanted.kind is Kind.BASE and "Authorization" not in request.headers
        if identity.is_anonymous and (asking_how or not self._policy.anonymous):
            raise self._unknown_caller(request, wanted)
        if wanted.kind is Kind.CATALOG and identity.scope is not None and not identity.scope.catalog:
            raise self._out_of_scope(request, wanted)
        return identity

    async def administrator(self, request: web.BaseRequest, identified: Callable[[Identity], None]) -> Identity:
        """The caller's identity, if the caller may administer the mirror. `identified` is called with it even if
        it is then denied.

        Raises `Unauthorized` with a challenge, `Denied`, `AccessUnavailable`.
        """
        identity = await self.known_caller(request, identified)
        if not self.allows(identity, Action.ADMIN, None):
            raise Denied(f"{identity} may not administer this mirror")
        return identity

    async def known_caller(self, request: web.BaseRequest, identified: Callable[[Identity], None]) -> Identity:
        """The identity of a caller of the admin API who has logged in, whatever that caller may do. `identified` is
        called with it even if it is then denied.

        Raises `Unauthorized` with a challenge, `Denied` for a token that is limited to a scope, `AccessUnavailable`.
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
        if identity.scope is not None:
            raise Denied(f"{identity} may not administer this mirror with a token that is limited to a scope")
        return identity

    async def _identify(self, request: web.BaseRequest) -> tuple[Identity, CallerCredentials | None]:
        """The caller's identity, and the credentials in the `Authorization` header, if there are any."""
        presented = read_authorization(request.headers.getall("Authorization", []))
        if presented is not None:
            return await self._authentication.authenticate(presented, lambda: self._from(request)), presented
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
        if not _in_scope(identity, Action.PULL, repo):
            raise self._out_of_scope(request, wanted)
        if verifier is None:
            return nullcontext()
        own = self._own(identity, request)
        with on_behalf_of(own):
            allowed = await verifier.may_pull(repository, own, wanted)
        if allowed:
            record.caller = str(identity)
            return on_behalf_of(own)
        raise self._refusal(identity, request, wanted)

    def is_settled(self, identity: Identity, repo: Repo) -> bool:
        """True if what `admit` has allowed this caller is allowed for as long as the process lives: the caller proves
        nothing, and no upstream is asked about callers.
        """
        return identity == ANONYMOUS and self._verifier_of(repo.registry) is None

    def admits_to_member(
        self, identity: Identity, repo: Repo, asked: Repo, request: web.BaseRequest, wanted: RegistryRequest
    ) -> bool:
        """True if the caller may pull from this repository, which is one of those that the virtual repository `asked`
        stands for; the token must be for that one. False for a caller who has logged in and may not.

        Raises `Unauthorized` for an anonymous caller who may not, and for a token with another scope.
        """
        identity = self._proven(identity, repo)
        if not self.may(identity, Action.PULL, repo):
            if identity.is_anonymous:
                raise self._unknown_caller(request, wanted)
            return False
        if not _in_scope(identity, Action.PULL, asked):
            raise self._out_of_scope(request, wanted)
        return True

    def authorize(
        self,
        identity: Identity,
        actions: Collection[Action],
        repo: Repo,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        *,
        asked: Repo | None = None,
        source: MountSource | None = None,
    ) -> RegistryPusher:
        """Returns the caller of a push or a deletion, only if the rules allow all these actions with a hosted
        repository. Nothing is read, so the answer does not depend on what the repository has.

        `asked` is the virtual repository that the client has named, if it has named one: the token must be for that.
        `source` is what a blob is to be mounted from; if the rules allow the caller to pull from it, the token must be
        for it, too. Raises `Unauthorized` for an anonymous caller and for a token whose scope is too
        narrow, with a challenge that asks for all that the request needs; `Denied` for a caller who may do something
        else with the repository; `NameUnknown` for others.
        """
        identity = self._proven(identity, repo)
        # all of them are judged, whatever the first verdict is: every refusal costs the same
        allowed = {action: self.allows(identity, action, repo) for action in _REPOSITORY_ACTIONS}
        missing = [action.value for action in actions if not allowed[action]]
        if missing and (identity.is_anonymous or not any(allowed.values())):
            raise self._refusal(identity, request, wanted)
        if missing:
            raise Denied(f"{identity} may not {' or '.join(missing)} here")
        needed = [(action, asked or repo) for action in actions]
        if source is not None and source.asked is not None:
            may_pull = [self.allows(self._proven(identity, each), Action.PULL, each) for each in source.repos]
            needed += [(Action.PULL, source.asked)] if any(may_pull) else []
        if not all(_in_scope(identity, action, of) for action, of in needed):
            raise self._out_of_scope(request, wanted)
        return RegistryPusher(self, identity, request, wanted)

    def refuse_stranger(
        self, identity: Identity, repo: Repo, request: web.BaseRequest, wanted: RegistryRequest
    ) -> None:
        """Returns if the rules allow the caller to do anything with the repository, or with one that a virtual one
        stands for. Others may not learn that there is such a registry: raises `Unauthorized` for an anonymous caller,
        `NameUnknown` for others.
        """
        if not any(self._allows_some(identity, action, repo) for action in _REPOSITORY_ACTIONS):
            raise self._refusal(self._proven(identity, repo), request, wanted)

    def _allows_some(self, identity: Identity, action: Action, repo: Repo) -> bool:
        """Whether the rules allow this with the repository, or with one that a virtual one stands for."""
        rules = self._virtual.get(repo.registry)
        repos = (repo,) if rules is None else rules.candidates(repo.name, action)
        return any(self.allows(self._proven(identity, each), action, each) for each in repos)

    def pusher(
        self,
        identity: Identity,
        repo: Repo,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        *,
        asked: Repo | None = None,
    ) -> RegistryPusher | None:
        """Returns the caller of a read, if the caller may also push to this repository; None otherwise. `asked` is the
        virtual repository that the client has named, if it has named one.
        """
        identity = self._proven(identity, repo)
        if not self.allows(identity, Action.PUSH, repo) or not _in_scope(identity, Action.PUSH, asked or repo):
            return None
        return RegistryPusher(self, identity, request, wanted)

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
        own = self._own(identity, request)
        asked = RegistryRequest(Kind.BLOB, wanted.name, wanted.reference or _mounted(wanted))
        with on_behalf_of(own):
            try:
                return await verifier.may_pull(self._repository_of(repo), own, asked)
            except NotFound:
                return False

    def may(self, identity: Identity, action: Action, repo: Repo) -> bool:
        """True if the rules allow this; False for pulls of a registry whose upstream is asked about every caller.

        The scope of the caller's token does not matter: `authorize` has compared it with what the request names.
        """
        if action is Action.PULL and self._verifier_of(repo.registry) is not None:
            return False
        return self.allows(self._proven(identity, repo), action, repo)

    def _own(self, identity: Identity, request: web.BaseRequest) -> CallerCredentials | None:
        """The caller's own credentials with the client's address: the identity was made without it."""
        return replace(identity.own, client=self._from(request)) if identity.own else None

    def _from(self, request: web.BaseRequest) -> str:
        """The client, for limits of failed logins. Clients of unix sockets cannot be told apart."""
        return client_key((self._addresses.of(request),), ()) or ""

    def _proven(self, identity: Identity, repo: Repo) -> Identity:
        """The identity as far as it is proven for this registry: credentials that no upstream checks prove nothing."""
        if identity.method is AuthMethod.UPSTREAM and self._verifier_of(repo.registry) is None:
            return ANONYMOUS
        return identity

    def _refusal(self, identity: Identity, request: web.BaseRequest, wanted: RegistryRequest) -> RequestError:
        """The answer to a caller who may not know whether the repository exists."""
        return self._unknown_caller(request, wanted) if identity.is_anonymous else NameUnknown("no such repository")

    def _out_of_scope(self, request: web.BaseRequest, wanted: RegistryRequest) -> Unauthorized:
        """The answer to a caller who may do this, but not with this token (RFC 6750, 3.1)."""
        challenge = f'{self._challenge(request, wanted)},error="insufficient_scope"'
        return Unauthorized("the token is not for this: ask for one with the scope of the challenge", challenge)

    def _unknown_caller(self, request: web.BaseRequest, wanted: RegistryRequest) -> Unauthorized:
        return Unauthorized("log in first", self._challenge(request, wanted))

    def may_see(self, identity: Identity, repo: Repo) -> bool:
        """True if a listing for this caller may name the repository. A repository whose upstream is asked about every
        caller is never listed.

        The verdict is not cached: a listing asks about every repository, and would push out the verdicts that pulls
        and pushes use.
        """
        if self._verifier_of(repo.registry) is not None:
            return False
        return self._policy.allows(self._proven(identity, repo), Action.PULL, repo)

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
        """Answer `GET` with Basic, or `POST` with an OAuth2 form. The token carries the identity. If the client asks
        for scopes, it is limited to those that are allowed now. The rules decide at each use what it may do.

        A caller that presents a token of ours gets one that is valid for no longer: otherwise, a deleted account could
        renew its access for ever. Raises `Unauthorized`, `RequestError`, `AccessUnavailable`.
        """
        query = _fields(request._message.path.partition("?")[2])
        presented: CallerCredentials | None = None
        if request.method == "POST":
            form = await _read_form(request)
            presented, scopes = _in_form(form), _values(form, "scope")
            identity = await self._authentication.authenticate(presented, lambda: self._from(request))
        elif request.method == "GET":
            identity, presented = await self._identify(request)
            scopes = _values(query, "scope")
        else:
            raise RequestError("the token endpoint takes GET and POST")
        record.caller = _described(identity)
        if identity.is_anonymous and not self._policy.anonymous:
            raise Unauthorized("log in first", f'Basic realm="{_SERVICE}"')
        scope = self._granted(identity, scopes, request, query)
        token, lifetime = self._issue(replace(identity, scope=scope), identity.scope, presented)
        record.scope = None if scope is None else str(scope)
        issued_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "token": token,
            "access_token": token,
            "expires_in": int(lifetime),
            "issued_at": issued_at,
            **({} if scope is None else {"scope": str(scope)}),
        }
        headers = {**API_VERSION, "Content-Type": "application/json", "Cache-Control": "no-store"}
        return web.Response(body=json.dumps(body).encode(), headers=headers)

    def _granted(
        self,
        identity: Identity,
        scopes: Sequence[str],
        request: web.BaseRequest,
        query: Sequence[tuple[str, str]],
    ) -> Scope | None:
        """The scope of the token to issue: what is asked for, what the presented token has, and what is allowed now.

        Raises `RequestError`.
        """
        ns = next(iter(_values(query, "ns")), None)
        host = request.headers.get("Host") if ns is None else None
        asked = asked_scope(scopes, lambda name: self._table.route(name, host=host, ns=ns))
        if asked is None:
            return identity.scope
        allowed = Scope(
            frozenset(
                (repo, action)
                for repo, action in asked.grants
                if self._allows_some(identity, action, repo)
                or (action is Action.PUSH and self._allows_some(identity, Action.OVERWRITE, repo))
            ),
            asked.catalog,
        )
        return allowed if identity.scope is None else allowed & identity.scope

    def _issue(
        self, identity: Identity, before: Scope | None, presented: CallerCredentials | None
    ) -> tuple[str, float]:
        """A token and the seconds for which it is valid. `before` is the scope of the presented token."""
        lifetime = self._issued.seconds_left(presented) if presented is not None else None
        if presented is None or lifetime is None:
            return self._issued.issue(identity), self._issued.lifetime
        if identity.scope == before:
            return presented.secret, lifetime
        return self._issued.issue(identity, instead=presented), lifetime

    def _challenge(self, request: web.BaseRequest, wanted: RegistryRequest) -> str:
        """A Bearer challenge with the token endpoint and the scopes to ask for (distribution's token specification)."""
        scopes = " ".join(f"{kind}:{name}:{actions}" for kind, name, actions in _needed(request.method, wanted))
        scope = f',scope="{scopes}"' if scopes else ""
        return f'Bearer realm="{self._realm_for(request, wanted)}",service="{_SERVICE}"{scope}'

    def _realm_for(self, request: web.BaseRequest, wanted: RegistryRequest) -> str:
        """The token endpoint's URL. If a scope would mean another repository there than the path means here, the URL
        also names the registry; clients keep the query of the URL that they are given.
        """
        mapped = self._table.meant_by(request.headers.get("Host"))
        if self._realm is None and mapped is not None:
            return _reached_at(request)
        registry = mapped or wanted.query.get("ns", "").lower()
        known = registry and _SCOPED.fullmatch(registry) and self._table.registry(registry) is not None
        query = f"?ns={quote(registry, safe=':')}" if known else ""
        return f"{self._realm or _reached_at(request)}{query}"


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

    def steps(self) -> RequestSteps:
        """See `Pusher.steps`."""
        return RequestSteps.of(self._request)


def _needed(method: str, wanted: RegistryRequest) -> list[tuple[str, str, str]]:
    """Type, name and actions of the scopes that a token needs for this request. A mount needs two repositories. Names
    that cannot be in a challenge are left out.
    """
    if wanted.kind is Kind.CATALOG:
        return [("registry", "catalog", "*")]
    if wanted.kind is Kind.UPLOAD or method in ("PUT", "POST", "PATCH"):
        needed = [("repository", wanted.name, "pull,push")]
        if "mount" in wanted.query and "from" in wanted.query:
            needed.append(("repository", wanted.query["from"], "pull"))
    else:
        needed = [("repository", wanted.name, "delete" if method == "DELETE" else "pull")]
    return [scope for scope in needed if _SCOPED.fullmatch(scope[1])]


def _in_scope(identity: Identity, action: Action, repo: Repo) -> bool:
    """Whether the caller's token may be used for this; the rules say whether the caller may do it."""
    return identity.scope is None or identity.scope.covers(action, repo)


def _mounted(wanted: RegistryRequest) -> Digest | None:
    """The digest that a request wants to mount; None if it is not valid."""
    try:
        return Digest.parse(wanted.query.get("mount", ""))
    except DigestInvalid:
        return None


def _described(identity: Identity) -> str:
    """The identity as logged. Credentials for an upstream that have not been checked yet are marked as such."""
    return f"{identity} (not verified)" if identity.method is AuthMethod.UPSTREAM else str(identity)


def _reached_at(request: web.BaseRequest) -> str:
    """The token endpoint's URL at the host and scheme by which the client reached us. A client can forge these headers,
    but the answer goes to that client alone. Raises `RequestError` if there is no usable `Host`.
    """
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise RequestError("no usable Host header, and no access.realm is set")
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
    return f"{'https' if secure else 'http'}://{host}{TOKEN_PATH}"


async def _read_form(request: web.BaseRequest) -> list[tuple[str, str]]:
    """The fields of an OAuth2 form. Raises `RequestError`."""
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
        return parse_qsl(content.decode(), max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise RequestError("not a form") from error


def _in_form(fields: Sequence[tuple[str, str]]) -> CallerCredentials:
    """The credentials in an OAuth2 form (RFC 6749, 4.3 and 6) as containerd and Docker send it. Raises
    `RequestError`.
    """
    form = dict(fields)
    match form.get("grant_type"):
        case "password":
            return presented_by(form.get("username", ""), form.get("password", ""))
        case "refresh_token":
            return CallerCredentials(bearer=form.get("refresh_token", ""))
    raise RequestError("grant_type is neither password nor refresh_token")


def _fields(query: str) -> list[tuple[str, str]]:
    """The parameters of the token endpoint. Raises `RequestError`."""
    try:
        return parse_qsl(query, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise RequestError("too many query parameters") from error


def _values(fields: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for field, value in fields if field == name]
