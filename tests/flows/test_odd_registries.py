"""Registries as they are, from public reports: what can be pulled from them directly can be pulled through the mirror.

The digest is the judge. What is said around the right bytes refuses no pull: statuses, types, sizes, codings, headers.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from pathlib import Path

import pytest

from mirror.app.building import App
from mirror.errors import StoreFull
from mirror.fills.flight import Flight
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from mirror.upstream.registry import RegistryUpstream
from tests.support.fake_registry import FakeRegistry, Fault, status
from tests.support.live_mirror import Clock, LiveMirror, live_mirror, noise
from tests.support.scripted import Answering, Close, Request, Script, chunked, head, reply, reply_json

_LAYER = noise(300_000)
_DIGEST = Digest.of(_LAYER)
_NAME = "/v2/library/app"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def _on(method: str, fault: Fault) -> Fault:
    """For requests of one method alone."""
    return lambda request, answer: fault(request, answer) if request.method == method else answer(request)


def _parts(answer: Answering, request: Request) -> tuple[dict[str, str], bytes]:
    """Headers and body of the well-behaved answer."""
    start, _, body = b"".join(step for step in answer(request) if isinstance(step, bytes)).partition(b"\r\n\r\n")
    lines = start.decode("latin-1").split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines), body


def _changed(**changes: str | None) -> Fault:
    """Other headers, by their names with `_` for `-`; None: without."""

    def fault(request: Request, answer: Answering) -> Script:
        headers, body = _parts(answer, request)
        for name, value in changes.items():
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        return [head(200, headers), body]

    return fault


def _as_status(code: int) -> Fault:
    """The right answer under another status."""

    def fault(request: Request, answer: Answering) -> Script:
        headers, body = _parts(answer, request)
        return [head(code, headers), body]

    return fault


def _without_length(request: Request, answer: Answering) -> Script:
    """Chunked, as whoever makes an answer on the way sends it."""
    headers, body = _parts(answer, request)
    del headers["Content-Length"]
    return [head(200, {**headers, "Transfer-Encoding": "chunked"}), chunked(body[:7], body[7:]) if body else b""]


def _unknown(request: Request) -> Script:
    answer = reply_json(404, {})
    return answer if request.method == "GET" else answer[:1]


def _encoded(coding: str, encode: object = gzip.compress) -> Fault:
    """A proxy that compresses without being asked."""

    def fault(request: Request, answer: Answering) -> Script:
        headers, body = _parts(answer, request)
        assert callable(encode)
        body = encode(body) if body else body
        return [head(200, {**headers, "Content-Encoding": coding, "Content-Length": str(len(body))}), body]

    return fault


async def _pulled(mirror: LiveMirror, digest: Digest, reference: str | Digest = "v1") -> None:
    """By tag, as podman and Docker do, and by the digest that HEAD has said, as containerd does."""
    found = await mirror.ask(f"{_NAME}/manifests/{reference}", method="HEAD")
    assert (found.status, found.headers["Docker-Content-Digest"]) == (200, str(digest))
    for one in (reference, found.headers["Docker-Content-Digest"]):
        answer = await mirror.ask(f"{_NAME}/manifests/{one}")
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(digest))
    answer = await mirror.ask(f"{_NAME}/blobs/{_DIGEST}")
    assert (answer.status, answer.whole, answer.body) == (200, True, _LAYER)


# ---------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("code", [204, 400, 403, 404, 405, 406, 410, 500, 501, 502])
async def test_head_refused_where_get_is_not(registry: FakeRegistry, mirror: LiveMirror, code: int) -> None:
    """registry.centos.org answered HEAD of manifests with 403, others with 400, 404 or 501: GET is asked."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    registry.fail("manifests", _on("HEAD", lambda request, answer: [head(code)]), times=20)
    await _pulled(mirror, digest)


@pytest.mark.parametrize(
    "oddity",
    [
        _changed(Docker_Content_Digest=None),
        _changed(Docker_Content_Digest=f'"{_DIGEST}"'),
        _changed(Docker_Content_Digest=f"SHA256:{_DIGEST.hex.upper()}"),
        _changed(Content_Type="text/plain"),
        _changed(Content_Type="text/html; charset=utf-8"),
        _changed(Content_Type="application/octet-stream"),
        _changed(Content_Type="binary/octet-stream"),
        _changed(Content_Type="application/json"),
        _changed(Content_Type=None),
        _changed(Content_Type=OCI_MANIFEST.upper()),
        _changed(Content_Type=f"{OCI_MANIFEST};charset=UTF-8"),
        _on("HEAD", _changed(Content_Length="0")),
        _on("HEAD", _changed(Content_Length=None)),
        _on("GET", _encoded("gzip")),
        _on("GET", _encoded("x-gzip")),
        _on("GET", _encoded("deflate", zlib.compress)),
        _changed(Content_Encoding="gzip"),
        _changed(Content_Encoding=""),
        _on("GET", _without_length),
        _on("GET", _as_status(201)),
        _on("GET", _as_status(203)),
        _on("GET", _as_status(206)),
        _as_status(203),
    ],
)
async def test_odd_words_around_a_manifest(registry: FakeRegistry, mirror: LiveMirror, oddity: Fault) -> None:
    """Types, digests, lengths, codings and statuses that are wrong around the right bytes."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    registry.fail("manifests", oddity, times=20)
    await _pulled(mirror, digest)


class _KnownAfterItsTag:
    """A registry that knows a digest only after a GET by tag; `known` says whether there was one."""

    def __init__(self) -> None:
        self.known = False

    def __call__(self, request: Request, answer: Answering) -> Script:
        by_digest = request.path.rpartition("/")[2].startswith("sha256:")
        self.known = self.known or (request.method == "GET" and not by_digest)
        return _unknown(request) if by_digest and not self.known else answer(request)


async def test_a_digest_known_after_its_tag(registry: FakeRegistry, tmp_path: Path) -> None:
    """Pull-through caches of clouds, and registries that build on demand, know a digest after GET by tag alone."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    lazy = _KnownAfterItsTag()
    registry.fail("manifests", lazy, times=50)
    for first in ("v1", str(digest)):
        lazy.known = False
        async with live_mirror(tmp_path / first, {"docker.io": registry.url}) as mirror:
            found = await mirror.ask(f"{_NAME}/manifests/v1", method="HEAD")
            assert found.headers["Docker-Content-Digest"] == str(digest)
            lazy.known = False
            assert (await mirror.ask(f"{_NAME}/manifests/{digest}", method="HEAD")).status == 200
            answer = await mirror.ask(f"{_NAME}/manifests/{first}")
            assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(digest))
            assert mirror.blob_file(digest).exists()


async def test_a_digest_asked_for_before_its_tag(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """That such a registry did not know a digest is forgotten as soon as a tag is resolved to it."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    registry.fail("manifests", _KnownAfterItsTag(), times=50)
    for method in ("HEAD", "GET"):
        assert (await mirror.ask(f"{_NAME}/manifests/{digest}", method=method)).status == 404
    assert (await mirror.ask(f"{_NAME}/manifests/v1", method="HEAD")).status == 200
    for method in ("HEAD", "GET"):
        answer = await mirror.ask(f"{_NAME}/manifests/{digest}", method=method)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(digest)), method


async def test_a_digest_unknown_although_its_tag_is_known(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """What the tag gives by now is another manifest: the digest stays unknown, and the tag moves on."""
    old = registry.add_image("library/app", "v1", [_LAYER])
    assert (await mirror.ask(f"{_NAME}/manifests/v1", method="HEAD")).status == 200
    new = registry.add_image("library/app", "v1", [_LAYER, b"more"])

    def forgotten(request: Request, answer: Answering) -> Script:
        return _unknown(request) if str(old) in request.path else answer(request)

    registry.fail("manifests", forgotten, times=20)
    registry.forget()
    for _ in range(3):
        assert (await mirror.ask(f"{_NAME}/manifests/{old}")).status == 404
    assert registry.count("manifests") == 2, "the digest and its tag, and remembered"
    answer = await mirror.ask(f"{_NAME}/manifests/v1")
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(new))


def _signed(payload: bytes, **more: object) -> bytes:
    """As the distribution project signs: the signatures stand before the payload's last bytes."""
    at = payload.rindex(b"\n}")

    def encode(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    protected = encode(json.dumps({"formatLength": at, "formatTail": encode(payload[at:]), "time": "x"}).encode())
    signature = {"header": {"alg": "ES256"}, "signature": "x", "protected": protected}
    fields = json.dumps({**more, "signatures": [signature]})[1:-1]
    return payload[:at] + b",\n   " + fields.encode() + b"\n}"


def _schema_1() -> bytes:
    layers = {"fsLayers": [{"blobSum": str(_DIGEST)}], "history": [{"v1Compatibility": "{}"}]}
    return json.dumps({"schemaVersion": 1, "name": "app", "tag": "v1", **layers}, indent=3).encode()


@pytest.mark.parametrize("media_type", [_SCHEMA_1, "text/plain"])
async def test_signed_schema_1(registry: FakeRegistry, tmp_path: Path, media_type: str) -> None:
    """Its digest is that of the payload, without the signatures; the bytes are passed on as they came."""
    payload = _schema_1()
    signed, digest = _signed(payload), Digest.of(payload)

    def answer(request: Request, _: Answering) -> Script:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": str(digest)}
        sent = [head(200, {**headers, "Content-Length": str(len(signed))}), signed]
        return sent if request.method == "GET" else sent[:1]

    registry.add_blob("library/app", _LAYER)
    registry.fail("manifests", answer, times=50)
    clock = Clock()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, clock=clock) as mirror:
        for reference in ("v1", str(digest), "v1"):
            for method in ("HEAD", "GET"):
                found = await mirror.ask(f"{_NAME}/manifests/{reference}", method=method)
                assert (found.status, found.headers["Docker-Content-Digest"]) == (200, str(digest))
                assert method == "HEAD" or (found.body, found.headers["Content-Type"]) == (signed, _SCHEMA_1)
        assert (await mirror.ask(f"{_NAME}/blobs/{_DIGEST}")).body == _LAYER
        assert not mirror.blob_file(digest).exists()
        assert not mirror.events("store failed")


async def test_a_signed_manifest_that_says_more_than_its_payload(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """What stands outside the payload is in no digest: refused."""
    payload = _schema_1()
    digest = Digest.of(payload)
    signed = _signed(payload, fsLayers=[{"blobSum": str(Digest.of(b"another"))}])
    signed = signed.replace(b'"fsLayers": [\n', b'"other": [\n', 1)
    registry.fail("manifests", lambda request, answer: reply(200, signed, {"Content-Type": _SCHEMA_1}), times=5)
    answer = await mirror.ask(f"{_NAME}/manifests/{digest}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")


@pytest.mark.parametrize("body", [{}, {"error": "log in first"}, {"errors": [{"code": "UNKNOWN"}]}])
async def test_json_that_is_no_manifest(registry: FakeRegistry, mirror: LiveMirror, body: object) -> None:
    """An error that came as JSON with 200 moves no tag."""
    registry.add_image("library/app", "v1", [_LAYER])
    registry.fail("manifests", lambda request, answer: reply_json(200, body), times=5)
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 502
    registry.heal()
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200


async def test_a_type_that_two_readers_take_differently_is_refused(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 19 stands: two kinds of manifest for one digest are refused, whatever GET and HEAD say."""
    registry.add_image("library/app", "v1", [_LAYER])
    for other in (OCI_INDEX, DOCKER_MANIFEST):
        registry.fail("manifests", _changed(Content_Type=other), times=9)
        assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 502
        registry.heal()


async def test_an_unknown_tag_is_asked_for_once_more(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """By HEAD and by GET, and then not again for a while; a registry that throttles is not asked twice."""
    registry.add_image("library/app", "v1", [_LAYER])
    for _ in range(3):
        assert (await mirror.ask(f"{_NAME}/manifests/none")).status == 404
    assert [request.method for request in registry.of_kind("manifests")] == ["HEAD", "GET"]
    registry.forget()
    registry.fail("manifests", status(429, {"Retry-After": "5"}))
    assert (await mirror.ask(f"{_NAME}/manifests/other")).status == 429
    assert registry.count("manifests") == 1


# ------------------------------------------------------------------------------------------------------ logging in


@pytest.mark.parametrize("code", [400, 401, 403])
@pytest.mark.parametrize("tokens", [True, False])
async def test_our_credentials_are_refused_from_now_on(tmp_path: Path, tokens: bool, code: int) -> None:
    """An expired password keeps nobody from what is here: tags are served stale, and the failing login is shown."""
    clock = Clock()
    with FakeRegistry(tokens=tokens, users={"robot": "secret"}) as registry:
        upstream = {"url": registry.url, "username": "robot", "password": "secret"}
        digest = registry.add_image("library/app", "v1", [_LAYER])
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}, clock=clock) as mirror:
            assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200
            registry.users = {"robot": "changed"}
            registry.expire_tokens()
            if tokens:
                registry.fail("token", status(code), times=99)
            clock.forward(3600)
            for _ in range(2):
                answer = await mirror.ask(f"{_NAME}/manifests/v1")
                assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, str(digest))
                assert "Warning" in answer.headers
                clock.forward(60)
            # what is not here cannot be had, and says why
            answer = await mirror.ask(f"{_NAME}/manifests/other")
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
            shown = mirror.app.router._upstream_for("docker.io")
            assert isinstance(shown, RegistryUpstream)
            [health] = shown.health()
            failing = [login.reason for login in health.logins if login.reason]
            assert failing
            assert "refuses the credentials" in failing[0]
            assert "secret" not in mirror.log_text


# ---------------------------------------------------------------------------------------------------------- blobs

_TAR = b"usr/bin/tool" + bytes(100_000) + noise(200_000, seed=5)
_CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "history": ["x" * 70_000]}).encode()
_GZIPPED = gzip.compress(_TAR)


def _unasked_part(stop: int | None) -> Fault:
    """206 although no range was asked for."""

    def fault(request: Request, answer: Answering) -> Script:
        if request.header("Range"):
            return answer(request)
        _, body = _parts(answer, request)
        part = body[:stop]
        return reply(206, part, {"Content-Range": f"bytes 0-{len(part) - 1}/{len(body)}"})

    return fault


@pytest.mark.parametrize(
    "oddity",
    [
        _as_status(201),
        _as_status(203),
        _as_status(206),
        _unasked_part(None),
        _unasked_part(150_000),
        _changed(Content_Type=None),
        _changed(Content_Type="application/json"),
        _changed(Docker_Content_Digest=str(Digest.of(b"another"))),
        _changed(Content_Encoding="gzip"),
        _changed(Content_Encoding="x-gzip"),
        _changed(Content_Encoding="br"),
        _changed(Content_Encoding=""),
        _without_length,
    ],
)
@pytest.mark.parametrize("content", [_LAYER, _GZIPPED, _TAR], ids=["noise", "gzip", "tar"])
async def test_odd_words_around_a_blob(
    registry: FakeRegistry, mirror: LiveMirror, oddity: Fault, content: bytes
) -> None:
    """Statuses, ranges, types and codings that are wrong around the right bytes; a part of it, too."""
    digest = registry.add_blob("library/app", content)
    registry.fail("blobs", oddity, times=9)
    answer = await mirror.ask(f"{_NAME}/blobs/{digest}")
    assert (answer.status, answer.whole, answer.body) == (200, True, content)
    other = registry.add_blob("library/app", content + b"!")
    answer = await mirror.ask(f"{_NAME}/blobs/{other}", headers={"Range": "bytes=5-104"})
    assert (answer.status, answer.body) == (206, content[5:105])


@pytest.mark.parametrize("content", [_GZIPPED, _CONFIG], ids=["layer", "config"])
async def test_5_a_proxy_compresses_what_is_compressed(
    registry: FakeRegistry, mirror: LiveMirror, content: bytes
) -> None:
    """Row 5: the form counts whose digest is right, also where its manifest says the size of it."""
    digest = Digest.of(content)
    registry.add_image("library/app", "v1", [content])
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200
    registry.fail("blobs", _encoded("gzip"), times=9)
    answer = await mirror.ask(f"{_NAME}/blobs/{digest}")
    assert (answer.status, answer.whole, answer.body) == (200, True, content)
    await mirror.landed(digest)


async def test_5_an_encoded_blob_that_breaks_off(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 5: a part of what is encoded fits nothing that is here: it is had from the beginning, and passed over."""
    digest = registry.add_blob("library/app", _GZIPPED)

    def breaks(request: Request, answer: Answering) -> Script:
        sent = _encoded("gzip")(request, answer)
        assert isinstance(sent[1], bytes)
        return [sent[0], sent[1][:100_000], Close()]

    def part(request: Request, answer: Answering) -> Script:
        whole = gzip.compress(_GZIPPED)
        if (start := request.start) == 0:
            return reply(200, whole, {"Content-Encoding": "gzip"})
        bounds = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        return reply(206, whole[start:], {"Content-Encoding": "gzip", "Content-Range": bounds})

    registry.fail("blobs", breaks)
    registry.fail("blobs", part, times=9)
    answer = await mirror.ask(f"{_NAME}/blobs/{digest}")
    assert (answer.status, answer.whole, answer.body) == (200, True, _GZIPPED)


@pytest.mark.parametrize("cut", [1, 5000])
async def test_5_gzip_that_is_none(registry: FakeRegistry, mirror: LiveMirror, cut: int) -> None:
    """Row 5: what stops being gzip, or ends too soon, is no blob; nothing of it is kept."""
    digest = registry.add_blob("library/app", _GZIPPED)
    broken = gzip.compress(_GZIPPED)[:-cut] + (b"?" * 5000 if cut > 1 else b"")
    registry.fail("blobs", lambda request, answer: reply(200, broken, {"Content-Encoding": "gzip"}), times=9)
    answer = await mirror.ask(f"{_NAME}/blobs/{digest}")
    assert not answer.whole or answer.status == 502
    await mirror.idle()
    assert not mirror.blob_file(digest).exists()
    registry.heal()
    assert (await mirror.ask(f"{_NAME}/blobs/{digest}")).body == _GZIPPED


@pytest.mark.parametrize("said", [5, 100_000, 10**9])
async def test_3_a_manifest_that_says_another_size(registry: FakeRegistry, mirror: LiveMirror, said: int) -> None:
    """Row 3: the bytes have the right digest, so they are served, with the length that they have; HEAD says the same
    once they are here.
    """
    registry.add_blob("library/app", _LAYER)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(_DIGEST), "size": said}
    config = {"mediaType": "application/x", "digest": str(registry.add_blob("library/app", b"{}")), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    registry.add_manifest("library/app", json.dumps(manifest).encode(), OCI_MANIFEST, "v1")
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200
    for _ in range(2):
        answer = await mirror.ask(f"{_NAME}/blobs/{_DIGEST}")
        assert (answer.status, answer.whole, answer.body) == (200, True, _LAYER)
        assert answer.headers["Content-Length"] == str(len(_LAYER))
        await mirror.landed(_DIGEST)
    answer = await mirror.ask(f"{_NAME}/blobs/{_DIGEST}", headers={"Range": "bytes=-5"})
    assert (answer.status, answer.body) == (206, _LAYER[-5:])
    found = await mirror.ask(f"{_NAME}/blobs/{_DIGEST}", method="HEAD")
    assert found.headers["Content-Length"] == str(len(_LAYER))
    assert registry.count("blobs") == 1


@pytest.mark.parametrize("said", [100_000, 10**9])
async def test_3_another_size_while_the_store_takes_nothing(registry: FakeRegistry, tmp_path: Path, said: int) -> None:
    """Row 3: past the store the manifest's size is told before upstream's is known: nothing wrong of it is complete."""

    async def join(*_: object, **__: object) -> Flight:
        raise StoreFull("no room")

    def fill(app: App) -> None:
        app.shared.flights.join = join  # type: ignore[method-assign]

    registry.add_blob("library/app", _LAYER)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(_DIGEST), "size": said}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer, "layers": []}
    registry.add_manifest("library/app", json.dumps(manifest).encode(), OCI_MANIFEST, "v1")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, before=fill) as mirror:
        assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200
        answer = await mirror.ask(f"{_NAME}/blobs/{_DIGEST}")
        assert not answer.whole
        assert _LAYER.startswith(answer.body)


async def test_a_location_with_blanks(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Blanks in a redirect are sent on as %20, by which every client takes them; a control character is refused."""
    digest = registry.add_image("library/app", "v1", [_LAYER])

    def send_on(request: Request, answer: Answering) -> Script:
        where = request.target.replace("/app/", "/an app/")
        return reply(307, b"", {"Location": f"{where}?name=a layer "})

    def behind(request: Request, answer: Answering) -> Script:
        if "/an%20app/" not in request.target:
            return send_on(request, answer)
        assert request.target.endswith("?name=a%20layer")
        rest = request.target.replace("/an%20app/", "/app/").partition("?")[0]
        return answer(Request(request.method, rest, request.version, request.headers, b"", request.connection))

    for kind in ("manifests", "blobs"):
        registry.fail(kind, behind, times=20)
    await _pulled(mirror, digest)
    registry.heal()
    registry.fail("blobs", lambda request, answer: reply(307, b"", {"Location": "/a\tb"}), times=5)
    other = registry.add_blob("library/app", b"other")
    assert (await mirror.ask(f"{_NAME}/blobs/{other}")).status == 502
