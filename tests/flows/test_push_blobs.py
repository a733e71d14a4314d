"""Blobs pushed to a whole mirror in every way that the conformance program knows, and pulled again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.live_mirror import noise
from tests.support.push_client import OPEN, PushClient, hosting_mirror, image

_BLOB = noise(3000)
#: Larger than what goes through aiohttp's stream.
_LARGE = noise(2_500_000)
_ALGORITHMS = ["sha256", "sha512"]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[PushClient]:
    """Of a repository in a registry where everybody may do everything."""
    async with hosting_mirror(tmp_path) as mirror:
        yield PushClient(mirror)


async def _is_here(client: PushClient, digest: Digest, content: bytes) -> None:
    got = await client.blob(digest)
    assert (got.status, got.body) == (200, content)
    assert got.headers["Docker-Content-Digest"] == str(digest)
    head = await client.blob(digest, method="HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(content)))


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
@pytest.mark.parametrize("content", [_BLOB, _LARGE, b"", b"{}"], ids=["some", "large", "empty", "braces"])
async def test_push_in_every_way(client: PushClient, algorithm: str, content: bytes) -> None:
    """POST alone, POST and PUT, one chunk, three chunks, the last of them in the PUT, streamed; each Location can be
    pulled.
    """
    digest = Digest.of(content, algorithm)
    third = max(1, len(content) // 3)
    chunks = [content[start : start + third] for start in range(0, len(content), third)]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    async def in_chunks(*, last_in_put: bool) -> str:
        location, offset = await client.begin(), 0
        for chunk in chunks[:-1] if last_in_put else chunks:
            said = {"Content-Range": f"{offset}-{offset + len(chunk) - 1}"}
            answer = await client.ask("PATCH", location, body=chunk, headers=said)
            offset += len(chunk)
            assert (answer.status, answer.headers["Range"]) == (202, f"0-{offset - 1}")
            location = answer.headers["Location"]
        if last_in_put and chunks:
            said = {"Content-Range": f"{offset}-{len(content) - 1}"}
            return (await client.finish(location, digest, chunks[-1], **said)).headers["Location"]
        return (await client.finish(location, digest)).headers["Location"]

    async def streamed() -> str:
        location = (await client.ask("PATCH", await client.begin(), body=pieces())).headers["Location"]
        return (await client.finish(location, digest)).headers["Location"]

    async def alone() -> str:
        target = f"{client.uploads}?digest={digest}&digest-algorithm={algorithm}"
        return (await client.ask("POST", target, body=content)).headers["Location"]

    async def post_and_put() -> str:
        return (await client.finish(await client.begin(), digest, content)).headers["Location"]

    locations = [
        await alone(),
        await post_and_put(),
        await in_chunks(last_in_put=False),
        await in_chunks(last_in_put=True),
        await streamed(),
    ]
    for location in locations:
        got = await client.ask("GET", location)
        assert (got.status, got.body) == (200, content)
    await _is_here(client, digest, content)


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
async def test_mounts(client: PushClient, algorithm: str) -> None:
    """From a repository, from any, of a blob that the source lacks; cancelled uploads leave nothing."""
    digest = await client.push_blob(_BLOB, algorithm)
    there = PushClient(client.mirror, "corp/other")
    assert (await there.blob(digest)).status == 404
    missing = await there.ask("POST", f"{there.uploads}?mount={Digest.of(b'none', algorithm)}&from=corp/app")
    assert missing.status == 202
    for source in ("corp/none", "docker.io/library/none"):
        answer = await there.ask("POST", f"{there.uploads}?mount={digest}&from={source}")
        assert answer.status == 202, source
    mounted = await there.ask("POST", f"{there.uploads}?mount={digest}&from=corp/app")
    assert (mounted.status, mounted.headers["Location"]) == (201, f"/v2/corp/other/blobs/{digest}")
    await _is_here(there, digest, _BLOB)
    third = PushClient(client.mirror, "corp/third")
    anonymous = await third.ask("POST", f"{third.uploads}?mount={digest}")
    assert anonymous.status == 201
    await _is_here(third, digest, _BLOB)
    location = await third.begin()
    assert (await third.ask("DELETE", location)).status == 204
    assert (await third.ask("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
async def test_bad_digests(client: PushClient, algorithm: str) -> None:
    """In each of five ways: 400, and nothing can be pulled by it."""
    wrong = Digest.of(b"something else", algorithm)
    answers = [
        await client.ask("POST", f"{client.uploads}?digest={wrong}", body=_BLOB),
        await client.finish(await client.begin(), wrong, _BLOB),
    ]
    for last in (False, True):
        location = await client.begin()
        part = _BLOB[:1000] if last else _BLOB
        await client.ask("PATCH", location, body=part, headers={"Content-Range": f"0-{len(part) - 1}"})
        said = {"Content-Range": f"1000-{len(_BLOB) - 1}"} if last else {}
        answers.append(await client.finish(location, wrong, _BLOB[1000:] if last else None, **said))

    async def pieces() -> AsyncIterator[bytes]:
        yield _BLOB

    location = await client.begin()
    await client.ask("PATCH", location, body=pieces())
    answers.append(await client.finish(location, wrong))
    assert [(answer.status, answer.code) for answer in answers] == [(400, "DIGEST_INVALID")] * 5
    assert (await client.blob(wrong)).status == 404


@pytest.mark.parametrize("last_in_put", [False, True])
async def test_84_out_of_order(client: PushClient, last_in_put: bool) -> None:
    """Row 84: 416 with the right `Range`, the status at the old URL, and the upload goes on there."""
    location = await client.begin()
    early = {"Content-Range": "1000-1999"}
    assert (await client.ask("PATCH", location, body=_BLOB[1000:2000], headers=early)).status == 416
    status = await client.ask("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-0")
    await client.ask("PATCH", location, body=_BLOB[:1000], headers={"Content-Range": "0-999"})
    digest = Digest.of(_BLOB)
    said = {"Content-Range": "2000-2999"}
    if last_in_put:
        answer = await client.finish(location, digest, _BLOB[2000:], **said)
    else:
        answer = await client.ask("PATCH", location, body=_BLOB[2000:], headers=said)
    assert (answer.status, answer.headers["Range"]) == (416, "0-999")
    status = await client.ask("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-999")
    rest = {"Content-Range": "1000-2999"}
    assert (await client.ask("PATCH", location, body=_BLOB[1000:], headers=rest)).status == 202
    assert (await client.finish(location, digest)).status == 201
    await _is_here(client, digest, _BLOB)


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("500-1499", 206, (500, 1500)),
        ("500-", 206, (500, 3000)),
        ("-500", 206, (2500, 3000)),
        ("2000-5000", 206, (2000, 3000)),
        ("5000-6000", 416, None),
        ("500-0", 416, None),
    ],
)
async def test_ranges(client: PushClient, asked: str, status: int, span: tuple[int, int] | None) -> None:
    """The six of the conformance program."""
    digest = await client.push_blob(_BLOB)
    got = await client.blob(digest, Range=f"bytes={asked}")
    assert got.status == status
    if span is None:
        assert got.headers["Content-Range"] == "bytes */3000"
    else:
        assert got.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/3000"
        assert got.body == _BLOB[span[0] : span[1]]


async def test_two_ranges(client: PushClient) -> None:
    """One part for each, as podman asks for zstd:chunked."""
    digest = await client.push_blob(_BLOB)
    got = await client.blob(digest, Range="bytes=0-9,2000-2009")
    assert got.status == 206
    assert got.headers["Content-Type"].startswith("multipart/byteranges")
    assert _BLOB[:10] in got.body
    assert _BLOB[2000:2010] in got.body


async def test_a_deleted_blob_is_gone(client: PushClient) -> None:
    """At once, for HEAD as well; while a manifest names it, it stays (405)."""
    digest = await client.push_blob(_BLOB)
    await client.blob(digest)
    assert (await client.ask("DELETE", f"/v2/{client.name}/blobs/{digest}")).status == 202
    for method in ("GET", "HEAD"):
        assert (await client.blob(digest, method=method)).status == 404
    content = await client.push_image("v1", _BLOB)
    kept = await client.ask("DELETE", f"/v2/{client.name}/blobs/{digest}")
    assert (kept.status, kept.code) == (405, "UNSUPPORTED")
    assert (await client.manifest("v1")).body == content
    await _is_here(client, digest, _BLOB)


async def test_83_a_broken_upload_goes_on(client: PushClient) -> None:
    """Row 83: the client leaves in mid-body; the session keeps what came, and another request ends it."""
    location = await client.begin()
    _, writer = await client.mirror.connect()
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_LARGE)}\r\n\r\n"
    writer.write(head.encode() + _LARGE[:1_000_000])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    while True:
        status = await client.ask("GET", location)
        if status.headers["Range"] == "0-999999":
            break
    rest = {"Content-Range": f"1000000-{len(_LARGE) - 1}"}
    while (answer := await client.ask("PATCH", location, body=_LARGE[1_000_000:], headers=rest)).status == 409:
        pass  # the request that broke off has not let go yet
    assert answer.status == 202
    digest = Digest.of(_LARGE)
    assert (await client.finish(location, digest)).status == 201
    await _is_here(client, digest, _LARGE)


async def test_89_a_quota_is_said_before_the_body(tmp_path: Path) -> None:
    """Row 89: 403 with the figures, instead of `100 Continue`."""
    async with hosting_mirror(tmp_path, hosted={"quota": "1MB"}) as mirror:
        client = PushClient(mirror)
        target = f"{client.uploads}?digest={Digest.of(_LARGE)}"
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_LARGE)}\r\n"
        received = await mirror.raw(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert received.startswith(b"HTTP/1.1 403 ")
        assert b"DENIED" in received
        assert (await client.push_blob(_BLOB)) == Digest.of(_BLOB)


async def test_107_a_body_without_end(tmp_path: Path) -> None:
    """Row 107: chunks are received up to the quota and no further; nothing is left of them."""
    async with hosting_mirror(tmp_path, hosted={"quota": "1MB"}) as mirror:
        client = PushClient(mirror)
        location = await client.begin()
        reader, writer = await mirror.connect()
        writer.write(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

        async def without_end() -> None:
            while True:
                writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                await writer.drain()

        sending = asyncio.create_task(without_end())
        assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        sending.cancel()
        await asyncio.wait({sending})
        writer.close()
        assert (await client.ask("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"
        assert (await client.push_blob(_BLOB)) == Digest.of(_BLOB)


async def test_who_may_only_pull(tmp_path: Path) -> None:
    """Push and delete are refused with 401 to the anonymous, who are asked for what is needed."""
    rules = [{**OPEN, "actions": ["pull"]}]
    async with hosting_mirror(tmp_path, rules=rules) as mirror:
        client = PushClient(mirror)
        digest = Digest.of(_BLOB)
        asked = {
            "push": [("POST", client.uploads), ("PUT", f"/v2/{client.name}/manifests/v1")],
            "delete": [
                ("DELETE", f"/v2/{client.name}/manifests/v1"),
                ("DELETE", f"/v2/{client.name}/blobs/{digest}"),
            ],
        }
        for action, requests in asked.items():
            for method, target in requests:
                answer = await client.ask(method, target, body=b"" if method != "DELETE" else None)
                assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), target
                assert action in answer.headers["WWW-Authenticate"]


async def test_read_only(tmp_path: Path) -> None:
    """What is there can be pulled; nothing is pushed or deleted."""
    async with hosting_mirror(tmp_path) as mirror:
        content = await PushClient(mirror).push_image("v1", _BLOB)
    async with hosting_mirror(tmp_path, hosted={"read_only": True}) as mirror:
        client = PushClient(mirror)
        assert (await client.manifest("v1")).body == content
        await _is_here(client, Digest.of(_BLOB), _BLOB)
        for method, target in (
            ("POST", client.uploads),
            ("PUT", f"/v2/{client.name}/manifests/v2"),
            ("DELETE", f"/v2/{client.name}/manifests/v1"),
            ("DELETE", f"/v2/{client.name}/blobs/{Digest.of(_BLOB)}"),
        ):
            answer = await client.ask(method, target, body=image(b"{}") if method == "PUT" else None)
            assert (answer.status, answer.code) == (403, "DENIED"), target


async def test_proxied_registries_take_no_pushes(client: PushClient) -> None:
    """405, as before."""
    for method, target in (
        ("POST", "/v2/library/app/blobs/uploads/"),
        ("PUT", "/v2/library/app/manifests/v1"),
        ("DELETE", "/v2/docker.io/library/app/manifests/v1"),
    ):
        answer = await client.ask(method, target)
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")
