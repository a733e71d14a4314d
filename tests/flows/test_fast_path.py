"""Answers from the table of ready answers, in a whole mirror: equal to others, and ended by what can change them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mirror import telemetry
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.policy.records import Freeze
from mirror.server.registry.handler import RegistryServer
from mirror.store.local.layout import Layout
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import PATIENCE, LiveMirror, live_mirror, noise
from tests.support.push_client import PushClient, hosting_mirror
from tests.support.ready_requests import Line, request, watching, without_what_varies

_NAME = "/v2/library/app"
_LAYER = noise(40_000)
_DIGEST = Digest.of(_LAYER)


@pytest.fixture
async def line(mirror: LiveMirror) -> AsyncIterator[Line]:
    """A connection to the mirror."""
    opened = await Line.to(mirror.port)
    yield opened
    await opened.close()


async def _stocked(registry: FakeRegistry, mirror: LiveMirror) -> Digest:
    digest = registry.add_image("library/app", "v1", [_LAYER])
    for target in (f"{_NAME}/manifests/v1", f"{_NAME}/blobs/{_DIGEST}"):
        assert (await mirror.ask(target)).status == 200
    await mirror.landed(_DIGEST)
    return digest


async def test_small_answers_are_given_again(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """Manifests by tag and digest, GET and HEAD, and HEAD of blobs: the third answer is the first one, to the byte."""
    digest = await _stocked(registry, mirror)
    with watching(mirror) as watch:
        for target, methods in {
            f"{_NAME}/manifests/v1": ("GET", "HEAD"),
            f"{_NAME}/manifests/{digest}": ("GET", "HEAD"),
            f"{_NAME}/manifests/v1?ns=docker.io": ("GET",),
            f"{_NAME}/blobs/{_DIGEST}": ("HEAD",),
        }.items():
            for method in methods:
                first = await line.ask(request(target, method))
                # the second time, it has come before
                await line.ask(request(target, method))
                assert watch.reset() == 0
                again = await line.ask(request(target, method))
                assert watch.reset() == 1
                assert without_what_varies(again) == without_what_varies(first)
                # the key is every byte
                await line.ask(request(target, method, "Accept-Language: en"))
                assert watch.reset() == 0


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Basic YTpi",
        "Cookie: a=b",
        'If-None-Match: "x"',
        "If-Range: x",
        "Range: bytes=0-1",
        "X-Forwarded-For: 192.0.2.1",
        "Forwarded: for=192.0.2.1",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "Content-Length: 0",
        "Expect: 100-continue",
        "Connection: keep-alive, x",
        "Accept-Encoding: gzip\r\nAccept-Encoding: br",
        "X-Anything: 1",
    ],
)
async def test_unusual_requests_go_the_ordinary_way(
    registry: FakeRegistry, mirror: LiveMirror, line: Line, header: str
) -> None:
    """Whatever may be answered by more than the bytes is never in the table, however often it is asked."""
    await _stocked(registry, mirror)
    with watching(mirror) as watch:
        for _ in range(3):
            await line.ask(request(f"{_NAME}/manifests/v1", "HEAD", header))
        assert watch.given == 0


async def test_a_blob_itself_and_lists_go_the_ordinary_way(
    registry: FakeRegistry, mirror: LiveMirror, line: Line
) -> None:
    """Only small answers that do not depend on who asks."""
    await _stocked(registry, mirror)
    with watching(mirror) as watch:
        for target in (
            f"{_NAME}/blobs/{_DIGEST}",
            f"{_NAME}/tags/list",
            "/v2/",
            "/v2/_catalog",
            f"{_NAME}/manifests/v9",
        ):
            for _ in range(3):
                await line.ask(request(target))
        assert watch.given == 0


async def test_large_manifests_go_the_ordinary_way(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """A client that does not read costs no more than the piece that is written at once."""
    manifest = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"filling": "x" * 16_000}}
    registry.add_manifest("library/app", json.dumps(manifest).encode(), OCI_INDEX, "large")
    with watching(mirror) as watch:
        for _ in range(3):
            answer = await line.ask(request(f"{_NAME}/manifests/large"))
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert watch.given == 0


# --------------------------------------------------------------------------------------------- what ends an entry


async def _is_ready(mirror: LiveMirror, line: Line, asked: bytes) -> None:
    """Asks until the answer comes from the table."""
    with watching(mirror) as watch:
        for _ in range(3):
            assert (await line.ask(asked)).startswith(b"HTTP/1.1 200 ")
        assert watch.given


async def test_a_tag_that_moves(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """An entry ends with the trust in the tag, and no later than two seconds after it was made."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1")
    await _is_ready(mirror, line, asked)
    moved = registry.add_image("library/app", "v1", [b"another"])
    mirror.clock.forward(299)
    assert str(moved).encode() not in await line.ask(asked)
    await _is_ready(mirror, line, asked)
    mirror.clock.forward(1.5)
    answer = await line.ask(asked)
    assert f"Docker-Content-Digest: {moved}\r\n".encode() in answer


async def test_an_answer_ends_with_a_clock_that_is_set_back(
    registry: FakeRegistry, mirror: LiveMirror, line: Line
) -> None:
    """Without knowing how old it is, nobody gives an answer."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/blobs/{_DIGEST}", "HEAD")
    await _is_ready(mirror, line, asked)
    mirror.clock.forward(-3600)
    with watching(mirror) as watch:
        await line.ask(asked)
        assert not watch.given


@pytest.mark.parametrize("kind", ["tag", "digest"])
async def test_a_purge_in_this_process(registry: FakeRegistry, mirror: LiveMirror, line: Line, kind: str) -> None:
    """What was purged is asked for again at once."""
    digest = await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/{'v1' if kind == 'tag' else digest}")
    await _is_ready(mirror, line, asked)
    shared = mirror.app.shared
    repo = next(iter(shared.catalog.repositories()))
    shared.caches.forget(repo, ["v1"], [digest])
    with watching(mirror) as watch:
        await line.ask(asked)
        assert not watch.given


async def test_other_changes_of_memory_end_nothing(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """Other tags and manifests come and go all the time."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1")
    await _is_ready(mirror, line, asked)
    registry.add_image("library/other", "v1", [b"x"])
    assert (await mirror.ask("/v2/library/other/manifests/v1")).status == 200
    with watching(mirror) as watch:
        await line.ask(asked)
        assert watch.given == 1


async def test_an_evicted_blob(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """The file is looked at each time: HEAD says `described` as soon as it has gone, or has another size."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/blobs/{_DIGEST}", "HEAD")
    await _is_ready(mirror, line, asked)
    file = Path(Layout(mirror.root).blob(_DIGEST))
    aside = file.with_name("aside")
    os.rename(file, aside)
    assert b"Cache-Status: mirror; hit; detail=described\r\n" in await line.ask(asked)
    os.rename(aside, file)
    await _is_ready(mirror, line, asked)
    os.chmod(file, 0o600)
    os.truncate(file, 5)
    assert b"Cache-Status: mirror; hit; detail=described\r\n" in await line.ask(asked)


async def test_a_freeze_by_another_process(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """A tag that is frozen elsewhere is answered as the ordinary way does: within two seconds."""
    digest = await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1")
    await _is_ready(mirror, line, asked)
    repo = next(iter(mirror.app.shared.catalog.repositories()))
    freezes = mirror.app.shared.histories.freezes
    freezes.put(Freeze(repo, "v1", digest, OCI_MANIFEST, 1, "test", 0.0))
    mirror.clock.forward(2)
    assert b"detail=frozen" in await line.ask(asked)
    await _is_ready(mirror, line, asked)


async def test_upstreams_that_are_replaced(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """`Router.forget` ends every entry, and an answer that was made before is not put any more."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1")
    await _is_ready(mirror, line, asked)
    mirror.app.router.forget()
    assert not len(mirror.app.front.ready)
    with watching(mirror) as watch:
        await line.ask(asked)
        assert not watch.given


async def test_hosted_content_that_another_worker_changes(tmp_path: Path) -> None:
    """A push, a retag and a deletion by one worker are seen by the next request to another, whose answers come from the
    table. Nobody who may push gets HEAD of blobs from there, because it reserves them.
    """
    reads = {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["corp/**"]}
    async with hosting_mirror(tmp_path) as writing, hosting_mirror(tmp_path, rules=[reads]) as reading:
        client, line = PushClient(writing), await Line.to(reading.port)
        first = await client.push_image("v1", b"one")
        tag = request(f"/v2/{client.name}/manifests/v1")
        digest = request(f"/v2/{client.name}/manifests/{Digest.of(first)}", "HEAD")
        blob = request(f"/v2/{client.name}/blobs/{Digest.of(b'one')}", "HEAD")
        for asked in (tag, digest, blob):
            await _is_ready(reading, line, asked)
        second = await client.push_image("v1", b"two")
        assert (await line.ask(tag)).endswith(second)
        for asked in (tag, digest, blob):
            await _is_ready(reading, line, asked)
        assert (await client.ask("DELETE", f"/v2/{client.name}/manifests/{Digest.of(first)}")).status == 202
        assert (await line.ask(digest)).startswith(b"HTTP/1.1 404 ")
        assert (await client.ask("DELETE", f"/v2/{client.name}/blobs/{Digest.of(b'one')}")).status == 202
        assert (await line.ask(blob)).startswith(b"HTTP/1.1 404 ")
        assert (await client.ask("DELETE", f"/v2/{client.name}/manifests/v1")).status == 202
        assert (await line.ask(tag)).startswith(b"HTTP/1.1 404 ")
        await line.close()
        # who may push
        await client.push_image("v3", b"three")
        line = await Line.to(writing.port)
        with watching(writing) as watch:
            for _ in range(3):
                await line.ask(request(f"/v2/{client.name}/blobs/{Digest.of(b'three')}", "HEAD"))
            assert not watch.given
        await line.close()


async def test_a_hosted_blob_that_is_damaged(tmp_path: Path) -> None:
    """Its file is opened each time: once it has been set aside, HEAD says that it is gone."""
    reads = {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["corp/**"]}
    async with hosting_mirror(tmp_path) as writing, hosting_mirror(tmp_path, rules=[reads]) as reading:
        client, line = PushClient(writing), await Line.to(reading.port)
        await client.push_image("v1", b"one")
        digest = Digest.of(b"one")
        asked = request(f"/v2/{client.name}/blobs/{digest}", "HEAD")
        await _is_ready(reading, line, asked)
        _delete_all(tmp_path, digest)
        assert (await line.ask(asked)).startswith(b"HTTP/1.1 404 ")
        await line.close()


def _delete_all(root: Path, digest: Digest) -> None:
    for file in root.rglob(digest.hex):
        file.unlink()


async def test_callers_about_whom_upstream_is_asked(registry: FakeRegistry, tmp_path: Path) -> None:
    """Their rights are asked for anew, so nothing of such a registry is in the table."""
    upstream = {"url": registry.url, "access": "verify"}
    rule = {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["**"]}
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}, access={"rule": [rule]}) as mirror:
        await _stocked(registry, mirror)
        line = await Line.to(mirror.port)
        with watching(mirror) as watch:
            for _ in range(3):
                assert (await line.ask(request(f"{_NAME}/manifests/v1"))).startswith(b"HTTP/1.1 200 ")
            assert not watch.given
        await line.close()


# ------------------------------------------------------------------------------------------------- connections


async def test_requests_in_a_row(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Several requests in one packet are answered in their order, by aiohttp: if one of them cannot be parsed, it
    answers none of the others. Those that come one by one, before the first is answered, are as well.
    """
    digest = await _stocked(registry, mirror)
    known = request(f"{_NAME}/manifests/v1"), request(f"{_NAME}/manifests/{digest}", "HEAD")
    line = await Line.to(mirror.port)
    for asked in known:
        await _is_ready(mirror, line, asked)
    await line.close()
    other = request(f"{_NAME}/tags/list")
    for row in (known, (*known, other), (other, *known), (known[0], other, known[1]), (*known, *known)):
        answers = [await _alone(mirror, each) for each in row]
        line = await Line.to(mirror.port)
        with watching(mirror) as watch:
            line.writer.write(b"".join(row))
            async with asyncio.timeout(PATIENCE):
                received = await line.reader.readexactly(sum(map(len, answers)))
            assert without_what_varies(received) == without_what_varies(b"".join(answers))
            for asked in row:
                line.writer.write(asked)
            async with asyncio.timeout(PATIENCE):
                again = await line.reader.readexactly(sum(map(len, answers)))
            assert without_what_varies(again) == without_what_varies(received)
            assert watch.given == 0
        await line.close()


async def _alone(mirror: LiveMirror, asked: bytes) -> bytes:
    line = await Line.to(mirror.port)
    try:
        return await line.ask(asked)
    finally:
        await line.close()


async def test_a_request_in_pieces(registry: FakeRegistry, mirror: LiveMirror, line: Line) -> None:
    """Wherever the bytes are cut, the answer is the same, and what follows is answered from the table again."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1", "HEAD")
    await _is_ready(mirror, line, asked)
    expected = without_what_varies(await line.ask(asked))
    for cut in (1, 4, 30, len(asked) - 3, len(asked) - 1):
        line.writer.write(asked[:cut])
        with watching(mirror) as watch:
            # the mirror has these bytes once it has answered another connection
            await mirror.ask("/v2/")
            assert without_what_varies(await line.ask(asked[cut:], head=True)) == expected
            assert watch.reset() == 0
            assert without_what_varies(await line.ask(asked)) == expected
            assert watch.reset() == 1


async def test_bytes_that_look_like_a_request_inside_a_body(
    registry: FakeRegistry, mirror: LiveMirror, line: Line
) -> None:
    """A body is never taken for a request."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1", "HEAD")
    await _is_ready(mirror, line, asked)
    head = f"POST {_NAME}/blobs/uploads/ HTTP/1.1\r\nHost: mirror\r\nContent-Length: {len(asked)}\r\n\r\n".encode()
    line.writer.write(head)
    await mirror.ask("/v2/")
    with watching(mirror) as watch:
        line.writer.write(asked)
        answer = await line.ask(b"")
        assert b" 405 " in answer.partition(b"\r\n")[0]
        assert not watch.given


async def test_a_client_that_reads_nothing(registry: FakeRegistry, tmp_path: Path) -> None:
    """It is given one answer that it does not read; the requests behind it wait, and it is dropped in the end."""
    async with live_mirror(
        tmp_path / "store", {"docker.io": registry.url}, server={"client_stall_timeout": "1s"}
    ) as mirror:
        await _stocked(registry, mirror)
        asked = request(f"{_NAME}/manifests/v1")
        line = await Line.to(mirror.port)
        await _is_ready(mirror, line, asked)
        await line.close()
        reader, writer = await mirror.connect()
        try:
            async with asyncio.timeout(60):
                while True:
                    # until the mirror takes no more, and then drops the connection
                    writer.write(asked * 50)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
        assert not reader.at_eof()
        assert mirror.events("connections dropped")


async def test_over_tls(registry: FakeRegistry, mirror: LiveMirror, line: Line, tmp_path: Path) -> None:
    """The same answers, of a table of their own."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1")
    await _is_ready(mirror, line, asked)
    expected = without_what_varies(await line.ask(asked))
    certificate = Certificate(tmp_path / "tls")
    server = RegistryServer(mirror.app.front, ready=mirror.app.front.ready, access_log=None)
    protocol = partial(server.over_tls, certificate.server())
    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    secure = Line(
        *await asyncio.open_connection("127.0.0.1", port, ssl=certificate.client(), server_hostname="localhost")
    )
    with watching(mirror) as watch:
        for number in range(4):
            assert without_what_varies(await secure.ask(asked)) == expected
            # the first ones are not known to this listener
            assert watch.given == max(0, number - 1)
    await secure.close()
    listening.close()
    server.pre_shutdown()
    await server.shutdown(0.1)


async def test_a_connection_ends_after_its_next_answer_when_the_server_stops(
    registry: FakeRegistry, mirror: LiveMirror, line: Line
) -> None:
    """The answers of a server that is shutting down say so, so they do not come from the table."""
    await _stocked(registry, mirror)
    asked = request(f"{_NAME}/manifests/v1", "HEAD")
    await _is_ready(mirror, line, asked)
    mirror.server.dismissing = True
    assert b"Connection: close\r\n" in await line.ask(asked)


# ------------------------------------------------------------------------------------------------ what is noted


async def test_metrics_log_and_notes_are_those_of_other_answers(
    registry: FakeRegistry, mirror: LiveMirror, line: Line
) -> None:
    """The same lines with the same fields in the same order, the same counts, the same last answers and notices."""
    digest = await _stocked(registry, mirror)
    noticed: list[tuple[Any, Any]] = []
    asked = request(f"{_NAME}/manifests/v1")

    def counts() -> dict[str, float]:
        names = ("mirror_requests", "mirror_sent_bytes")
        return {f"{name}{sorted(labels.items())}": value for name in names for labels, value in telemetry.counted(name)}

    async def three() -> tuple[dict[str, float], list[dict[str, Any]], list[tuple[Any, Any]]]:
        before = counts()
        mirror.clear_log()
        noticed.clear()
        for _ in range(3):
            await line.ask(asked)
        # noted in the same turn of the loop in which it was written, or the next
        await mirror.ask("/readyz")
        after = counts()
        added = {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}
        return added, mirror.events("request"), [*noticed]

    recent = mirror.app.front._recent
    assert recent is not None
    stop = telemetry.listen(lambda what, fields: noticed.append((what, dict(fields))))
    try:
        with watching(mirror) as watch:
            await line.ask(asked)
            await line.ask(asked)
            watch.reset()
            given = await three()
            assert watch.reset() == 3
            [last] = [each for each in recent.answers() if (each.reference, each.method) == ("v1", "GET")]
            assert (last.digest, last.request) == (str(digest), given[1][-1]["id"])
            mirror.app.front.ready.put = lambda *_: None  # type: ignore[method-assign]
            mirror.app.front.ready.clear()
            ordinary = await three()
            assert watch.reset() == 0
    finally:
        stop()
    assert given[0] == ordinary[0]
    assert given[2] == ordinary[2]
    assert len(given[2]) == 6
    varying = {"id", "duration", "time"}
    for one, other in zip(given[1], ordinary[1], strict=True):
        assert [*one] == [*other]
        assert {**one, **dict.fromkeys(varying)} == {**other, **dict.fromkeys(varying)}
        assert {type(one[each]) for each in varying} == {type(other[each]) for each in varying}
    numbers = [int(each["id"].rpartition("-")[2], 16) for each in (*given[1], *ordinary[1])]
    assert len({*numbers}) == 6
    [last] = [each for each in recent.answers() if (each.reference, each.method) == ("v1", "GET")]
    assert (last.digest, last.request) == (str(digest), ordinary[1][-1]["id"])
