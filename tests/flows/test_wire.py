"""Requests as no client library writes them, sent as bytes: each has its answer, and none is ours to crash on."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror import telemetry
from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until

_LAYER = noise(300_000)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_HOST = "Host: x\r\n"


@dataclass(frozen=True)
class _Answer:
    status: int
    head: str
    body: bytes

    @property
    def code(self) -> str:
        [error] = json.loads(self.body)["errors"]
        return str(error["code"])


def _answers(received: bytes, heads: frozenset[int] = frozenset()) -> list[_Answer]:
    """What came, by length; `heads` are the numbers of requests whose answer has no body."""
    found: list[_Answer] = []
    while received:
        head, gap, received = received.partition(b"\r\n\r\n")
        assert gap, f"an answer that is cut: {head[:300]!r}"
        text = head.decode("latin-1")
        status = re.match(r"HTTP/(?:1\.[01]|0\.9) (\d{3}) ", text)
        length = re.search(r"(?i)\r\ncontent-length: (\d+)", text)
        assert status, f"no answer: {text[:300]}"
        size = int(length[1]) if length and len(found) not in heads and status[1] != "304" else 0
        assert len(received) >= size, "a body that is cut"
        found.append(_Answer(int(status[1]), text, received[:size]))
        received = received[size:]
    return found


async def _one(mirror: LiveMirror, *pieces: bytes) -> _Answer:
    [answer] = _answers(await mirror.raw(*pieces))
    return answer


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry) -> None:
    registry.add_image("library/app", "v1", [_LAYER])


# ---------------------------------------------------------------------------------------------- what is no request


@pytest.mark.parametrize(
    "request_text",
    [
        "hello\r\n\r\n",
        "GET\r\n\r\n",
        f"GET /v2/ HTTP/9.9\r\n{_HOST}\r\n",
        f"GET /v2/\r\n{_HOST}\r\n",
        f"GÉT /v2/ HTTP/1.1\r\n{_HOST}\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}No Colon\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}Spaced : x\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST} Folded: x\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}X: a\0b\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_32_malformed(mirror: LiveMirror, request_text: str) -> None:
    """Row 32: what cannot be read is answered with 400 and our own JSON, and the connection is closed."""
    answer = await _one(mirror, request_text.encode("latin-1"))
    assert answer.status == 400
    assert answer.code == "UNSUPPORTED"
    assert "Docker-Distribution-API-Version: registry/2.0" in answer.head


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5x\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
async def test_32_smuggling(mirror: LiveMirror, framing: str) -> None:
    """Row 32: a body whose end two readers could see in two places is refused: what follows is never a request."""
    smuggled = f"0\r\n\r\nGET {_AT} HTTP/1.1\r\n{_HOST}\r\n"
    answers = _answers(await mirror.raw(f"GET /v2/ HTTP/1.1\r\n{_HOST}{framing}\r\n{smuggled}".encode()))
    assert answers[0].status == 400
    assert len(answers) == 1


@pytest.mark.parametrize("target", ["/v2/", _AT, "/metrics", "/none"])
async def test_32_chunks_before_http_1_1(mirror: LiveMirror, target: str) -> None:
    """Row 32: HTTP/1.0 has no chunks: whoever passes such a request on may see its end elsewhere (RFC 9112, 6.1)."""
    text = f"GET {target} HTTP/1.0\r\n{_HOST}Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled = f"0\r\n\r\nGET {_AT} HTTP/1.1\r\n{_HOST}\r\n"
    for pieces in ([text + smuggled], [text, smuggled]):
        answer = await _one(mirror, *(piece.encode() for piece in pieces))
        assert (answer.status, answer.code) == (400, "UNSUPPORTED")
        assert mirror.events("malformed request")


@pytest.mark.parametrize("hosts", ["Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n"])
async def test_32_two_hosts(mirror: LiveMirror, hosts: str) -> None:
    """Row 32: two Host headers mean nothing (RFC 9112, 3.2)."""
    answer = await _one(mirror, f"GET /v2/ HTTP/1.1\r\n{hosts}\r\n".encode())
    assert answer.status == 400


async def test_32_bare_line_feeds(mirror: LiveMirror) -> None:
    """Row 32: lines end with CR LF."""
    answers = _answers(await mirror.raw(f"GET /v2/ HTTP/1.1\nHost: x\n\nGET {_AT} HTTP/1.1\nHost: x\n\n".encode()))
    assert [answer.status for answer in answers] == [400]


@pytest.mark.parametrize(
    "request_text",
    [
        f"GET /v2/{'a' * 100_000}/manifests/v1 HTTP/1.1\r\n{_HOST}\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}X: {'a' * 100_000}\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}{'a' * 100_000}: x\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}" + "X: y\r\n" * 100_000 + "\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}" + f"X: {'y' * 1_000}\r\n" * 33 + "\r\n",
        f"GET /v2/ HTTP/1.1\r\n{_HOST}" + f"X: {'y' * 30_000}\r\n" * 50,
        "G" * 100_000 + f" /v2/ HTTP/1.1\r\n{_HOST}\r\n",
    ],
    ids=["target", "value", "name", "many", "altogether", "never whole", "method"],
)
async def test_30_oversize(mirror: LiveMirror, request_text: str) -> None:
    """Row 30: too much is refused and the connection closed; it does not pile up in memory."""
    received = await mirror.raw(request_text.encode())
    # with input that was not read the closed connection may be reset before its answer arrives
    assert received == b"" or _answers(received)[0].status in (400, 413, 414, 431)


async def test_30_a_head_in_pieces(mirror: LiveMirror) -> None:
    """Row 30: the head is refused when too much of it has come, not at its end, and is answered; what was asked before
    it on the same connection is, too.
    """
    before = f"GET /v2/ HTTP/1.1\r\n{_HOST}\r\n"
    lines = f"X: {'y' * 5_000}\r\n" * 7
    for pieces in (
        [f"{before}{before[:-2]}{lines}"],
        [before, before[:-2], *(f"{line}\r\n" for line in lines.splitlines())],
    ):
        answers = _answers(await mirror.raw(*(piece.encode() for piece in pieces)))
        assert [answer.status for answer in answers] == [200, 400]
        assert answers[1].code == "UNSUPPORTED"
        assert "larger than 32,768 bytes" in answers[1].body.decode()
    assert mirror.events("malformed request")


async def test_30_a_head_of_many_ranges(mirror: LiveMirror) -> None:
    """Rows 27, 30: a head of 32 KiB is read, for that is what 1,024 ranges of a large blob and a token need."""
    ranges = ",".join(f"{at:011}-{at:011}" for at in range(0, 256_000, 250))
    start = f"GET {_AT} HTTP/1.1\r\n{_HOST}Connection: close\r\nRange: bytes={ranges}\r\nAuthorization: Bearer "
    for size, status in ((32_000, 206), (33_000, 400)):
        answer = await _one(mirror, f"{start}{'t' * (size - len(start))}\r\n\r\n".encode())
        assert answer.status == status
    assert "ttt" not in mirror.log_text


async def test_30_long_but_allowed(mirror: LiveMirror) -> None:
    """Row 30: what registries' clients send is not too much: a long token, many accepted types."""
    token = "t" * 6000
    answer = await _one(
        mirror,
        f"GET /v2/library/app/manifests/v1 HTTP/1.1\r\n{_HOST}Authorization: Bearer {token}\r\n".encode()
        + b"Accept: application/vnd.oci.image.index.v1+json\r\n" * 30
        + b"Connection: close\r\n\r\n",
    )
    assert answer.status == 200
    assert token not in mirror.log_text


# ------------------------------------------------------------------------------------------------ odd targets


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/", 404, "UNSUPPORTED"),
        ("/v1/", 404, "UNSUPPORTED"),
        ("/v2x", 404, "UNSUPPORTED"),
        ("/v2/_catalog/", 404, "UNSUPPORTED"),
        ("/v2/library/app", 404, "UNSUPPORTED"),
        ("/v2/library/app/nothing/v1", 404, "UNSUPPORTED"),
        ("/favicon.ico", 404, "UNSUPPORTED"),
        ("/metrics/", 404, "UNSUPPORTED"),
        ("/v2/manifests/v1", 400, "NAME_INVALID"),
        ("/v2//manifests/v1", 400, "NAME_INVALID"),
        ("/v2/UPPER/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/..%2f..%2fetc/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/..%252fx/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%00b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%0d%0ab/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/caf%C3%A9/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%ff%fe/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/-a/manifests/v1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/library/app/manifests/..", 400, "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/%2e%2e", 400, "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/", 400, "MANIFEST_INVALID"),
        (f"/v2/library/app/manifests/{'a' * 129}", 400, "MANIFEST_INVALID"),
        ("/v2/library/app/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/library/app/manifests/sha256%3A..%2F..", 404, "UNSUPPORTED"),
        ("/v2/library/app/blobs/v1", 400, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha256:" + "g" * 64, 400, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha1:" + "a" * 40, 400, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/sha256:" + "a" * 64 + "%00", 400, "DIGEST_INVALID"),
        ("/v2/library/app/blobs/" + "sha256:" + "a" * 63 + "%0a", 400, "DIGEST_INVALID"),
        ("/v2/library/app/tags/list?" + "&".join(f"a{n}=1" for n in range(100)), 404, "UNSUPPORTED"),
    ],
)
async def test_31_odd_paths(registry: FakeRegistry, mirror: LiveMirror, target: str, status: int, code: str) -> None:
    """Row 31: names and digests are checked after decoding once; upstream and disk never see the odd ones."""
    answer = await _one(mirror, f"GET {target} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
    assert (answer.status, answer.code) == (status, code)
    assert not registry.requests
    head = await mirror.raw(f"HEAD {target} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
    assert [one.status for one in _answers(head, frozenset({0}))] == [status]


async def test_79_absolute_target(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 79: of an absolute target only the path counts; its host is never contacted, nor does it route."""
    for host in ("evil.example", "169.254.169.254", "user:pass@evil.example:80"):
        target = f"http://{host}/v2/library/app/manifests/v1"
        answer = await _one(mirror, f"GET {target} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
        assert answer.status == 200, host
    assert {request.header("Host") for request in registry.requests} == {registry.host}


@pytest.mark.parametrize("target", ["evil.example:443", "127.0.0.1:22", "/v2/"])
async def test_79_connect(registry: FakeRegistry, mirror: LiveMirror, target: str) -> None:
    """Row 79: CONNECT is refused and opens nothing."""
    answers = _answers(await mirror.raw(f"CONNECT {target} HTTP/1.1\r\n{_HOST}\r\nGET /v2/ HTTP/1.1\r\n\r\n".encode()))
    assert answers[0].status in (400, 404, 405)
    assert not registry.requests


# ---------------------------------------------------------------------------------------------------- writes


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize(
    "target",
    ["/v2/library/app/manifests/v1", _AT, "/v2/library/app/tags/list", "/v2/", "/v2/library/app/blobs/uploads/"],
)
async def test_33_writes(registry: FakeRegistry, mirror: LiveMirror, method: str, target: str) -> None:
    """Row 33: 405 with `Allow` and the code UNSUPPORTED; upstream hears nothing of it."""
    answer = await _one(mirror, f"{method} {target} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert "\r\nAllow: GET, HEAD" in answer.head
    assert not registry.requests


async def test_33_upload_session(mirror: LiveMirror) -> None:
    """Row 33: an upload is refused at whichever step it begins, also when asked about by GET."""
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        target = "/v2/library/app/blobs/uploads/0b7e3b50-e4b6-4b3c-8d3b-1f1b4c7f0e5a?_state=x"
        answer = await _one(mirror, f"{method} {target} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")


async def test_33_a_large_body_is_not_waited_for(mirror: LiveMirror) -> None:
    """Row 33: who pushes a gigabyte is refused at once, not after it has come."""
    reader, writer = await mirror.connect()
    writer.write(f"PUT {_AT} HTTP/1.1\r\n{_HOST}Content-Length: 1000000000\r\n\r\n".encode() + bytes(100_000))
    assert (await reader.readline()).startswith(b"HTTP/1.1 405")
    writer.close()


async def test_body_of_a_get_is_ignored(mirror: LiveMirror) -> None:
    """A GET may carry a body (RFC 9110, 9.3.1); it is not the next request."""
    body = f"GET {_AT} HTTP/1.1\r\n{_HOST}\r\n"
    answers = _answers(
        await mirror.raw(
            f"GET /v2/ HTTP/1.1\r\n{_HOST}Content-Length: {len(body)}\r\n\r\n{body}".encode(),
            f"GET /v2/ HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode(),
        )
    )
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"{}")] * 2


# ------------------------------------------------------------------------------------------------ browsers


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize(
    "target",
    [
        "/v2/",
        _AT,
        "/v2/library/app/manifests/v1",
        "/v2/library/app/manifests/none",
        "/v2/library/app/tags/list",
        f"/v2/library/app/referrers/{_DIGEST}",
        "/v2/_catalog",
        "/v2/UPPER/manifests/v1",
        "/token",
        "/livez",
        "/readyz",
        "/metrics",
        "/",
        "/none",
    ],
)
async def test_nothing_runs_in_a_browser(mirror: LiveMirror, method: str, target: str) -> None:
    """Each answer of the public listener says that a browser shall neither guess its type nor run anything in it."""
    more = ["", "Range: bytes=0-9\r\n", "Range: bytes=900000-\r\n", "If-None-Match: *\r\n"]
    for fields in more:
        text = f"{method} {target} HTTP/1.1\r\n{_HOST}{fields}Connection: close\r\n\r\n"
        [answer] = _answers(await mirror.raw(text.encode()), frozenset({0} if method == "HEAD" else ()))
        assert "\r\nX-Content-Type-Options: nosniff" in answer.head
        assert "\r\nContent-Security-Policy: sandbox; default-src 'none'" in answer.head
        assert "text/html" not in answer.head


async def test_nothing_runs_in_a_browser_that_is_refused(mirror: LiveMirror) -> None:
    """The same holds for what cannot be read as a request."""
    for text in ("hello\r\n\r\n", f"GET /v2/ HTTP/1.0\r\n{_HOST}Transfer-Encoding: chunked\r\n\r\n"):
        answer = await _one(mirror, text.encode())
        assert answer.status == 400
        assert "\r\nX-Content-Type-Options: nosniff" in answer.head
        assert "\r\nContent-Security-Policy: sandbox; default-src 'none'" in answer.head


# ----------------------------------------------------------------------------------------- header values of others


@pytest.mark.parametrize(
    "sent", ["application/vnd.x\x01y", "application/vnd.x\ty", "application/vnd.x\x7f", "applicati\xf6n/x"]
)
async def test_an_upstreams_type_that_no_header_may_have(registry: FakeRegistry, mirror: LiveMirror, sent: str) -> None:
    """What upstream says of a type is not passed on as it is: the manifest is served, and the log has what was sent."""
    content = json.dumps({"schemaVersion": 2, "config": _descriptor(b"{}"), "layers": []}).encode()
    digest = registry.add_manifest("library/app", content, sent, "odd")
    for target in ("odd", digest):
        for method in ("HEAD", "GET"):
            answer = await mirror.ask(f"/v2/library/app/manifests/{target}", method=method)
            assert answer.status == mirror.events("request")[-1]["status"] == 200
            assert answer.headers["Content-Type"].startswith("application/")
    assert not mirror.events("connection crashed")


def _descriptor(content: bytes) -> dict[str, object]:
    return {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": str(Digest.of(content)),
        "size": len(content),
    }


@pytest.mark.parametrize(
    "stored", ["application/vnd.x\ny", "application/\x00", "application/\ud800", "application/\x85x"]
)
async def test_a_stored_type_that_no_header_may_have(registry: FakeRegistry, tmp_path: Path, stored: str) -> None:
    """The same of what a record on the disk says, whoever wrote it."""
    digest = registry.add_image("library/app", "v2", [_LAYER])
    target = f"/v2/library/app/manifests/{digest}"
    async with live_mirror(tmp_path / "again", {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(target)).status == 200
        written = 0
        for file in mirror.root.rglob("*"):
            if file.is_file() and b"fetchedAt" in (text := file.read_bytes()):
                file.write_text(json.dumps(json.loads(text) | {"mediaType": stored}))
                written += 1
        assert written
    async with live_mirror(tmp_path / "again", {"docker.io": registry.url}) as mirror:
        for method in ("HEAD", "GET"):
            answer = await mirror.ask(target, method=method)
            assert answer.status == mirror.events("request")[-1]["status"] == 200
            assert answer.headers["Content-Type"].isprintable()


async def test_a_header_that_cannot_be_sent(mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever header it is, the client has an answer that the log agrees with, and the connection serves on."""
    monkeypatch.setattr("mirror.server.registry.pull.age_warning", lambda _: {"Warning": "a\nb"})
    monkeypatch.setattr("mirror.server.registry.pull.cache_status", lambda _outcome: "mirror; detail=\ud800")
    answer = await mirror.ask("/v2/library/app/tags/list")
    assert (answer.status, answer.code) == (500, "UNKNOWN")
    [line] = mirror.events("request")
    assert (line["status"], line["error"]) == (
        500,
        "MirrorError: a header of the answer has characters that no header may have",
    )


# ------------------------------------------------------------------------------------------------- pipelines


async def test_29_pipelined(mirror: LiveMirror) -> None:
    """Row 29: requests in one piece are answered in order, whatever each costs."""
    targets = ["/v2/", _AT, "/v2/library/app/manifests/v1", "/v2/nothing", _AT, "/livez", "/v2/library/app/tags/list"]
    pipeline = "".join(f"GET {target} HTTP/1.1\r\n{_HOST}\r\n" for target in targets[:-1])
    pipeline += f"GET {targets[-1]} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n"
    answers = _answers(await mirror.raw(pipeline.encode()))
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200, 200]
    assert answers[0].body == b"{}"
    assert answers[1].body == answers[4].body == _LAYER
    assert json.loads(answers[2].body)["schemaVersion"] == 2
    assert answers[5].body == b"ok\n"
    assert json.loads(answers[6].body)["tags"] == ["v1"]


@pytest.mark.parametrize("protocol", ["h2c", "H2C, websocket", "websocket", "TLS/1.2"])
@pytest.mark.parametrize("body", ["", "hello"])
async def test_29_behind_a_request_for_another_protocol(mirror: LiveMirror, protocol: str, body: str) -> None:
    """Row 29: such a request is answered in HTTP/1.1, and ends its connection: the client sends again what was behind
    it, and does not wait for ever (RFC 9110, 7.8; RFC 9112, 9.3.2).
    """
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    upgrade = f"GET {_AT} HTTP/1.1\r\n{_HOST}Connection: Upgrade\r\nUpgrade: {protocol}\r\n{length}\r\n{body}"
    before, behind = f"GET /v2/ HTTP/1.1\r\n{_HOST}\r\n", f"GET /livez HTTP/1.1\r\n{_HOST}\r\n"
    for pieces in (
        [before + upgrade + behind],
        [before, upgrade, behind],
        [before + upgrade[:-3], upgrade[-3:] + behind],
    ):
        first, second = _answers(await mirror.raw(*(piece.encode() for piece in pieces)))
        assert (first.status, second.status) == (200, 200)
        assert second.body == _LAYER
        assert "\r\nConnection: close" in second.head


async def test_29_head_before_get(mirror: LiveMirror) -> None:
    """Rows 28, 29: the answer to a HEAD has no body, so that the next answer is where it should be."""
    methods = ["HEAD", "GET", "HEAD", "HEAD", "GET"]
    targets = [_AT, _AT, "/v2/library/app/manifests/v1", "/v2/library/app/manifests/none", _AT]
    pipeline = [f"{method} {target} HTTP/1.1\r\n{_HOST}\r\n" for method, target in zip(methods, targets, strict=True)]
    pipeline.append(f"HEAD /readyz HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n")
    answers = _answers(await mirror.raw("".join(pipeline).encode()), frozenset({0, 2, 3, 5}))
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200]
    assert answers[1].body == answers[4].body == _LAYER


async def test_29_byte_by_byte(mirror: LiveMirror) -> None:
    """A request may come in any pieces."""
    text = f"GET {_AT} HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode()
    answer = await _one(mirror, *(text[at : at + 1] for at in range(len(text))))
    assert answer.body == _LAYER


async def test_29_many_on_one_connection(mirror: LiveMirror) -> None:
    """A connection serves on and on, whatever was asked before."""
    ask = f"GET /v2/library/app/manifests/v1 HTTP/1.1\r\n{_HOST}\r\n".encode()
    answers = _answers(await mirror.raw(ask * 500, f"GET /v2/ HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode()))
    assert [answer.status for answer in answers] == [200] * 501


async def test_clients_that_vanish(mirror: LiveMirror) -> None:
    """Half requests, and resets in the middle of an answer, leave nothing behind and no trace but one log line."""
    for text in ("", "GE", f"GET {_AT} HTTP/1.1\r\nHo", f"GET {_AT} HTTP/1.1\r\n{_HOST}\r\n"):
        reader, writer = await mirror.connect()
        writer.write(text.encode())
        if text.endswith("\r\n\r\n"):
            await reader.readuntil(b"\r\n\r\n")
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    await mirror.idle()
    assert (await mirror.ask(_AT)).body == _LAYER


# ------------------------------------------------------------------------------------------------------ log


async def test_fields_of_the_access_log(mirror: LiveMirror) -> None:
    """One line per request says who asked what, what they got, and how it came about."""
    await mirror.ask("/v2/library/app/manifests/v1")
    await mirror.ask(_AT)
    await mirror.ask(_AT, headers={"Range": "bytes=0-9"})
    await mirror.ask("/v2/library/app/blobs/nonsense?ns=docker.io")
    lines = await until(lambda: found if len(found := mirror.events("request")) == 4 else None)
    for line in lines:
        assert line.keys() >= {
            "time",
            "level",
            "id",
            "client",
            "method",
            "path",
            "status",
            "bytes",
            "cache",
            "upstream",
        }
        assert line["duration"] >= 0
        assert (line["client"], line["method"]) == ("127.0.0.1", "GET")
    assert [line["status"] for line in lines] == [200, 200, 206, 400]
    assert [line["bytes"] for line in lines[1:]] == [len(_LAYER), 10, 0]
    assert [line["cache"] for line in lines] == ["miss", "miss", "hit", "none"]
    assert [line["upstream"] for line in lines] == ["docker.io"] * 3 + [None]
    assert lines[3]["error"].startswith("DigestInvalid: ")
    assert len({line["id"] for line in lines}) == 4


async def test_a_log_that_cannot_be_written(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Its disk is full, or nobody reads its pipe: lines are lost and counted, and everybody gets their answer."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    registry.add_image("library/app", "v1", [b"layer"])
    telemetry.set_up_logging("info", Full())
    for target, status in (("/v2/library/app/manifests/v1", 200), ("/v2/library/app/manifests/none", 404)):
        assert (await mirror.ask(target)).status == status
    lost = re.search(rb"^mirror_log_lines_lost_total (\S+)$", (await mirror.ask("/metrics")).body, re.MULTILINE)
    assert lost
    assert float(lost[1]) >= 2


async def test_error_names_its_log_line(mirror: LiveMirror) -> None:
    """The error that a client sees says which line of the log tells more."""
    answer = await mirror.ask("/v2/library/app/manifests/none")
    [line] = mirror.events("request")
    assert answer.headers["X-Request-Id"] == answer.json["errors"][0]["detail"]["request"] == line["id"]


async def test_76_log_injection(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 76: what clients and upstreams write stays within its field of its line."""
    forged = '%0a{"event":"forged"}%1b[31m'
    await mirror.ask(f"/v2/library/app/manifests/{forged}")
    await mirror.ask(f"/v2/library/app/manifests/v1?ns={forged}")
    await mirror.raw(b'GET /v2/"\x7f\x80\xff/manifests/v1 HTTP/1.1\r\nHost: \x1b[31m\r\nConnection: close\r\n\r\n')
    said = {"errors": [{"code": "X", "message": '\n{"event":"forged"}\x1b[31m'}]}
    body = json.dumps(said).encode()
    registry.fail("manifests", lambda request, answer: [_plain(403, body)])
    await mirror.ask("/v2/library/app/manifests/other")
    assert not mirror.events("forged")
    assert all(line.isascii() and line.isprintable() for line in mirror.log_text.splitlines())


def _plain(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_76_what_clients_carry_is_not_logged(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 76: a client's own credentials and cookies reach neither the log nor upstream."""
    secret = "canary-of-a-client"
    headers = {"Authorization": f"Bearer {secret}", "Cookie": f"s={secret}", "X-Api-Key": secret}
    await mirror.ask("/v2/library/app/manifests/v1", headers=headers)
    await mirror.ask(_AT, headers=headers)
    await mirror.ask("/v2/library/app/manifests/none", headers=headers)
    await mirror.raw(f"GET http://user:{secret}@x/v2/ HTTP/1.1\r\n{_HOST}Connection: close\r\n\r\n".encode())
    assert secret not in mirror.log_text
    assert secret not in str(registry.requests)


# ------------------------------------------------------------------------------------------------------ fuzz


async def test_fuzz(mirror: LiveMirror) -> None:
    """Requests made of odd pieces: never a 5xx, never a crash (the mirror's log is looked at in the end)."""
    chance = random.Random(7)
    methods = ["GET", "HEAD", "PUT", "get", "\x00", "G ET"]
    paths = ["/v2/", "library", "/", "..", "%2e", "%", "%zz", "é", "\\", ":", "@", "blobs", "manifests", "tags/list"]
    paths += [str(_DIGEST), "sha256:", "v1", "?ns=", "docker.io", "&n=", "#", " ", "\t", "*", "http://", "uploads", ";"]
    fields = ["Range: bytes=0-", "Range: x", "If-None-Match: *", "If-Range: x", "Expect: 100-continue", "Host: y"]
    fields += [
        "Transfer-Encoding: chunked",
        "Content-Length: 3",
        "Connection: upgrade",
        "Upgrade: h2c",
        ": x",
        "A\tB: c",
    ]
    fields += ["Accept-Encoding: *", "Connection: keep-alive", "Range: bytes=-5", "TE: trailers", "Accept: \x80"]
    for _ in range(3000):
        target = "".join(chance.choices(paths, k=chance.randint(1, 7)))
        lines = "".join(f"{field}\r\n" for field in chance.choices(fields, k=chance.randint(0, 3)))
        version = chance.choice(["HTTP/1.1"] * 5 + ["HTTP/1.0", "HTTP/2", ""])
        text = f"{chance.choice(methods)} {target} {version}\r\n{_HOST}{lines}Connection: close\r\n\r\n"
        received = await mirror.raw(text.encode("latin-1"), b"0\r\n\r\n" if "chunked" in lines else b"abc")
        for status in re.findall(rb"^HTTP/1\.[01] (\d{3})", received):
            assert int(status) < 500, (text, received[:500])
