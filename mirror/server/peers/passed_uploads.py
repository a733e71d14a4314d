"""Upload requests that reach another replica than the one that has the session.

    client ── PATCH …/uploads/<id>.<tag>.<mac> ──> this replica: who is it, may they push here?
                                                       │ passed on, with the caller's name and the repository
                                                       v
                                                   the replica that has the session ── answer ──> the client

The rights are checked here, as for any push; the replica that has the session believes the signed name of the caller.
No credentials of the caller go to it.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mirror import telemetry
from mirror.errors import MirrorError, ReplicaUnavailable, UploadUnknown
from mirror.oci.reference import Repo, read_repo
from mirror.oci.request import Kind, parse_request
from mirror.peers.peer_client import HEAD, PeerAnswer, PeerClient, PeerSilent
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.peers.session_owners import SessionOwners
from mirror.peers.upload_exchange import UploadExchange
from mirror.policy.access_rules import Action
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.repository.protocol import Readable, is_hosted
from mirror.server.peers.peer_front import ROOT, PeerRequest, PeerVerb
from mirror.server.registry import push
from mirror.server.registry.pull import RequestRecord
from mirror.server.registry.receiving import Receiver
from mirror.server.registry.request_steps import RequestSteps
from mirror.server.registry.responses import API_VERSION, error_response

_PATH: Final = "upload/"
_METHODS: Final = frozenset({"GET", "HEAD", "PATCH", "PUT", "DELETE"})
_IDENTITY: Final = "Mirror-Identity"
#: Looks in a row, after seconds without an answer, at which a session may be unknown: it ends before its last answer
#: comes. A replica that was replaced at the same address says the same, and never answers.
_MOST_GONE: Final = 60
#: Headers of the answer that the client gets: those that are signed, and those that are not, if they look as expected.
_RELAYED: Final = ("Location", "Range", "Docker-Upload-UUID", "Docker-Content-Digest")
_RELAYED_UNSIGNED: Final = {
    "Content-Type": re.compile(r"application/json(; charset=utf-8)?"),
    "Retry-After": re.compile(r"[0-9]{1,6}"),
}


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """What a request to another replica needs: who signs, who answers, and how they are reached. After `look` seconds
    without an answer it is asked whether the replica is alive.
    """

    client: PeerClient
    signer: PeerSigner
    health: PeerHealth
    tls: ssl.SSLContext | None = None
    tls_name: str | None = None
    look: float = HEAD


class PassedUploads:
    """Passes requests on to the replica that has the session; implements `Elsewhere`."""

    def __init__(self, owners: SessionOwners, peers: PeerAccess, threads: Executor) -> None:
        """`threads` are for nothing else: they wait for other replicas."""
        self._owners = owners
        self._peers = peers
        self._threads = threads

    def __repr__(self) -> str:
        return f"<PassedUploads {self._owners!r}>"

    def owner(self, session: str, repo: Repo, caller: str) -> str | None:
        """The other replica that has this session; None if this one may have it."""
        return self._owners.elsewhere(session, repo, caller)

    async def pass_on(self, member: str, call: push.PushCall) -> web.Response:
        """The answer of the replica that has the session. Raises `UploadUnknown` if it does not answer and was sent
        nothing; `ReplicaUnavailable` if it may have taken a part of the body; what the body raises.
        """
        request, repo = call.request, call.repository.repo
        target = f"{ROOT}{_PATH}{_path(call)}"
        identity = {_IDENTITY: json.dumps({"caller": call.pusher.name, "repository": str(repo)})}
        headers, gone = dict(identity), 0
        if (chunk := request.headers.get("Content-Range")) is not None:
            headers["Content-Range"] = chunk
        peers = self._peers

        async def alive() -> bool:
            nonlocal gone
            try:
                path = target.partition("?")[0]
                answer = await peers.client.call(member, "upload", "HEAD", path, identity, insist=True)
            except (PeerSilent, PeerRefused):
                return False
            gone = gone + 1 if answer.status == 404 else 0
            return answer.status < 500 and gone <= _MOST_GONE

        exchange = UploadExchange(
            member,
            peers.signer,
            peers.health,
            self._threads,
            alive=alive,
            tls=peers.tls,
            tls_name=peers.tls_name,
            look=peers.look,
        )
        call.record.notes["replica"] = member
        body = call.receiver.body(request) if request.method in ("PATCH", "PUT") else None
        try:
            answer = await exchange.run(request.method, target, headers, body)
        except (PeerSilent, PeerRefused) as error:
            telemetry.log.warning("upload not passed on", peer=member, repository=str(repo), reason=str(error))
            if exchange.sent:
                raise ReplicaUnavailable("the replica that has this upload does not answer any more") from error
            raise UploadUnknown("the replica that has this upload does not answer") from error
        finally:
            if body is not None:
                body.close()
                call.record.received += body.received
        return _relayed(answer, head=request.method == "HEAD")


class UploadVerb:
    """Answers what other replicas pass on. `repository_of` gives the repository of a name."""

    def __init__(self, repository_of: Callable[[Repo], Readable], receiver: Receiver) -> None:
        self._repository_of = repository_of
        self._receiver = receiver

    def __repr__(self) -> str:
        return "<UploadVerb>"

    def verb(self) -> PeerVerb:
        """The verb for the internal listener."""
        return PeerVerb(_PATH, _METHODS, self.answer, None)

    async def answer(self, peer: PeerRequest) -> web.StreamResponse:
        """Answers a request as the public listener would, on behalf of the caller whom the other replica has named."""
        record = RequestRecord()
        try:
            response = await self._answer(peer, record)
        except MirrorError as error:
            head = peer.request.method == "HEAD"
            response = error_response(error, peer.call.nonce, head=head, more=record.headers)
        telemetry.RECEIVED_BYTES.inc(record.received)
        return response

    async def _answer(self, peer: PeerRequest, record: RequestRecord) -> web.StreamResponse:
        wanted = parse_request(f"/{peer.rest}")
        if wanted.kind is not Kind.UPLOAD or not wanted.session:
            raise PeerRefused("request", "not a request for an upload session", 404)
        repo, pusher = _identity(peer.request)
        repository = self._repository_of(repo)
        if not is_hosted(repository):
            raise UploadUnknown(f"{repo} is not hosted here")
        return await push.push(push.PushCall(peer.request, wanted, repository, pusher, record, self._receiver))


class NamedPusher:
    """A caller whose rights another replica has checked. What a session needs besides, it does not have."""

    def __init__(self, name: str, request: web.BaseRequest) -> None:
        self._name = name
        self._request = request

    def __repr__(self) -> str:
        return f"<NamedPusher {self._name}>"

    @property
    def name(self) -> str:
        """The caller as in logs and records."""
        return self._name

    def may(self, action: Action, repo: Repo) -> bool:
        """Nothing besides what was checked."""
        return False

    async def may_pull(self, repo: Repo) -> bool:
        """Nothing besides what was checked."""
        return False

    def steps(self) -> RequestSteps:
        """Those of the other replica's request, which leaves when its own client does."""
        return RequestSteps.of(self._request)


def _identity(request: web.BaseRequest) -> tuple[Repo, NamedPusher]:
    """The repository and the caller that the other replica has named. Raises `PeerRefused`."""
    try:
        found = json.loads(request.headers.get(_IDENTITY, ""))
        repo, caller = read_repo(found["repository"]), found["caller"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PeerRefused("request", "the caller is not named", 400) from error
    if repo is None or not isinstance(caller, str) or not caller:
        raise PeerRefused("request", "the caller is not named", 400)
    return repo, NamedPusher(caller, request)


def _path(call: push.PushCall) -> str:
    """The path and query as the client has written them, without the first slash."""
    target: str = call.request._message.path
    return target[target.index("/v2") + 1 :]


def _relayed(answer: PeerAnswer, *, head: bool) -> web.Response:
    headers = {name: answer.headers[name.lower()] for name in _RELAYED if name.lower() in answer.headers}
    for name, usual in _RELAYED_UNSIGNED.items():
        if usual.fullmatch(value := answer.headers.get(name.lower(), "")):
            headers[name] = value
    if head:
        headers["Content-Length"] = answer.headers.get("content-length", "0")
    return web.Response(status=answer.status, body=answer.content, headers={**headers, **API_VERSION})
