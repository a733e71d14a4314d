"""Each verb of a push as its client sees it: status, headers, error code. The repository behind is in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mirror.errors import BlobReferenced, Denied, MirrorError, NoRoomForPush, QuotaExceeded, TooManyUploads
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_MANIFEST
from mirror.policy.access_rules import Action
from tests.support.push_server import Answered, PushServer, push_server

_BLOB = b"a blob of some bytes"
_DIGEST = Digest.of(_BLOB)
_UPLOADS = "/v2/app/blobs/uploads/"


@pytest.fixture
async def server() -> AsyncIterator[PushServer]:
    """Everybody may do everything there."""
    async with push_server() as running:
        yield running


def _error(answer: Answered) -> dict[str, Any]:
    errors = json.loads(answer.body)["errors"]
    assert answer.headers["Content-Type"] == "application/json"
    return dict(errors[0])


def _failed(answer: Answered) -> tuple[int, str]:
    return answer.status, _error(answer)["code"]


def _at(location: str, digest: Digest | str) -> str:
    return f"{location}?digest={digest}"


# ----------------------------------------------------------------------------------------------------- uploads


async def test_a_session_from_post_to_put(server: PushServer) -> None:
    """POST, two chunks, PUT: each answer says where the session is and how far."""
    begun = await server.ask("POST", _UPLOADS)
    assert begun.status == 202
    location = begun.headers["Location"]
    assert location.startswith("/v2/app/blobs/uploads/")
    assert location.endswith(begun.headers["Docker-Upload-UUID"])
    assert begun.headers["Range"] == "0-0"
    assert "OCI-Chunk-Min-Length" not in begun.headers
    first = await server.ask("PATCH", location, body=_BLOB[:8], headers={"Content-Range": "0-7"})
    assert (first.status, first.headers["Range"]) == (202, "0-7")
    assert first.headers["Location"] == location
    second = await server.ask("PATCH", location, body=_BLOB[8:], headers={"Content-Range": f"8-{len(_BLOB) - 1}"})
    assert (second.status, second.headers["Range"]) == (202, f"0-{len(_BLOB) - 1}")
    done = await server.ask("PUT", _at(location, _DIGEST))
    assert done.status == 201
    assert done.headers["Location"] == f"/v2/app/blobs/{_DIGEST}"
    assert done.headers["Docker-Content-Digest"] == str(_DIGEST)
    assert server.repository.blobs == {_DIGEST: _BLOB}
    assert server.repository.pushers == ["user:alice"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_one_patch_or_one_put(server: PushServer, algorithm: str, chunked: bool) -> None:
    """A blob in one PATCH, or in the PUT alone, with its length or in chunks."""
    digest = Digest.of(_BLOB, algorithm)

    async def pieces() -> AsyncIterator[bytes]:
        yield _BLOB[:5]
        yield _BLOB[5:]

    location = await server.begin()
    assert (await server.ask("PATCH", location, body=pieces() if chunked else _BLOB)).status == 202
    assert (await server.ask("PUT", _at(location, digest))).status == 201
    location = await server.begin()
    assert (await server.ask("PUT", _at(location, digest), body=pieces() if chunked else _BLOB)).status == 201
    assert server.repository.blobs == {digest: _BLOB}


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_post_alone(server: PushServer, algorithm: str) -> None:
    """A whole blob in the POST; its length is known before it comes."""
    digest = Digest.of(_BLOB, algorithm)
    answer = await server.ask("POST", f"{_UPLOADS}?digest={digest}&digest-algorithm={algorithm}", body=_BLOB)
    assert (answer.status, answer.headers["Location"]) == (201, f"/v2/app/blobs/{digest}")
    assert server.repository.sizes == [len(_BLOB)]
    assert server.repository.sessions == {}


async def test_post_alone_with_a_wrong_digest_leaves_nothing(server: PushServer) -> None:
    """Its client never learned of a session."""
    answer = await server.ask("POST", f"{_UPLOADS}?digest={_DIGEST}", body=b"something else")
    assert _failed(answer) == (400, "DIGEST_INVALID")
    assert server.repository.sessions == {}
    assert server.repository.busy == set()


async def test_post_with_a_digest_but_no_body_begins_a_session(server: PushServer) -> None:
    """A client that says only what it will send."""
    text = f"POST {_UPLOADS}?digest={_DIGEST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await server.raw(text.encode())).startswith(b"HTTP/1.1 202 ")


async def test_an_empty_blob(server: PushServer) -> None:
    """Of no bytes, by POST alone, PUT alone, and an empty PATCH."""
    empty = Digest.of(b"")
    answer = await server.ask("POST", f"{_UPLOADS}?digest={empty}", body=b"")
    assert answer.status == 201
    assert (await server.ask("PUT", _at(await server.begin(), empty), body=b"")).status == 201
    location = await server.begin()
    patched = await server.ask("PATCH", location, body=b"")
    assert (patched.status, patched.headers["Range"]) == (202, "0-0")
    assert (await server.ask("PUT", _at(location, empty))).status == 201


@pytest.mark.parametrize("text", ["sha256:x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256", ""])
@pytest.mark.parametrize("verb", ["POST", "PUT"])
async def test_bad_digests(server: PushServer, verb: str, text: str) -> None:
    """What is no digest is 400; an empty parameter is none."""
    target = f"{_UPLOADS}?digest={text}" if verb == "POST" else _at(await server.begin(), text)
    if verb == "POST" and not text:
        assert (await server.ask(verb, target, body=_BLOB)).status == 202
        return
    assert _failed(await server.ask(verb, target, body=_BLOB)) == (400, "DIGEST_INVALID")


async def test_an_unknown_algorithm(server: PushServer) -> None:
    """Said at the beginning, so that no gigabyte is sent for nothing."""
    assert _failed(await server.ask("POST", f"{_UPLOADS}?digest-algorithm=md5")) == (400, "DIGEST_INVALID")


async def test_86_wrong_digest_at_the_put(server: PushServer) -> None:
    """Row 86: the session stays, and the answer says how far it is."""
    location = await server.begin()
    await server.ask("PATCH", location, body=_BLOB)
    wrong = await server.ask("PUT", _at(location, Digest.of(b"other")))
    assert _failed(wrong) == (400, "DIGEST_INVALID")
    assert wrong.headers["Range"] == f"0-{len(_BLOB) - 1}"
    assert (await server.ask("PUT", _at(location, _DIGEST))).status == 201


@pytest.mark.parametrize("verb", ["PATCH", "PUT"])
@pytest.mark.parametrize("chunk", ["4-7", "9-12", "0-3", "bytes 8-11/20", "8-", "x", "8-11/20", "-1-3"])
async def test_84_a_gap(server: PushServer, verb: str, chunk: str) -> None:
    """Row 84: a chunk that does not follow is 416 with the right `Range`, also at the PUT; the old URL goes on."""
    location = await server.begin()
    await server.ask("PATCH", location, body=_BLOB[:8])
    target = location if verb == "PATCH" else _at(location, _DIGEST)
    answer = await server.ask(verb, target, body=b"1234", headers={"Content-Range": chunk})
    assert _failed(answer) == (416, "BLOB_UPLOAD_INVALID")
    assert answer.headers["Range"] == "0-7"
    assert answer.headers["Location"] == location
    status = await server.ask("GET", location)
    assert (status.status, status.headers["Range"], status.body) == (204, "0-7", b"")
    assert (await server.ask("PATCH", location, body=_BLOB[8:])).status == 202
    assert (await server.ask("PUT", _at(location, _DIGEST))).status == 201


@pytest.mark.parametrize("chunk", ["0-8", "0-6", "0-0"])
async def test_a_range_of_another_length(server: PushServer, chunk: str) -> None:
    """The body and its range contradict each other; nothing is appended."""
    location = await server.begin()
    answer = await server.ask("PATCH", location, body=_BLOB[:8], headers={"Content-Range": chunk})
    assert _failed(answer) == (400, "SIZE_INVALID")
    assert (await server.ask("GET", location)).headers["Range"] == "0-0"


async def test_status_before_any_byte(server: PushServer) -> None:
    """`0-0`, as distribution says it; by HEAD as well."""
    location = await server.begin()
    for method in ("GET", "HEAD"):
        answer = await server.ask(method, location)
        assert (answer.status, answer.headers["Range"], answer.headers["Location"]) == (204, "0-0", location)


async def test_cancel(server: PushServer) -> None:
    """DELETE ends the session; afterwards it is unknown to every verb."""
    location = await server.begin()
    assert (await server.ask("DELETE", location)).status == 204
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        target = location if method != "PUT" else _at(location, _DIGEST)
        answer = await server.ask(method, target)
        assert _failed(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_85_two_at_once(server: PushServer) -> None:
    """Row 85: while one request writes, another is 409."""
    location = await server.begin()
    began = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield _BLOB[:4]
        began.set()
        await released.wait()
        yield _BLOB[4:]

    released = asyncio.Event()
    first = asyncio.create_task(server.ask("PATCH", location, body=slowly()))
    await began.wait()
    while not server.repository.busy:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.005)
    assert _failed(await server.ask("PATCH", location, body=b"others")) == (409, "BLOB_UPLOAD_INVALID")
    released.set()
    assert (await first).status == 202
    assert (await server.ask("PUT", _at(location, _DIGEST))).status == 201


async def test_the_namespace_stays_in_the_location(server: PushServer) -> None:
    """A client that routes by `?ns=` follows the Location as it is."""
    begun = await server.ask("POST", f"{_UPLOADS}?ns=corp.example")
    assert begun.headers["Location"].endswith("?ns=corp.example")
    done = await server.ask("POST", f"{_UPLOADS}?ns=corp.example&digest={_DIGEST}", body=_BLOB)
    assert done.headers["Location"] == f"/v2/app/blobs/{_DIGEST}?ns=corp.example"


# ------------------------------------------------------------------------------------------------------ mounts


async def test_mounts(server: PushServer) -> None:
    """With `from`, without it, of a blob that `from` lacks, from a name that is none: 201, or 202 and a session."""
    server.repository.elsewhere = {"base": {_DIGEST}}
    for source, status in (
        ("&from=base", 201),
        ("", 201),
        ("&from=other", 202),
        ("&from=unknown", 202),
        ("&from=NO%20NAME", 202),
    ):
        answer = await server.ask("POST", f"{_UPLOADS}?mount={_DIGEST}{source}")
        assert answer.status == status, source
        if status == 201:
            assert answer.headers["Location"] == f"/v2/app/blobs/{_DIGEST}"
            assert answer.headers["Docker-Content-Digest"] == str(_DIGEST)
        else:
            assert (await server.ask("GET", answer.headers["Location"])).status == 204
    assert _failed(await server.ask("POST", f"{_UPLOADS}?mount=sha256:x&from=base")) == (400, "DIGEST_INVALID")


# --------------------------------------------------------------------------------------------------- manifests


def _manifest(**more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **more}).encode()


async def test_manifest_by_tag_and_by_digest(server: PushServer) -> None:
    """The Location is by digest; parameters of the type do not count; the bytes stay as they are."""
    content = _manifest(layers=[], note="  spaces ")
    digest = Digest.of(content)
    for reference in ("v1", str(digest)):
        answer = await server.ask(
            "PUT", f"/v2/app/manifests/{reference}", body=content, headers={"Content-Type": f"{OCI_MANIFEST}; x=y"}
        )
        assert answer.status == 201
        assert answer.headers["Location"] == f"/v2/app/manifests/{digest}"
        assert answer.headers["Docker-Content-Digest"] == str(digest)
        assert "OCI-Subject" not in answer.headers
        assert "OCI-Tag" not in answer.headers
    assert server.repository.manifests == {digest: (content, OCI_MANIFEST)}
    assert server.repository.tags == {"v1": digest}


async def test_manifest_with_several_tags(server: PushServer) -> None:
    """Each accepted tag is said; 32 of them are possible, 33 are 414."""
    content = _manifest(layers=[])
    digest = Digest.of(content)
    tags = [f"v{number}" for number in range(32)]
    target = f"/v2/app/manifests/{digest}?" + "&".join(f"tag={tag}" for tag in tags)
    answer = await server.ask("PUT", target, body=content)
    assert answer.status == 201
    assert answer.headers.getall("OCI-Tag") == tags
    for count in (1, 40):
        more = "".join(f"&tag=w{number}" for number in range(count))
        assert _failed(await server.ask("PUT", target + more, body=content)) == (414, "TAG_INVALID")
    assert _failed(await server.ask("PUT", target + "&tag=a/b", body=content))[0] == 400


async def test_manifest_with_a_subject(server: PushServer) -> None:
    """The subject may be missing; that it was understood is said."""
    subject = Digest.of(b"not here")
    content = _manifest(subject={"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 8}, layers=[])
    answer = await server.ask("PUT", "/v2/app/manifests/v1", body=content)
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, str(subject))


async def test_a_manifest_of_4_mib(server: PushServer) -> None:
    """Kept byte for byte."""
    content = _manifest(layers=[], filler="x" * (LARGEST - len(_manifest(layers=[], filler=""))))
    assert len(content) == LARGEST
    assert (await server.ask("PUT", "/v2/app/manifests/v1", body=content)).status == 201
    assert server.repository.manifests[Digest.of(content)][0] == content


@pytest.mark.parametrize("framing", [f"Content-Length: {10 << 30}", "Transfer-Encoding: chunked"])
async def test_105_a_manifest_that_is_too_large(server: PushServer, framing: str) -> None:
    """Row 105: 413 without reading gigabytes, whether the length is said or not."""
    reader, writer = await server.connect()
    writer.write(f"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
    if "chunked" in framing:
        for _ in range(5):
            writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"MANIFEST_INVALID" in await reader.readline()
    writer.close()


async def test_deletes(server: PushServer) -> None:
    """202 for a tag, a manifest and a blob; afterwards 404 with the code of each."""
    content = _manifest(layers=[])
    digest = Digest.of(content)
    await server.ask("PUT", "/v2/app/manifests/v1", body=content)
    server.repository.blobs[_DIGEST] = _BLOB
    for target, code in (
        ("/v2/app/manifests/v1", "MANIFEST_UNKNOWN"),
        (f"/v2/app/manifests/{digest}", "MANIFEST_UNKNOWN"),
        (f"/v2/app/blobs/{_DIGEST}", "BLOB_UNKNOWN"),
    ):
        assert (await server.ask("DELETE", target)).status == 202
        assert _failed(await server.ask("DELETE", target)) == (404, code)


async def test_a_blob_that_a_manifest_names(server: PushServer) -> None:
    """405, which the conformance program allows; 400 it does not."""
    server.repository.refuse = BlobReferenced("a manifest names it")
    assert _failed(await server.ask("DELETE", f"/v2/app/blobs/{_DIGEST}")) == (405, "UNSUPPORTED")


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("PUT", _UPLOADS, "POST"),
        ("GET", _UPLOADS, "POST"),
        ("POST", f"{_UPLOADS}session-1", "GET, HEAD, PATCH, PUT, DELETE"),
        ("POST", "/v2/app/manifests/v1", "GET, HEAD, PUT, DELETE"),
        ("PUT", f"/v2/app/blobs/{_DIGEST}", "GET, HEAD, DELETE"),
        ("DELETE", "/v2/app/tags/list", "GET, HEAD"),
        ("PUT", "/v2/", "GET, HEAD"),
    ],
)
async def test_methods_that_a_resource_lacks(server: PushServer, method: str, target: str, allow: str) -> None:
    """405, with those that it has."""
    answer = await server.ask(method, target)
    assert _failed(answer) == (405, "UNSUPPORTED")
    assert answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    ("kind", "reason", "status", "code"),
    [
        (QuotaExceeded, "corp has 10 GB, and may have 10 GB", 403, "DENIED"),
        (NoRoomForPush, "the disk is full", 507, "DENIED"),
        (TooManyUploads, "100 uploads are open", 429, "TOOMANYREQUESTS"),
    ],
)
async def test_refused_before_the_body(
    server: PushServer, kind: type[MirrorError], reason: str, status: int, code: str
) -> None:
    """Rows 88, 89 and 104: with a message that the client shows, before a byte is sent."""
    server.repository.refuse = kind(reason)
    answer = await server.ask("POST", _UPLOADS)
    assert _failed(answer) == (status, code)
    assert _error(answer)["message"] == reason
    assert ("Retry-After" in answer.headers) == (status == 429)


async def test_what_is_asked_of_the_rules(server: PushServer) -> None:
    """Each verb asks for its action, before the repository is asked for anything."""
    server.gate.refuse = Denied("user:alice may not push here")
    for method, target in (
        ("POST", _UPLOADS),
        ("PATCH", f"{_UPLOADS}x"),
        ("GET", f"{_UPLOADS}x"),
        ("DELETE", f"{_UPLOADS}x"),
        ("PUT", "/v2/app/manifests/v1"),
        ("DELETE", "/v2/app/manifests/v1"),
        ("DELETE", f"/v2/app/blobs/{_DIGEST}"),
    ):
        assert _failed(await server.ask(method, target)) == (403, "DENIED")
    asked = [action for actions in server.gate.asked for action in actions]
    assert asked == [Action.PUSH] * 5 + [Action.DELETE] * 2


async def test_what_the_audit_log_says(server: PushServer) -> None:
    """Who did what, with which digest and how many bytes."""
    server.repository.elsewhere = {"base": {_DIGEST}}
    location = await server.begin()
    await server.ask("PATCH", location, body=_BLOB)
    await server.ask("PUT", _at(location, _DIGEST))
    await server.ask("POST", f"{_UPLOADS}?mount={_DIGEST}&from=base")
    content = _manifest(layers=[])
    await server.ask("PUT", "/v2/app/manifests/v1", body=content)
    other = _manifest(layers=[], note="another")
    await server.ask("PUT", "/v2/app/manifests/v1", body=other)
    await server.ask("DELETE", "/v2/app/manifests/v1")
    said = [(line["action"], line["status"], line["reference"], line["bytes"]) for line in server.audit]
    assert said == [
        ("push", 202, None, 0),
        ("push", 202, None, len(_BLOB)),
        ("push", 201, str(_DIGEST), 0),
        ("mount", 201, str(_DIGEST), 0),
        ("push", 201, "v1", len(content)),
        ("overwrite", 201, "v1", len(other)),
        ("delete", 202, "v1", 0),
    ]
    assert server.audit[4]["digest"] == str(Digest.of(content))
    assert {line["repository"] for line in server.audit} == {"corp/app"}
    assert {line["caller"] for line in server.audit} == {"user:alice"}


async def test_head_of_a_blob_by_who_may_push(server: PushServer) -> None:
    """Goes to the verb that may reserve it."""
    server.repository.blobs[_DIGEST] = _BLOB
    answer = await server.ask("HEAD", f"/v2/app/blobs/{_DIGEST}")
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(_BLOB)))
    assert (await server.ask("HEAD", f"/v2/app/blobs/{Digest.of(b'')}")).status == 404
