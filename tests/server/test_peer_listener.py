"""Attacks on the internal listener: only what a member has signed, for this replica, now and once, is answered."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mirror.peers import peer_client
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_client import PeerClient, PeerSilent
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner, SignedCall
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.used_nonces import NoncesFull, UsedNonces
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.server.peers.peer_front import PeerRequest, PeerVerb, small_body
from tests.support.peer_listener import SECRET, SENDER, PeerListener, peer_listener, request_bytes

_STRANGER: Final = "http://10.6.6.6:5001"
_BLOB: Final = f"/peer/v1/blob/docker.io/library/alpine/sha256:{'a' * 64}"


class _Verbs:
    """Two verbs that write down what came to them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []

    async def blob(self, peer: PeerRequest) -> web.StreamResponse:
        """Answers with the path."""
        self.seen.append((peer.call.sender, peer.rest, b""))
        return web.Response(body=f"blob {peer.rest}".encode())

    async def notice(self, peer: PeerRequest) -> web.StreamResponse:
        """Takes a body."""
        self.seen.append((peer.call.sender, peer.rest, await small_body(peer)))
        return web.Response(status=204)

    def all(self) -> list[PeerVerb]:
        """Both."""
        return [
            PeerVerb("blob/", frozenset({"GET", "HEAD"}), self.blob),
            PeerVerb("notice", frozenset({"POST"}), self.notice, 1000),
        ]


def _attack(folder: Path, attack: Callable[[PeerListener, _Verbs], Awaitable[None]], **how: Any) -> None:
    async def run() -> None:
        verbs = _Verbs()
        async with peer_listener(folder, verbs.all(), **how) as listener:
            await attack(listener, verbs)

    asyncio.run(run())


async def _status(listener: PeerListener, request: bytes) -> int:
    answer = await asyncio.to_thread(listener.exchange, request)
    found = re.match(rb"HTTP/1.[01] (\d{3})", answer)
    assert found, answer
    # nothing that is not meant for those who ask, and no secret
    assert SECRET.encode() not in answer
    return int(found[1])


def test_a_member_is_answered_and_the_answer_is_signed(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        client = PeerClient(listener.signer(), health := PeerHealth())
        answer = await client.call(listener.address, "blob", "GET", f"{_BLOB}?x=1")
        rest = _BLOB.removeprefix("/peer/v1/blob/") + "?x=1"
        assert (answer.status, answer.content) == (200, f"blob {rest}".encode())
        sent = await client.call(listener.address, "notice", "POST", "/peer/v1/notice", body=b'{"kinds": []}')
        assert sent.status == 204
        head = await client.call(listener.address, "blob", "HEAD", _BLOB)
        assert (head.status, head.content) == (200, b"")
        assert verbs.seen[:2] == [(SENDER, rest, b""), (SENDER, "", b'{"kinds": []}')]
        assert health.state(listener.address).version == "1.2.3"
        await client.aclose()

    _attack(tmp_path, attack)


def test_a_request_counts_once(tmp_path: Path) -> None:
    """A replay is refused, whichever worker gets it, and whatever became of the first."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        request = listener.signed("GET", _BLOB)
        assert await _status(listener, request) == 200
        assert await _status(listener, request) == 401
        listener.clock[0] += 59
        assert await _status(listener, request) == 401
        assert len(verbs.seen) == 1

    _attack(tmp_path, attack)


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """The machine of the sender has gone, and says nothing about it; or somebody between has kept the rest."""

    async def notice(peer: PeerRequest) -> web.StreamResponse:
        return web.Response(body=await small_body(peer, patience=0.05))

    async def attack() -> None:
        async with peer_listener(tmp_path, [PeerVerb("notice", frozenset({"POST"}), notice, 1000)]) as listener:
            request = listener.signed("POST", "/peer/v1/notice", body=b"x" * 100)
            assert await _status(listener, request[:-1]) == 408

    asyncio.run(attack())


def test_a_request_to_one_worker_is_refused_by_another(tmp_path: Path) -> None:
    memory = UsedNonces.made()
    other = UsedNonces(memory.descriptor)
    assert memory.use("0f" * 16, 1000.0)
    assert not other.use("0f" * 16, 1060.0)
    # it could not be taken any more by now
    assert other.use("0f" * 16, 1121.0)
    assert not memory.use("0f" * 16, 1121.0)
    memory.close()


def test_another_process_sees_what_was_used() -> None:
    memory = UsedNonces.made()
    assert memory.use("aa" * 16, 1000.0)
    code = (
        "import sys; from mirror.peers.used_nonces import UsedNonces\n"
        "n = UsedNonces(int(sys.argv[1])); print(n.use('aa' * 16, 1001.0), n.use('bb' * 16, 1001.0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(memory.descriptor)],
        pass_fds=[memory.descriptor],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
    assert not memory.use("bb" * 16, 1002.0)
    memory.close()


def test_a_flood_of_members_is_refused_rather_than_forgotten() -> None:
    memory = UsedNonces.made(buckets=1)
    for number in range(170):
        assert memory.use(f"{number:032x}", 1000.0)
    with pytest.raises(NoncesFull):
        memory.use("f" * 32, 1000.0)
    assert not memory.use(f"{0:032x}", 1119.0)
    assert memory.use("f" * 32, 1121.0)
    memory.close()


def test_what_was_signed_before_a_restart_is_refused(tmp_path: Path) -> None:
    """The memory of what was taken is gone then."""
    steady = [50.0]
    memory = UsedNonces.made(steady=lambda: steady[0])

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        assert await _status(listener, listener.signed("GET", _BLOB, age=5)) == 401
        assert not verbs.seen
        steady[0] += 10
        listener.clock[0] += 10
        assert await _status(listener, listener.signed("GET", _BLOB, age=15)) == 401
        assert await _status(listener, listener.signed("GET", _BLOB, age=5)) == 200

    _attack(tmp_path, attack, nonces=memory)
    memory.close()


@pytest.mark.parametrize("ahead", [7200.0, -1e9])
def test_a_clock_that_is_corrected_after_the_start_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """The hardware has another time until that of the network is known."""
    right = time.time
    with monkeypatch.context() as booting:
        booting.setattr(time, "time", lambda: right() + ahead)
        memory = UsedNonces.made()

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        assert await _status(listener, listener.signed("GET", _BLOB)) == 200

    _attack(tmp_path, attack, nonces=memory)
    memory.close()


def test_whoever_has_no_right_gets_nothing(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        good = listener.signed("GET", _BLOB)
        assert await _status(listener, request_bytes("GET", _BLOB, {})) == 401
        assert await _status(listener, request_bytes("GET", _BLOB, {"Authorization": "Basic YTpi"})) == 401
        assert await _status(listener, listener.signed("GET", _BLOB, secret="x" * 40)) == 401
        assert await _status(listener, listener.signed("GET", _BLOB, cluster="other")) == 401
        assert await _status(listener, listener.signed("GET", _BLOB, receiver="http://10.0.0.1:5001")) == 401
        assert await _status(listener, listener.signed("GET", _BLOB, sender=_STRANGER)) == 403
        assert await _status(listener, listener.signed("GET", _BLOB, sender=listener.address)) == 403
        assert await _status(listener, good.replace(b"version=1", b"version=2")) == 400
        assert await _status(listener, good.replace(SENDER.encode(), _STRANGER.encode())) == 401
        assert await _status(listener, good.replace(b"GET", b"HEAD")) == 401
        assert await _status(listener, good.replace(b"alpine", b"secret")) == 401
        twice = good.replace(b"Host: peer", b"Host: peer\r\nRange: bytes=0-\r\nRange: bytes=1-")
        assert await _status(listener, twice) == 400
        for age in (3600, -3600, 61, -61):
            assert await _status(listener, listener.signed("GET", _BLOB, age=age)) == 401
        assert not verbs.seen
        # none of this has used the nonce of the request that is right
        assert await _status(listener, good) == 200

    _attack(tmp_path, attack)


def test_the_log_counts_refusals_by_reason(tmp_path: Path) -> None:
    """Apart from its own fields: one reason is called `time`, as the time of each line is."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        with capture_logs() as lines:
            assert await _status(listener, listener.signed("GET", _BLOB, age=3600)) == 401
        [line] = [line for line in lines if line["event"] == "peer requests refused"]
        assert line["counts"] == {"time": 1}
        assert "clock" in line["reason"]
        assert "time" not in line

    _attack(tmp_path, attack)


def test_who_has_not_signed_learns_no_names(tmp_path: Path) -> None:
    """Neither that of the cluster nor the address of the replica."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        for request in (
            request_bytes("GET", _BLOB, {}),
            listener.signed("GET", _BLOB, secret="x" * 40),
            listener.signed("GET", _BLOB, cluster="other"),
            listener.signed("GET", _BLOB, receiver="http://10.0.0.1:5001"),
        ):
            answer = await asyncio.to_thread(listener.exchange, request)
            assert b" 401 " in answer
            assert b'mirror"' not in answer.lower()
            assert b"cluster mirror" not in answer
            assert listener.address.encode() not in answer

    _attack(tmp_path, attack)


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_member_whose_clock_is_wrong_is_told_the_right_time(tmp_path: Path, ahead: int) -> None:
    """By the clock of the one that is asked, so that a replay gains nothing."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        signer = PeerSigner(
            "mirror", SENDER, ClusterSecrets(listener.secret_file), now=lambda: listener.clock[0] + ahead
        )
        client = PeerClient(signer, health := PeerHealth())
        for _ in range(2):
            assert (await client.call(listener.address, "blob", "GET", _BLOB)).status == 200
        assert len(verbs.seen) == 2
        assert health.state(listener.address).up
        await client.aclose()
        # nobody else can say what the time is
        lie = {"mirror-time": "1", "content-length": "0"}
        signed = signer.sign(listener.address, "GET", _BLOB, {})
        with pytest.raises(PeerRefused):
            signed.check(401, {**lie, "mirror-answer-mac": "0" * 64})

    _attack(tmp_path, attack)


def test_a_member_that_has_just_joined_is_looked_up(tmp_path: Path) -> None:
    async def doubt(members: ClusterMembers) -> None:
        members.replace([SENDER, _STRANGER])

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        assert await _status(listener, listener.signed("GET", _BLOB, sender="http://10.7.7.7:5001")) == 403
        assert await _status(listener, listener.signed("GET", _BLOB, sender=_STRANGER)) == 200

    _attack(tmp_path, attack, doubt=doubt)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("DELETE", _BLOB, 405),
        ("POST", _BLOB, 405),
        ("GET", "/peer/v1/notice", 405),
        ("POST", "/peer/v1/notice/", 404),
        ("POST", "/peer/v1/notice?x", 404),
        ("GET", "/peer/v1/", 404),
        ("GET", "/peer/v2/blob/x", 404),
        ("GET", "/peer/v1/../v1/blob/x", 404),
        ("GET", "/peer/v1/%62lob/x", 404),
        ("GET", "/v2/", 404),
        ("GET", "/token", 404),
        ("GET", "/metrics", 404),
        ("GET", "/admin/v1/status", 404),
        ("GET", "http://other/peer/v1/blob/x", 404),
        ("OPTIONS", "*", 404),
    ],
)
def test_a_member_finds_no_other_verbs_and_paths(tmp_path: Path, method: str, target: str, status: int) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        assert await _status(listener, listener.signed(method, target)) == status
        assert not verbs.seen

    _attack(tmp_path, attack)


def test_paths_come_to_the_verb_as_they_were_signed(tmp_path: Path) -> None:
    """Dots and escapes are for the verb to judge, which parses names as strictly as the public API."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        for rest in ("..%2f..%2fetc/passwd", "../../x", "%00", "a//b"):
            assert await _status(listener, listener.signed("GET", f"/peer/v1/blob/{rest}")) == 200
            assert verbs.seen[-1][1] == rest

    _attack(tmp_path, attack)


def test_bodies_have_a_length_a_limit_and_a_signature(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        body = json.dumps({"kinds": ["pins"]}).encode()
        good = listener.signed("POST", "/peer/v1/notice", body=body)
        assert await _status(listener, good.replace(b"pins", b"pinz")) == 400
        assert await _status(listener, listener.signed("POST", "/peer/v1/notice", body=b"x" * 1001)) == 413
        chunked = listener.signed("POST", "/peer/v1/notice", {"Transfer-Encoding": "chunked"})
        # of a request with both, the one that RFC 9112, 6.3 warns of
        assert await _status(listener, chunked + b"2\r\n{}\r\n0\r\n\r\n") == 400
        without = chunked.replace(b"Content-Length: 0\r\n", b"")
        assert await _status(listener, without + b"2\r\n{}\r\n0\r\n\r\n") in (401, 411)
        assert await _status(listener, listener.signed("GET", _BLOB, body=b"x")) == 413
        assert not verbs.seen
        assert await _status(listener, listener.signed("POST", "/peer/v1/notice", body=body)) == 204

    _attack(tmp_path, attack)


def test_huge_and_slow_heads_are_refused(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        huge = listener.signed("GET", _BLOB, {"X-Padding": "x" * (17 << 10)})
        assert await _status(listener, huge) == 431
        enormous = request_bytes("GET", _BLOB, {"X-Padding": "x" * (1 << 20)})
        # the rest of it is not read, so the answer may be lost
        assert b" 200 " not in await asyncio.to_thread(listener.exchange, enormous)
        # the connection is closed while the client still sends
        assert await asyncio.to_thread(listener.exchange, listener.signed("GET", _BLOB)[:-1]) == b""
        assert not verbs.seen

    _attack(tmp_path, attack, head=0.1)


# ----------------------------------------------------------------------------------------------------- who asks


def test_a_peer_that_answers_garbage_is_left_alone(tmp_path: Path) -> None:
    """Whoever has taken the address of a member cannot answer for it."""

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run(answer: bytes) -> tuple[type[BaseException], str]:
        server = await asyncio.start_server(lambda r, w: garbage(r, w, answer), "127.0.0.1", 0)
        member = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (tmp_path / "cluster-secret").write_text(SECRET)
        async with peer_listener(tmp_path, []) as listener:
            client = PeerClient(listener.signer(), health := PeerHealth())
            with pytest.raises((PeerSilent, PeerRefused)) as failed:
                await client.call(member, "notice", "POST", "/peer/v1/notice", body=b"{}")
            assert not health.state(member).up
            with pytest.raises(PeerSilent, match="left alone"):
                await client.call(member, "notice", "POST", "/peer/v1/notice", body=b"{}")
            await client.aclose()
        server.close()
        return failed.type, str(failed.value)

    for answer in (
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nMirror-Answer-MAC: " + b"0" * 64 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nMirror-Answer-MAC: \xff\r\n\r\n{}",
    ):
        kind, message = asyncio.run(run(answer))
        assert kind is PeerRefused
        assert "not signed by a replica" in message
    kind, message = asyncio.run(run(b"HTTP/1.1 401 No\r\nContent-Length: 7\r\n\r\n\x1b[31mno"))
    assert kind is PeerRefused
    assert "it refuses this replica: ?[31mno" in message
    for answer in (b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"):
        assert asyncio.run(run(answer))[0] is PeerSilent


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("method", "target"), [("GET", _BLOB), ("POST", "/peer/v1/notice")])
def test_a_kept_connection_that_has_ended_is_no_failure(
    tmp_path: Path, method: str, target: str, *, resets: bool
) -> None:
    """As after a restart of the member: it is asked again on a new connection, by a request that is signed anew."""

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        accepted, together = 0, asyncio.Event()

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            if accepted == 2:
                together.set()
            # two connections are kept
            await together.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", listener.port)
            far_writer.write(await _message(reader))
            writer.write(await _message(far_reader))
            if again := await _message(reader):
                # it is taken, and its answer is lost: it must not be sent as it was signed
                far_writer.write(again)
                await _message(far_reader)
            far_writer.close()
            if resets:
                writer.transport.abort()
            writer.close()

        server = await asyncio.start_server(between, "127.0.0.1", 0)
        middle = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = PeerClient(_signer_for(listener, middle), health := PeerHealth(), head=60.0)
        body = b"{}" if method == "POST" else b""
        asked = [client.call(middle, "test", method, target, body=body) for _ in range(3)]
        first = await asyncio.gather(*asked[:2])
        assert (await asked[2]).status == first[0].status == first[1].status
        assert accepted == 3
        assert health.state(middle).up
        assert len(verbs.seen) == 4, "what was taken is not signed anew"
        await client.aclose()
        server.close()

    _attack(tmp_path, attack)


def test_a_kept_connection_that_ends_as_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the request can be written then."""
    note_kept = peer_client._note_kept

    async def abort(session: aiohttp.ClientSession, context: SimpleNamespace, event: Any) -> None:
        await note_kept(session, context, event)
        assert session.connector is not None
        for taken in session.connector._acquired:
            assert isinstance(taken.transport, asyncio.Transport)
            taken.transport.abort()

    monkeypatch.setattr(peer_client, "_note_kept", abort)

    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        client = PeerClient(listener.signer(), health := PeerHealth(), head=60.0)
        for _ in range(2):
            assert (await client.call(listener.address, "test", "GET", _BLOB)).status == 200
        assert health.state(listener.address).up
        assert len(verbs.seen) == 2
        await client.aclose()

    _attack(tmp_path, attack)


def test_a_new_connection_that_ends_is_a_failure(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        accepted = 0

        async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            await _message(reader)
            writer.close()

        server = await asyncio.start_server(end, "127.0.0.1", 0)
        middle = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = PeerClient(_signer_for(listener, middle), health := PeerHealth(), head=60.0)
        with pytest.raises(PeerSilent, match="Server disconnected"):
            await client.call(middle, "test", "GET", _BLOB)
        assert accepted == 1
        assert not health.state(middle).up
        await client.aclose()
        server.close()

    _attack(tmp_path, attack)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """The next request or answer of a connection; empty at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    length = re.search(rb"Content-Length: (\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


def _signer_for(listener: PeerListener, middle: str) -> PeerSigner:
    """What is signed for the listener comes to it by somebody between."""

    class _ForTheMember(PeerSigner):
        def sign(self, member: str, method: str, target: str, headers: Mapping[str, str]) -> SignedCall:
            assert member == middle
            return super().sign(listener.address, method, target, headers)

    return _ForTheMember("mirror", SENDER, ClusterSecrets(listener.secret_file))


def test_an_answer_that_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    async def attack(listener: PeerListener, verbs: _Verbs) -> None:
        replaced = b""

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", listener.port)
            far_writer.write(await reader.readuntil(b"\r\n\r\n"))
            head = await far_reader.readuntil(b"\r\n\r\n")
            rest = await far_reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.write((head + rest).replace(replaced, replaced.swapcase().replace(b"2", b"4")))
            await writer.drain()
            writer.close()
            far_writer.close()

        server = await asyncio.start_server(between, "127.0.0.1", 0)
        middle = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        signer = _signer_for(listener, middle)
        for was, fails in ((b"", False), (b"200 OK", True), (b"blob ", True)):
            replaced = was
            client = PeerClient(signer, PeerHealth())
            if fails:
                with pytest.raises(PeerRefused):
                    await client.call(middle, "blob", "GET", _BLOB)
            else:
                assert (await client.call(middle, "blob", "GET", _BLOB)).status == 200
            await client.aclose()
        server.close()

    _attack(tmp_path, attack)
