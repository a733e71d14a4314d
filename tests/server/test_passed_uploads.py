"""Upload requests that reach another replica than the one that has the session: real sockets, both listeners."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest
from aiohttp import web

from mirror.app.bucket import BucketThreads
from mirror.errors import UploadOutOfOrder, UploadUnknown
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.session_owners import SessionOwners
from mirror.policy.cluster.session_names import session_name
from mirror.server.peers.passed_uploads import PassedUploads, PeerAccess, UploadVerb
from mirror.server.peers.peer_front import PeerRequest, PeerVerb
from mirror.server.registry.receiving import Receiver
from tests.support.certificates import Certificate
from tests.support.live_mirror import until
from tests.support.memory_writable import MemoryWritable
from tests.support.peer_listener import SECRET, SENDER, PeerListener, peer_listener
from tests.support.push_server import PushServer, push_server

_REPO: Final = Repo("corp", "app")
_CALLER: Final = "user:alice"
#: More than is taken from the client's socket at once, and more than the sockets between the replicas hold.
_LARGE: Final = os.urandom(9 << 20)


@dataclass
class _Site:
    """The replica that the client speaks to (`front`), and the one that has the session, with its repository."""

    front: PushServer
    there: MemoryWritable
    listener: PeerListener
    health: PeerHealth
    location: str
    session: str

    @property
    def content(self) -> bytes:
        """What the session has."""
        return bytes(self.there.sessions[self.session])


@asynccontextmanager
async def _site(
    folder: Path,
    *,
    tls: Certificate | None = None,
    look: float = 2.0,
    wrap: Callable[[PeerVerb, PeerRequest], Awaitable[Any]] | None = None,
) -> AsyncIterator[_Site]:
    there = MemoryWritable(_REPO)
    verb = UploadVerb(cast(Any, {_REPO: there}.__getitem__), Receiver(0.0)).verb()
    if wrap is not None:
        answer = wrap

        async def wrapped(peer: PeerRequest) -> Any:
            return await answer(verb, peer)

        shown = PeerVerb(verb.path, verb.methods, wrapped, None)
    else:
        shown = verb
    server = client = None
    if tls is not None:
        server, client = tls.server(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_verify_locations(tls.certificate)
        server.verify_mode = ssl.CERT_REQUIRED
        client.load_verify_locations(tls.certificate)
        client.load_cert_chain(tls.certificate, tls.key)
    name = "mirror" if tls is not None else None
    with ThreadPoolExecutor(8) as threads:
        async with peer_listener(folder, [shown], tls=server, tls_name=name) as listener:
            health = PeerHealth()
            members = ClusterMembers(SENDER, [listener.address], health)
            owners = SessionOwners(members, ClusterSecrets(listener.secret_file))
            asking = PeerClient(listener.signer(), health, tls=client, tls_name=name)
            peers = PeerAccess(asking, listener.signer(), health, client, name, look)
            async with push_server(elsewhere=PassedUploads(owners, peers, threads)) as front:
                session = session_name(SECRET.encode(), "abc-1_2", listener.address, _REPO, _CALLER)
                there.sessions[session] = bytearray()
                yield _Site(front, there, listener, health, f"/v2/app/blobs/uploads/{session}", session)
            await asking.aclose()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 300_000):
        yield content[start : start + 300_000]


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_whole_upload_through_another_replica(tmp_path: Path, over_tls: bool) -> None:
    """Chunks with a length and without, how far it is, the last chunk, and the answers as the client would get them."""
    certificate = Certificate(tmp_path / "tls", names="DNS:mirror") if over_tls else None
    async with _site(tmp_path, tls=certificate) as site:
        ask, location = site.front.ask, site.location
        first = await ask("PATCH", location, body=_LARGE)
        assert (first.status, first.headers["Range"]) == (202, f"0-{len(_LARGE) - 1}")
        assert first.headers["Location"] == location
        assert first.headers["Docker-Upload-UUID"] == site.session
        chunked = await ask("PATCH", location, body=_chunks(_LARGE))
        assert (chunked.status, chunked.headers["Range"]) == (202, f"0-{2 * len(_LARGE) - 1}")
        for method in ("GET", "HEAD"):
            status = await ask(method, location)
            assert (status.status, status.headers["Range"]) == (204, f"0-{2 * len(_LARGE) - 1}")
        assert site.content == _LARGE * 2
        digest = Digest.of(_LARGE * 2 + b"end")
        done = await ask("PUT", f"{location}?digest={digest}", body=b"end")
        assert (done.status, done.headers["Docker-Content-Digest"]) == (201, str(digest))
        assert done.headers["Location"] == f"/v2/app/blobs/{digest}"
        assert digest in site.there.blobs
        assert [line["bytes"] for line in site.front.audit] == [len(_LARGE), len(_LARGE), 0, 0, 3]
        assert {line["caller"] for line in site.front.audit} == {_CALLER}
        assert not site.front.repository.sessions


async def test_what_the_other_replica_refuses_is_refused(tmp_path: Path) -> None:
    async with _site(tmp_path) as site:
        gap = await site.front.ask("PATCH", site.location, body=b"x", headers={"Content-Range": "7-7"})
        assert (gap.status, gap.headers["Range"]) == (416, "0-0")
        assert json.loads(gap.body)["errors"][0]["code"] == "BLOB_UPLOAD_INVALID"
        wrong = await site.front.ask("PUT", f"{site.location}?digest=sha256:{'0' * 64}", body=b"x")
        assert wrong.status == 400
        # it stays
        assert (await site.front.ask("DELETE", site.location)).status == 204
        assert not site.there.sessions
        gone = await site.front.ask("PATCH", site.location, body=b"x")
        assert (gone.status, json.loads(gone.body)["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("over_tls", [False, True])
async def test_an_answer_before_the_end_of_the_body_ends_it(tmp_path: Path, over_tls: bool) -> None:
    certificate = Certificate(tmp_path / "tls", names="DNS:mirror") if over_tls else None
    async with _site(tmp_path, tls=certificate) as site:
        site.there.refuse = UploadOutOfOrder("a gap", 0)
        answer = await site.front.ask("PATCH", site.location, body=_LARGE)
        assert answer.status == 416
        assert site.health.is_up(site.listener.address)


class _SlowSocket(socket.socket):
    """Takes 20 KB a second, by its own account: `sendall` has one time-out for all that it is given."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        if len(data) > 20_000 * (self.gettimeout() or 0):
            raise TimeoutError("timed out")
        super().sendall(data, flags)


async def test_a_slow_network_between_replicas_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connected(address: tuple[str, int], timeout: float) -> socket.socket:
        made = _SlowSocket()
        made.settimeout(timeout)
        made.connect(address)
        return made

    async with _site(tmp_path) as site:
        monkeypatch.setattr("mirror.peers.upload_exchange.socket.create_connection", connected)
        answer = await site.front.ask("PATCH", site.location, body=_LARGE)
        assert answer.status == 202
        assert site.content == _LARGE


async def test_headers_that_are_not_signed_are_passed_on_only_if_they_are_as_usual(tmp_path: Path) -> None:
    """Somebody between two replicas may have written them."""
    said = {"Content-Type": "text/html", "Retry-After": "<b>"}

    async def wrap(verb: PeerVerb, peer: PeerRequest) -> Any:
        return web.Response(status=429, body=b"<script>", headers=said)

    async with _site(tmp_path, wrap=wrap) as site:
        answer = await site.front.ask("GET", site.location)
        assert answer.status == 429
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "Retry-After" not in answer.headers
        said |= {"Content-Type": "application/json; charset=utf-8", "Retry-After": "5"}
        answer = await site.front.ask("GET", site.location)
        assert {name: answer.headers[name] for name in said} == said


@pytest.mark.parametrize(
    "changed",
    [
        lambda session: session[:-1] + ("0" if session[-1] != "0" else "1"),
        lambda session: session.replace("abc", "abd"),
        lambda session: session.replace("abc-1_2.", "abc-1_2.0"),
        lambda session: "abc-1_2",
        lambda session: session_name(SECRET.encode(), "abc-1_2", "http://10.1.1.1:5001", _REPO, _CALLER),
        lambda session: session_name(b"x" * 40, "abc-1_2", "http://10.0.0.1:5001", _REPO, _CALLER),
    ],
)
async def test_an_id_that_was_made_up_leads_nowhere(tmp_path: Path, changed: Callable[[str], str]) -> None:
    asked = []

    async def wrap(verb: PeerVerb, peer: PeerRequest) -> Any:
        asked.append(peer)

    async with _site(tmp_path, wrap=wrap) as site:
        answer = await site.front.ask("PATCH", f"/v2/app/blobs/uploads/{changed(site.session)}", body=b"x")
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert not asked


async def test_another_caller_s_session_is_not_passed_on(tmp_path: Path) -> None:
    async with _site(tmp_path) as site:
        session = session_name(SECRET.encode(), "abc", site.listener.address, _REPO, "user:bob")
        site.there.sessions[session] = bytearray()
        answer = await site.front.ask("PATCH", f"/v2/app/blobs/uploads/{session}", body=b"x")
        assert answer.status == 404
        assert site.there.sessions[session] == b""


async def test_133_a_session_whose_replica_is_gone_is_unknown(tmp_path: Path) -> None:
    """Row 133: the client begins anew. The replica is left alone then, and costs nothing."""
    async with _site(tmp_path) as site:
        session = session_name(SECRET.encode(), "abc", SENDER.replace("9", "8"), _REPO, _CALLER)
        answer = await site.front.ask("PATCH", f"/v2/app/blobs/uploads/{session}", body=b"x")
        assert answer.status == 404
        # nobody listens there any more
        site.listener.close()
        for _ in range(2):
            answer = await site.front.ask("PATCH", site.location, body=_LARGE)
            assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert not site.health.is_up(site.listener.address)
        # a new session is begun here
        assert (await site.front.ask("POST", "/v2/app/blobs/uploads/")).status == 202


async def test_133_a_replica_that_dies_in_the_body_is_not_taken_for_a_session_that_has_ended(tmp_path: Path) -> None:
    """Row 133: it may have taken a part of the body."""

    async def die(verb: PeerVerb, peer: PeerRequest) -> Any:
        await peer.request.content.read(1000)
        assert peer.request.transport is not None
        peer.request.transport.abort()
        raise ConnectionResetError

    async with _site(tmp_path, wrap=die) as site:
        answer = await site.front.ask("PATCH", site.location, body=_LARGE)
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (503, "UNAVAILABLE")
        assert "Retry-After" in answer.headers


async def test_a_replica_that_works_long_is_waited_for(tmp_path: Path) -> None:
    """As long as it says that it is alive: to commit a large blob takes time."""
    looks, slow = 0, asyncio.Event()

    async def wait(verb: PeerVerb, peer: PeerRequest) -> Any:
        nonlocal looks
        if peer.request.method == "HEAD":
            looks += 1
            if looks == 3:
                slow.set()
        elif peer.request.method == "PUT":
            await slow.wait()
        return await verb.answer(peer)

    async with _site(tmp_path, wrap=wait, look=0.05) as site:
        digest = Digest.of(b"end")
        done = await site.front.ask("PUT", f"{site.location}?digest={digest}", body=b"end")
        assert done.status == 201
        assert looks >= 3


async def test_a_replica_that_says_nothing_any_more_is_not_waited_for(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def hang(verb: PeerVerb, peer: PeerRequest) -> Any:
        await never.wait()

    async with _site(tmp_path, wrap=hang, look=0.05) as site:
        status = await site.front.ask("GET", site.location)
        assert status.status == 404
        never.set()


async def test_a_client_that_goes_away_leaves_what_it_has_sent(tmp_path: Path) -> None:
    async with _site(tmp_path) as site:
        head = (
            f"PATCH {site.location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_LARGE)}\r\n"
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        _, writer = await site.front.connect()
        writer.write(head.encode() + _LARGE[: 1 << 20])
        await writer.drain()
        await until(lambda: len(site.content) == 1 << 20)
        writer.close()
        # the other replica notices, and the client can go on
        status = await site.front.ask("GET", site.location)
        assert (status.status, status.headers["Range"]) == (204, f"0-{(1 << 20) - 1}")
        rest = await site.front.ask("PATCH", site.location, body=_LARGE[1 << 20 :])
        assert rest.status == 202
        assert site.content == _LARGE


async def test_a_session_that_has_ended_says_nothing_about_its_replica(tmp_path: Path) -> None:
    """The answer to HEAD says the length of a text that does not come."""
    async with _site(tmp_path) as site:
        assert (await site.front.ask("DELETE", site.location)).status == 204
        for method in ("HEAD", "GET"):
            assert (await site.front.ask(method, site.location)).status == 404
        assert site.health.is_up(site.listener.address)
        assert site.health.state(site.listener.address).reason == ""


async def test_a_replica_that_was_replaced_in_between_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """The new one knows nothing of the session, and the answer of the old one never comes."""
    looks, never = 0, asyncio.Event()

    async def replaced(verb: PeerVerb, peer: PeerRequest) -> Any:
        nonlocal looks
        if peer.request.method == "HEAD":
            looks += 1
            raise UploadUnknown("no such upload")
        await peer.request.read()
        await never.wait()

    async with _site(tmp_path, wrap=replaced, look=0.01) as site:
        answer = await site.front.ask("PATCH", site.location, body=b"x")
        assert answer.status == 503
        assert looks > 3
        never.set()


async def test_what_a_client_writes_besides_ascii_is_refused_like_anything_wrong(tmp_path: Path) -> None:
    async with _site(tmp_path) as site:
        reader, writer = await site.front.connect()
        head = f"PATCH {site.location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n"
        writer.write(head.encode() + b"Content-Range: \xe9\xc3\xa9\r\n\r\nx")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 416 "), answer
        assert site.content == b""


def test_pushes_have_threads_while_other_replicas_take_nothing() -> None:
    """Also two replicas that pass uploads on to each other: whoever receives needs a thread, too."""
    threads, frozen = BucketThreads(), threading.Event()
    try:
        for _ in range(200):
            threads.passed.submit(frozen.wait)
        assert threads.pushes.submit(int).result(60) == 0
    finally:
        frozen.set()
        threads.close()


async def test_no_credentials_of_the_caller_go_to_the_other_replica(tmp_path: Path) -> None:
    seen: list[str] = []

    async def look(verb: PeerVerb, peer: PeerRequest) -> Any:
        seen.append(str(dict(peer.request.headers)))
        return await verb.answer(peer)

    async with _site(tmp_path, wrap=look) as site:
        headers = {"Authorization": "Bearer top-secret", "Cookie": "a=top-secret"}
        assert (await site.front.ask("PATCH", site.location, body=b"x", headers=headers)).status == 202
        [found] = seen
        assert "top-secret" not in found
        assert json.dumps({"caller": _CALLER, "repository": "corp/app"}) in found


@pytest.mark.parametrize(
    ("target", "identity", "status"),
    [
        ("v2/app/blobs/uploads/", '{"caller": "user:a", "repository": "corp/app"}', 404),
        ("v2/app/manifests/latest", '{"caller": "user:a", "repository": "corp/app"}', 404),
        ("v2/app/blobs/uploads/../../x", '{"caller": "user:a", "repository": "corp/app"}', 404),
        ("v2/app/blobs/uploads/s", "{}", 400),
        ("v2/app/blobs/uploads/s", "", 400),
        ("v2/app/blobs/uploads/s", '{"caller": "", "repository": "corp/app"}', 400),
        ("v2/app/blobs/uploads/s", '{"caller": "user:a", "repository": "corp/../x"}', 400),
        ("v2/app/blobs/uploads/s", "[" * 5000, 400),
        ("admin/v1/status", '{"caller": "user:a", "repository": "corp/app"}', 404),
    ],
)
async def test_a_member_can_pass_on_uploads_only(tmp_path: Path, target: str, identity: str, status: int) -> None:
    async with _site(tmp_path) as site:
        request = site.listener.signed("GET", f"/peer/v1/upload/{target}", {"Mirror-Identity": identity})
        answer = await asyncio.to_thread(site.listener.exchange, request)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
