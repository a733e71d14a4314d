"""Blobs of an upstream that breaks off, lies, or does not answer. `test_manifests` and `test_tags` have the rest."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from mirror import telemetry
from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from mirror.upstream.registry import RegistryUpstream
from tests.support.fake_registry import (
    FakeRegistry,
    Fault,
    cut,
    gzipped,
    html,
    ignore_range,
    reset,
    stall,
    status,
    wrong_bytes,
)
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Answering, Close, Request, Script, Stall, chunked, head, reply
from tests.support.several_connections import CONNECTIONS, HeldConnections, Whose, small_parts

_LAYER = noise(1 << 20)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"


@pytest.fixture(autouse=True)
def _layer(registry: FakeRegistry) -> None:
    registry.add_blob("library/app", _LAYER)


@pytest.fixture(params=["verified", "lazy"])
async def mirror(
    registry: FakeRegistry, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveMirror]:
    """Also with a route whose fills leave room for parts: whole blobs come like on any other. With `Whose`: the layer
    comes over several connections, some of which meet the faults.
    """
    is_parallel = isinstance(request.param, Whose)
    routes = [{"match": "docker.io/**", "ranges": "verified" if is_parallel else request.param}]
    upstream = {"url": registry.url, "connections_per_blob": CONNECTIONS}
    held = None
    if is_parallel:
        small_parts(monkeypatch.setattr)
        registry.tokens = True
        registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}, route=routes) as running:
        if is_parallel:
            await running.ask("/v2/library/app/manifests/v1")
            registry.forget()
            held = HeldConnections(registry, request.param)
        yield running
    assert held is None or held.were_open


def _answering(script: Callable[[], Script]) -> Fault:
    return lambda request, answer: script()


def _ranges(registry: FakeRegistry) -> list[str | None]:
    return [request.header("Range") for request in registry.of_kind("blobs")]


def _is_whole(answer: Got) -> None:
    assert (answer.status, answer.whole, len(answer.body)) == (200, True, _SIZE)


def _is_broken(answer: Got) -> None:
    assert answer.status == 200
    assert not answer.whole
    assert len(answer.body) < _SIZE
    assert _LAYER.startswith(answer.body)


async def _nothing_kept(mirror: LiveMirror) -> None:
    await mirror.idle()
    assert not mirror.blob_file(_DIGEST).exists()
    assert not [file for file in (mirror.root / "ingest").iterdir() if file.stat().st_size]


# ------------------------------------------------------------------------------------------- bodies that break off


@pytest.mark.parametrize("breaks", [cut, reset])
@pytest.mark.parametrize("after", [0, 1, 300_000, _SIZE - 1])
async def test_1_8_resumed(
    registry: FakeRegistry, mirror: LiveMirror, breaks: Callable[[int], Fault], after: int
) -> None:
    """Rows 1, 8: a body that breaks off, by FIN or RST, is gone on with by Range; the client notices nothing."""
    registry.fail("blobs", breaks(after))
    _is_whole(await mirror.ask(_AT))
    await mirror.landed(_DIGEST)
    ranges = _ranges(registry)
    assert ranges[0] is None
    # with RST the kernel may drop what it has received already
    assert [one for one in ranges[1:] if one] == [f"bytes={after}-"][: after > 0] or breaks is reset


async def test_1_many_breaks_with_progress(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 1: as long as bytes come it goes on, however often it breaks."""
    registry.fail("blobs", cut(_SIZE // 8), times=7)
    _is_whole(await mirror.ask(_AT))
    assert _ranges(registry) == [None, *(f"bytes={number * _SIZE // 8}-" for number in range(1, 8))]


async def test_1_given_up_without_progress(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 1: after three tries without a byte the connection breaks, nothing gets the final name, and what has come
    is kept: the next request goes on from there.
    """
    registry.fail("blobs", cut(_SIZE // 2))
    registry.fail("blobs", cut(0), times=20)
    _is_broken(await mirror.ask(_AT))
    await mirror.idle()
    assert not mirror.blob_file(_DIGEST).exists()
    assert len(registry.requests) <= 1 + 4 * 3, "each try may be tried again, but not for ever"
    registry.heal()
    _is_whole(await mirror.ask(_AT))
    assert _ranges(registry)[-1] == f"bytes={_SIZE // 2}-"


async def test_1_chunked_without_its_end(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 1: a chunked body without the last chunk has broken off."""
    piece = head(200, {"Transfer-Encoding": "chunked"}) + chunked(_LAYER[:500_000], end=False)
    registry.fail("blobs", _answering(lambda: [piece, Close()]))
    _is_whole(await mirror.ask(_AT))
    assert _ranges(registry) == [None, "bytes=500000-"]


async def test_7_stall(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 7: a body that stalls is given up after `read_timeout` and gone on with by Range."""
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    upstream = {"url": registry.url, "read_timeout": 2}
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
        _is_whole(await mirror.ask(_AT))
    assert _ranges(registry) == [None, f"bytes={_SIZE // 2}-"]
    gate.release()


async def test_16_signed_url_expires(tmp_path: Path) -> None:
    """Rows 15, 16: the resume begins at the registry, which gives a fresh URL; the other host sees no credentials."""
    with FakeRegistry(cdn=True, tokens=True) as registry:
        registry.add_blob("library/app", _LAYER)
        registry.cdn_uses = 1
        registry.fail("cdn", cut(_SIZE // 2))
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
            _is_whole(await mirror.ask(_AT))
        first, second = registry.cdn_requests
        assert first.target != second.target
        assert second.header("Range") == f"bytes={_SIZE // 2}-"
        assert not any(request.header("Authorization") for request in registry.cdn_requests)


@pytest.mark.parametrize("failing", [status(500), status(503), html(502)])
async def test_12_trouble_while_resuming(registry: FakeRegistry, mirror: LiveMirror, failing: Fault) -> None:
    """Row 12: a 5xx on the way is tried again; the clients wait and get every byte."""
    registry.fail("blobs", cut(_SIZE // 2))
    registry.fail("blobs", failing, times=2)
    _is_whole(await mirror.ask(_AT))


async def test_11_token_expires_while_resuming(tmp_path: Path) -> None:
    """Row 11: a token that is refused in the middle is replaced once, unnoticed."""
    with FakeRegistry(tokens=True) as registry:
        registry.add_blob("library/app", _LAYER)

        def expired(request: object, answer: object) -> Script:
            registry.expire_tokens()
            return [head(200, {"Content-Length": str(_SIZE)}), _LAYER[:500_000], Close()]

        registry.fail("blobs", status(401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token",service="fake"'}))
        registry.fail("blobs", expired)
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
            _is_whole(await mirror.ask(_AT))
        assert registry.count("token") <= 3


# ----------------------------------------------------------------------------------------- ranges that are ignored


async def test_22_range_ignored(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 22: an upstream that answers a resume with the whole is noticed: no byte stands twice."""
    registry.fail("blobs", cut(_SIZE // 2))
    registry.fail("blobs", ignore_range)
    _is_whole(await mirror.ask(_AT))
    await mirror.landed(_DIGEST)
    _is_whole(await mirror.ask(_AT))


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "bytes 0-9/1048576",
        "bytes 600000-1048575/1048576",
        "bytes 524288-1048575/9",
        "nonsense",
        "bytes */1048576",
    ],
)
async def test_22_bad_content_range(registry: FakeRegistry, mirror: LiveMirror, content_range: str | None) -> None:
    """Row 22: a part that is not the one asked for never gets into the file."""
    registry.fail("blobs", cut(_SIZE // 2))
    headers = {"Content-Range": content_range} if content_range else {}
    registry.fail("blobs", _answering(lambda: reply(206, b"\0" * (_SIZE // 2), headers)))
    answer = await mirror.ask(_AT)
    if answer.whole:
        assert answer.body == _LAYER
    await mirror.idle()
    _is_whole(await mirror.ask(_AT))


async def test_22_whole_has_changed_its_size(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 22: the resumed part belongs to another whole: broken, not stitched together."""
    registry.fail("blobs", cut(_SIZE // 2))
    part, bounds = _LAYER[_SIZE // 2 :], f"bytes {_SIZE // 2}-{_SIZE - 1}/{_SIZE + 1}"
    registry.fail("blobs", _answering(lambda: reply(206, part, {"Content-Range": bounds})), times=9)
    answer = await mirror.ask(_AT)
    assert not answer.whole or answer.body == _LAYER
    registry.heal()
    await mirror.idle()
    _is_whole(await mirror.ask(_AT))


# -------------------------------------------------------------------------------------------------- wrong bytes


async def test_4_digest_mismatch(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 4: wrong bytes are never delivered whole: the connection breaks before the last of them, nothing is kept,
    and the next request is served right.
    """
    registry.fail("blobs", wrong_bytes)
    answer = await mirror.ask(_AT)
    assert answer.status == 200
    assert not answer.whole
    assert len(answer.body) <= _SIZE - 65536
    await _nothing_kept(mirror)
    assert "DigestMismatch" in (await mirror.logged("request"))[-1]["error"]
    _is_whole(await mirror.ask(_AT))


async def test_4_mismatch_reaches_every_follower(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 4: of all who follow none gets a complete body, wherever the range is that they want."""
    gate = Stall()

    def wrong(request: object, answer: object) -> Script:
        return [head(200, {"Content-Length": str(_SIZE)}), _LAYER[: _SIZE // 2], gate, bytes(_SIZE // 2)]

    registry.fail("blobs", wrong)
    asking = [asyncio.create_task(mirror.ask(_AT)) for _ in range(5)]
    await reached(gate)
    parts = "0-0", f"0-{_SIZE // 4}", f"{_SIZE // 4}-{_SIZE - 1000}", f"{_SIZE - 100}-", "-10"
    asking += [asyncio.create_task(mirror.ask(_AT, headers={"Range": f"bytes={part}"})) for part in parts]
    await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 10)
    gate.release()
    assert not any(answer.whole for answer in await asyncio.gather(*asking))
    await _nothing_kept(mirror)


@pytest.mark.parametrize("size", [0, 1, 1000, 65535])
async def test_4_small_blobs(registry: FakeRegistry, mirror: LiveMirror, size: int) -> None:
    """Row 4: of a small blob no wrong byte leaves at all."""
    content = noise(size, seed=7)
    digest = registry.add_blob("library/app", content)
    registry.fail("blobs", _answering(lambda: reply(200, b"?" + content)))
    answer = await mirror.ask(f"/v2/library/app/blobs/{digest}")
    assert answer.body == b"" or answer.status == 502
    assert not answer.whole or answer.status == 502
    await mirror.idle()
    assert (await mirror.ask(f"/v2/library/app/blobs/{digest}")).body == content


async def test_18_html_for_a_blob(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Rows 4, 18: the page of a captive portal, sent with 200, is not kept as a layer."""
    registry.fail("blobs", html())
    answer = await mirror.ask(_AT)
    assert not answer.whole or answer.status == 502
    await _nothing_kept(mirror)
    _is_whole(await mirror.ask(_AT))


async def test_5_encoded(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 5: a blob that comes encoded although identity was asked for is kept in the form that its digest names alone.
    `test_odd_registries` has the rest.
    """
    registry.fail("blobs", gzipped)
    answer = await mirror.ask(_AT)
    assert not answer.whole or answer.status == 502 or answer.body == _LAYER
    await mirror.idle()
    _is_whole(await mirror.ask(_AT))


# ----------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("warm", [False, True])
async def test_2_chunked(registry: FakeRegistry, mirror: LiveMirror, warm: bool) -> None:
    """Row 2: a chunked body without a length is served whole, in chunks while it comes; the digest decides."""
    body = head(200, {"Transfer-Encoding": "chunked"}) + chunked(_LAYER[:100], _LAYER[100:700_000], _LAYER[700_000:])
    registry.fail("blobs", _answering(lambda: [body]))
    answer = await mirror.ask(_AT)
    _is_whole(answer)
    if warm:
        await mirror.landed(_DIGEST)
        answer = await mirror.ask(_AT)
        _is_whole(answer)
        assert answer.headers["Content-Length"] == str(_SIZE)
    assert len(registry.requests) == 1


async def test_2_until_the_connection_closes(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 2: HTTP/1.0 without a length: the end of the stream is believed if, and only if, the digest is right."""
    registry.fail("blobs", _answering(lambda: [head(200, version="1.0"), _LAYER, Close()]))
    _is_whole(await mirror.ask(_AT))


async def test_2_closed_too_soon(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 2: the same, cut short: no complete body, nothing kept under the final name."""
    registry.fail("blobs", _answering(lambda: [head(200, version="1.0"), _LAYER[:-1], Close()]), times=9)
    answer = await mirror.ask(_AT)
    assert not answer.whole or answer.status >= 500
    await mirror.idle()
    assert not mirror.blob_file(_DIGEST).exists()
    registry.heal()
    _is_whole(await mirror.ask(_AT))


@pytest.mark.parametrize("ask", ["HTTP/1.0", "range"])
async def test_2_length_must_be_known(registry: FakeRegistry, mirror: LiveMirror, ask: str) -> None:
    """Row 2: a client that cannot do with chunks, or wants a part, waits until the length is known."""
    body = head(200, {"Transfer-Encoding": "chunked"}) + chunked(_LAYER)
    registry.fail("blobs", _answering(lambda: [body]))
    if ask == "range":
        answer = await mirror.ask(_AT, headers={"Range": "bytes=-5"})
        assert (answer.status, answer.body) == (206, _LAYER[-5:])
    else:
        received = await mirror.raw(f"GET {_AT} HTTP/1.0\r\n\r\n".encode())
        assert b"chunked" not in received.partition(b"\r\n\r\n")[0].lower()
        assert received.partition(b"\r\n\r\n")[2] == _LAYER


@pytest.mark.parametrize("length", [_SIZE - 1, _SIZE + 1, 0, 1000])
async def test_3_other_length_than_the_manifest_says(registry: FakeRegistry, mirror: LiveMirror, length: int) -> None:
    """Row 3: the manifest says another size: the digest decides. What is wrong is 502, or broken off before its last
    64 KiB, and nothing is kept.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask("/v2/library/app/manifests/v1")
    registry.fail("blobs", _answering(lambda: [*reply(200, _LAYER, length=length), Close()]), times=4)
    answer = await mirror.ask(_AT)
    if length <= 65536:
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    else:
        assert (answer.status, answer.whole) == (200, False)
        assert len(answer.body) <= length - 65536
    await mirror.idle()
    assert not mirror.blob_file(_DIGEST).exists()
    registry.heal()
    _is_whole(await mirror.ask(_AT))


async def test_3_an_answer_that_lies_costs_its_connection(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 3: what follows on it later could be the rest of that answer."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask("/v2/library/app/manifests/v1")
    registry.fail("blobs", _answering(lambda: reply(200, b"")))
    assert (await mirror.ask(_AT)).status == 502
    await _nothing_kept(mirror)
    _is_whole(await mirror.ask(_AT))
    first, second = registry.of_kind("blobs")
    assert first.connection != second.connection


@pytest.mark.parametrize("length", ["-1", "1e3", "12, 13", "９", "99999999999999999999999999"])
async def test_3_length_that_is_none(registry: FakeRegistry, mirror: LiveMirror, length: str) -> None:
    """Row 3: a length that is no number is not guessed at."""
    answer_head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()
    registry.fail("blobs", _answering(lambda: [answer_head, _LAYER, Close()]), times=9)
    answer = await mirror.ask(_AT)
    assert (answer.status, answer.code) in [(502, "UNAVAILABLE"), (503, "UNAVAILABLE")]
    registry.heal()
    _is_whole(await mirror.ask(_AT))


async def test_3_bytes_beyond_the_length(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 3: what stands behind the announced length is no part of the blob, nor of the next answer."""
    registry.fail("blobs", _answering(lambda: [*reply(200, _LAYER + b"HTTP/1.1 200 OK\r\n\r\n", length=_SIZE)]))
    _is_whole(await mirror.ask(_AT))
    other = registry.add_blob("library/app", b"other")
    assert (await mirror.ask(f"/v2/library/app/blobs/{other}")).body == b"other"


# --------------------------------------------------------------------------------------- no usable answer at all


@pytest.mark.parametrize(
    ("upstream", "wanted", "code"),
    [
        (401, 401, "UNAUTHORIZED"),
        (403, 403, "DENIED"),
        (404, 404, "BLOB_UNKNOWN"),
        (429, 429, "TOOMANYREQUESTS"),
        (500, 503, "UNAVAILABLE"),
        (504, 503, "UNAVAILABLE"),
        (410, 502, "UNAVAILABLE"),
    ],
)
async def test_status_keeps_its_class(
    registry: FakeRegistry, mirror: LiveMirror, upstream: int, wanted: int, code: str
) -> None:
    """Before the headers every error is a status of its own, for all who wait; afterwards the blob is to be had."""
    gate, retry_after = Stall(), {"Retry-After": "3"} if upstream == 429 else None
    registry.fail("blobs", lambda request, answer: [gate, *status(upstream, retry_after)(request, answer)])
    registry.fail("blobs", status(upstream, retry_after), times=5)
    asking = [asyncio.create_task(mirror.ask(_AT)) for _ in range(5)]
    await reached(gate)
    await until(lambda: sum(flight.followers for flight in mirror.app.shared.flights.active()) == 5)
    gate.release()
    for answer in await asyncio.gather(*asking):
        assert (answer.status, answer.code) == (wanted, code)
        assert ("Retry-After" in answer.headers) == (wanted in (429, 503))
    registry.heal()
    mirror.clock.forward(60)
    _is_whole(await mirror.ask(_AT))


async def test_21_upstream_is_not_there(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 21: nothing listens: 503 at once with Retry-After; what is cached is served as ever."""
    other = registry.add_blob("library/app", b"cached")
    upstreams, server = {"docker.io": registry.url}, {"wait_for_upstream": 0}
    async with live_mirror(tmp_path / "store", upstreams, server=server) as mirror:
        await mirror.ask(f"/v2/library/app/blobs/{other}")
        await mirror.landed(other)
        registry.stop()
        for _ in range(5):
            answer = await mirror.ask(_AT)
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert answer.headers["Retry-After"]
            # where the registry is, and why it does not answer, is for the log
            assert answer.json["errors"][0]["message"] == "docker.io cannot be reached"
            assert (await mirror.ask(f"/v2/library/app/blobs/{other}")).body == b"cached"
        assert "refused" in mirror.log_text


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        b"HTTP/1.1 999999 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
    ],
    ids=["ssh", "nothing", "status", "headers", "lengths", "chunks", "tls"],
)
async def test_no_http(registry: FakeRegistry, mirror: LiveMirror, nonsense: bytes) -> None:
    """An upstream that does not speak HTTP is an error of its own, never one of ours, and nothing is kept of it."""
    registry.fail("blobs", _answering(lambda: [nonsense, Close()]), times=9)
    answer = await mirror.ask(_AT)
    assert answer.status in (502, 503) or not answer.whole
    if answer.whole:
        # neither where the upstream is nor what answers there
        assert registry.host not in answer.body.decode()
        assert "HTTP" not in answer.body.decode()
    registry.heal()
    await mirror.idle()
    _is_whole(await mirror.ask(_AT))


async def test_9_upstream_is_drained_at_its_own_rate(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 9: upstream is read to its end even if the only client reads nothing at all."""
    content = noise(24 << 20, seed=9)
    digest = registry.add_blob("library/app", content)
    _, writer = await mirror.connect()
    writer.write(f"GET /v2/library/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await mirror.landed(digest)
    writer.close()


# ------------------------------------------------------------------------- one of several connections of a blob


def _expired(registry: FakeRegistry) -> Fault:
    def fault(request: Request, answer: Answering) -> Script:
        registry.expire_tokens()
        return answer(request)

    return fault


def _named(content_range: str | None, count: int = 1000) -> Fault:
    """A part under a name that may be wrong: `{first}` and `{last}` are those that were asked for."""

    def fault(request: Request, answer: Answering) -> Script:
        first, last = request.start, request.start + count - 1
        named = {} if content_range is None else {"Content-Range": content_range.format(first=first, last=last)}
        return reply(206, _LAYER[first : last + 1], named)

    return fault


def _in_chunks(*, end: bool) -> Fault:
    def fault(request: Request, answer: Answering) -> Script:
        start, body = _head_and_body(answer(request))
        start = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", start)
        return [start, chunked(body[:70_000], end=False), *([chunked(body[70_000:])] if end else [Close()])]

    return fault


def _with_more(request: Request, answer: Answering) -> Script:
    return [*answer(request), _LAYER[:5000]]


def _redirected(to: str) -> Fault:
    return lambda request, answer: reply(307, b"", {"Location": to})


def _head_and_body(script: Script) -> tuple[bytes, bytes]:
    sent = b"".join(step for step in script if isinstance(step, bytes))
    start, gap, body = sent.partition(b"\r\n\r\n")
    return start + gap, body


_FAULTS: dict[str, Fault] = {
    "cut at once": cut(0),
    "cut": cut(70_000),
    "reset at once": reset(0),
    "reset": reset(70_000),
    "400": status(400),
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "416": status(416),
    "429": status(429, {"Retry-After": "3"}),
    "500": status(500),
    "503": status(503),
    "503, later": status(503, {"Retry-After": "3"}),
    "page": html(),
    "page of a proxy": html(502),
    "whole": ignore_range,
    "gzip": gzipped,
    "less": _named(f"bytes {{first}}-{{last}}/{_SIZE}"),
    "no range": _named(None),
    "another part": _named(f"bytes 5-1004/{_SIZE}"),
    "a later part": _named(f"bytes 900000-900999/{_SIZE}"),
    "another size": _named(f"bytes {{first}}-{{last}}/{_SIZE + 1}"),
    "unknown size": _named("bytes {first}-{last}/*"),
    "nonsense": _named("nonsense"),
    "more": _with_more,
    "chunked": _in_chunks(end=True),
    "chunked, cut": _in_chunks(end=False),
    "no http": lambda request, answer: [b"SSH-2.0-OpenSSH_9.2\r\n", Close()],
    "nothing": lambda request, answer: [Close()],
    "lengths": lambda request, answer: [head(206, [("Content-Length", "3"), ("Content-Length", "4")]), b"abcd"],
    "redirect to nobody": _redirected("http://127.0.0.1:1/data"),
    "redirect in a circle": lambda request, answer: reply(307, b"", {"Location": request.target}),
    "wrong bytes": wrong_bytes,
}


#: What ends the answers that have begun if the filler itself meets it; the next one is whole.
_ENDS = {"401", "404", "page", "gzip", "another part", "another size"}
#: After these, what came ahead may come once more: on a busy machine that is nearly all.
_WHOLE = {"416", "whole", "no range", "a later part", "nonsense"}


@pytest.mark.parametrize("mirror", [*Whose], indirect=True)
@pytest.mark.parametrize("name", [*_FAULTS, "expired"])
async def test_1_22_any_fault_of_one_of_several_connections(
    registry: FakeRegistry, mirror: LiveMirror, name: str, request: pytest.FixtureRequest
) -> None:
    """Rows 1 to 16 and 22: clients notice nothing of what a further connection meets, and of what the filler's own one
    meets no more than if it were alone. The mirror looks at the end whether the others were open.
    """
    is_fillers = request.node.callspec.params["mirror"] is Whose.FILLER
    before = _received()
    registry.fail("blobs", _expired(registry) if name == "expired" else _FAULTS[name])
    answer = await mirror.ask(_AT)
    await mirror.idle()
    if name == "wrong bytes":
        assert not answer.whole
        assert len(answer.body) <= _SIZE - 65536
    elif name in _ENDS and is_fillers:
        _is_broken(answer)
    else:
        _is_whole(answer)
        assert _received() - before <= _SIZE + (_SIZE if name in _WHOLE and is_fillers else BLOCK)
    mirror.clock.forward(10)
    _is_whole(await mirror.ask(_AT))
    await mirror.idle()
    upstream = mirror.app.router._upstream_for("docker.io")
    assert isinstance(upstream, RegistryUpstream)
    assert upstream.health()[0].state == "ok"
    assert not [*(mirror.root / "ingest").iterdir()]
    if name == "expired":
        assert registry.count("token") == 1
        assert not [line for line in mirror.events("connection given back") if line["reason"].startswith("failed")]


def _received() -> int:
    return int(sum(count for _, count in telemetry.counted("mirror_upstream_bytes")))


# ------------------------------------------------------------------------------------------------------- secrets


def _secrets() -> Sequence[str]:
    return ("canary-password", base64.b64encode(b"user:canary-password").decode())


@pytest.mark.parametrize("tokens", [True, False])
async def test_76_no_secret_is_revealed(tmp_path: Path, tokens: bool) -> None:
    """Row 76: neither log nor answers hold the password, a token, or the signature of a URL, in good days and bad."""
    with FakeRegistry(tokens=tokens, users={"user": "canary-password"}, cdn=True) as registry:
        registry.add_image("library/app", "v1", [_LAYER])
        upstream = {"url": registry.url, "username": "user", "password": "canary-password"}
        told = []
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            told.append(await mirror.ask("/v2/library/app/manifests/v1"))
            assert told[0].status == 200
            registry.fail("cdn", cut(1000))
            _is_whole(await mirror.ask(_AT))
            for fault in (status(500), status(403), wrong_bytes, html(), cut(5)):
                for kind in ("blobs", "manifests", "token", "cdn"):
                    registry.expire_tokens()
                    registry.fail(kind, fault, times=9)
                    other = registry.add_image("library/app", "v2", [kind.encode(), str(fault).encode()])
                    targets = (f"manifests/{other}", f"blobs/{Digest.of(kind.encode())}", "tags/list")
                    told += [await mirror.ask(f"/v2/library/app/{target}") for target in targets]
                    registry.heal()
                    mirror.clock.forward(400)
            log = mirror.log_text
        issued = [f"token-{number}" for number in range(100)] if tokens else []
        written = log + "".join(str(answer.headers) + answer.body.decode("latin-1") for answer in told)
        for secret in (*_secrets(), *issued, "X-Signature"):
            assert secret not in written
