"""Manifests over HTTP: what an answer looks like, and what is refused."""

from __future__ import annotations

import json

import pytest

from mirror.errors import StoreError, StoreFull
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, LARGEST, OCI_INDEX, OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry, cut, html, status, wrong_bytes
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.scripted import reply

_NAME = "/v2/library/app"


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/?ns=ghcr.io"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_base(mirror: LiveMirror, path: str, method: str) -> None:
    """`GET /v2/` says that this is a registry, whoever asks."""
    answer = await mirror.ask(path, method=method)
    assert answer.status == 200
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert answer.body == (b"{}" if method == "GET" else b"")


async def test_headers_of_get_and_head(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """By tag and digest, GET and HEAD, cold and warm: the same headers, of which clients depend on each."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    content = registry.manifest("library/app", digest)
    for method in ("HEAD", "GET", "HEAD", "GET"):
        for reference in ("v1", digest):
            answer = await mirror.ask(f"{_NAME}/manifests/{reference}", method=method)
            assert answer.status == 200
            assert answer.headers["Content-Type"] == OCI_MANIFEST
            assert answer.headers["Content-Length"] == str(len(content))
            assert answer.headers["Docker-Content-Digest"] == str(digest)
            assert answer.headers["ETag"] == f'"{digest}"'
            assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
            assert answer.headers["Cache-Status"].startswith("mirror; ")
            assert "Warning" not in answer.headers
            assert answer.body == (content if method == "GET" else b"")


async def test_cache_status(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """`Cache-Status` (RFC 9211) tells how an answer came about."""
    registry.add_image("library/app", "v1", [b"layer"])
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).cache == "fwd=uri-miss; stored"
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).cache == "hit"
    mirror.clock.forward(301)
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).cache == "fwd=stale; fwd-status=200"
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).cache == "hit"


async def test_head_of_a_manifest_that_an_index_describes(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A client that was given an index asks by HEAD for its platform's manifest: the index says its type and size, so
    upstream is not asked, and nobody is told that something was stored. In every process of the store.
    """
    child = registry.add_image("library/app", None, [b"layer"])
    index = registry.add_index("library/app", "v1", [child])
    assert (await mirror.ask(f"{_NAME}/manifests/{index}")).status == 200
    registry.forget()
    async with live_mirror(mirror.root, {"docker.io": registry.url}) as another:
        for one in (mirror, another, mirror):
            answer = await one.ask(f"{_NAME}/manifests/{child}", method="HEAD")
            assert (answer.status, answer.cache) == (200, "hit; detail=described")
            assert answer.headers["Content-Type"] == OCI_MANIFEST
            assert answer.headers["Content-Length"] == str(len(registry.manifest("library/app", child)))
            assert answer.headers["Docker-Content-Digest"] == str(child)
    assert not registry.requests
    answer = await mirror.ask(f"{_NAME}/manifests/{child}")
    assert (answer.cache, answer.body) == ("fwd=uri-miss; stored", registry.manifest("library/app", child))
    assert (await mirror.ask(f"{_NAME}/manifests/{child}", method="HEAD")).cache == "hit"


async def test_head_of_a_manifest_that_nothing_here_describes(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Upstream is asked, and nothing is said to be stored: if no index names it, if the index is another repository's,
    if two indexes disagree, if the index says that it is a layer, and if the index is gone.
    """
    alone = registry.add_image("library/app", None, [b"alone"])
    child = registry.add_image("library/app", None, [b"layer"])
    registry.add_image("library/other", None, [b"layer"])
    index = registry.add_index("library/app", "v1", [child])
    others = {"torn": (OCI_MANIFEST, 1), "cache": ("application/vnd.oci.image.layer.v1.tar+gzip", 7)}
    described: dict[str, Digest] = {}
    for name, (kind, size) in others.items():
        described[name] = registry.add_image("library/app", None, [name.encode()])
        wrong = {"mediaType": kind, "digest": str(described[name]), "size": size}
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [wrong]}
        registry.add_manifest("library/app", json.dumps(body).encode(), OCI_INDEX, name)
        await mirror.ask(f"{_NAME}/manifests/{name}")
    registry.add_index("library/app", "right", [described["torn"]])
    await mirror.ask(f"{_NAME}/manifests/right")
    await mirror.ask(f"{_NAME}/manifests/v1")
    for name, digest in [("app", alone), ("other", child), ("app", described["torn"]), ("app", described["cache"])]:
        registry.forget()
        answer = await mirror.ask(f"/v2/library/{name}/manifests/{digest}", method="HEAD")
        assert (answer.status, answer.cache) == (200, "fwd=uri-miss")
        assert answer.headers["Content-Length"] == str(len(registry.manifest(f"library/{name}", digest)))
        assert registry.count("manifests", "HEAD") == 1
    assert (await mirror.ask(f"{_NAME}/manifests/{child}", method="HEAD")).cache == "hit; detail=described"
    mirror.blob_file(index).unlink()
    assert (await mirror.ask(f"{_NAME}/manifests/{child}", method="HEAD")).cache == "fwd=uri-miss"


async def test_head_after_upstream_did_not_know_it(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """An index may name what was never pushed: once upstream has said so, HEAD says what GET said."""
    child = registry.add_image("library/app", None, [b"layer"])
    registry.add_index("library/app", "v1", [child])
    await mirror.ask(f"{_NAME}/manifests/v1")
    registry.fail("manifests", status(404))
    for method in ("GET", "HEAD"):
        assert (await mirror.ask(f"{_NAME}/manifests/{child}", method=method)).status == 404


async def test_head_where_the_disk_does_not_tell(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an index names it cannot be told: then upstream is asked, and the next time the disk again."""
    child = registry.add_image("library/app", None, [b"layer"])
    registry.add_index("library/app", "v1", [child])
    await mirror.ask(f"{_NAME}/manifests/v1")

    def fail(_repo: object) -> list[Digest]:
        raise StoreError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(mirror.app.shared.catalog, "manifest_digests", fail)
        answer = await mirror.ask(f"{_NAME}/manifests/{child}", method="HEAD")
    assert (answer.status, answer.cache) == (200, "fwd=uri-miss")
    assert (await mirror.ask(f"{_NAME}/manifests/{child}", method="HEAD")).cache == "hit; detail=described"


async def test_a_manifest_that_cannot_be_stored(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Cache-Status` does not say that it was."""
    registry.add_image("library/app", "v1", [b"layer"])

    def fail(_digest: Digest, _content: bytes) -> None:
        raise StoreFull("no space")

    monkeypatch.setattr(mirror.app.shared.store, "put", fail)
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).cache == "fwd=bypass"


async def test_the_catalog_of_every_worker(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A repository is in the list of each process as soon as one of them has stored something of it. A list to which
    nothing was added is not read again.
    """
    registry.add_image("library/app", "v1", [b"layer"])
    registry.add_image("library/other", "v1", [b"layer"])
    async with live_mirror(mirror.root, {"docker.io": registry.url}) as another:
        known: list[str] = []
        for name in ("app", "other"):
            known.append(f"docker.io/library/{name}")
            await mirror.ask(f"/v2/library/{name}/manifests/v1", method="HEAD")
            for one in (another, mirror):
                assert (await one.ask("/v2/_catalog")).json == {"repositories": known}
        await mirror.ask(f"{_NAME}/manifests/v1")
        for one in (another, mirror):
            await one.ask("/v2/_catalog")
            listed = one.app.router.repositories._whole
            await mirror.ask(f"{_NAME}/manifests/v1")
            await one.ask("/v2/_catalog")
            assert one.app.router.repositories._whole is listed


async def test_if_none_match(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Who has these very bytes already is told so (304), and only then (RFC 9110, 13.1.2)."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    other = Digest.of(b"other")
    for method in ("GET", "HEAD"):
        for value in (f'"{digest}"', f'W/"{digest}"', f'"{other}", "{digest}"', "*"):
            answer = await mirror.ask(f"{_NAME}/manifests/v1", method=method, headers={"If-None-Match": value})
            assert (answer.status, answer.body) == (304, b""), value
            assert answer.headers["ETag"] == f'"{digest}"'
        answer = await mirror.ask(f"{_NAME}/manifests/v1", method=method, headers={"If-None-Match": f'"{other}"'})
        assert answer.status == 200


async def test_connection_goes_on_after_304_and_head(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Answers without a body leave a connection that can be used: nothing follows their headers."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    ask = f"%s {_NAME}/manifests/v1 HTTP/1.1\r\nHost: x\r\n%s\r\n"
    received = await mirror.raw(
        (ask % ("HEAD", "")).encode(),
        (ask % ("GET", f'If-None-Match: "{digest}"\r\n')).encode(),
        (ask % ("GET", "Connection: close\r\n")).encode(),
    )
    head, _, rest = received.partition(b"\r\n\r\n")
    unchanged, _, rest = rest.partition(b"\r\n\r\n")
    last, _, body = rest.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert unchanged.startswith(b"HTTP/1.1 304")
    assert last.startswith(b"HTTP/1.1 200")
    assert digest.matches(body)


async def test_sha512(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A digest's algorithm is part of its name: sha512 is served, checked and cached like sha256."""
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    digest = registry.add_manifest("library/app", content, OCI_MANIFEST, "v512", algorithm="sha512")
    for reference in (digest, "v512", digest):
        answer = await mirror.ask(f"{_NAME}/manifests/{reference}")
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == str(digest)
        assert answer.body == content
    assert registry.count("manifests", "GET") == 1
    assert (await mirror.ask(f"{_NAME}/manifests/{Digest.of(content)}")).status == 404


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
async def test_indexes_byte_for_byte(registry: FakeRegistry, mirror: LiveMirror, media_type: str) -> None:
    """An index comes with its own spaces and unknown fields, and its children need not be there."""
    child = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"nowhere")), "size": 7, "unknown": [1, 2]}
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": [child], "x-own": {"b": 1, "a": 2}}
    content = json.dumps(index, indent=3).encode() + b"\n\n"
    digest = registry.add_manifest("library/app", content, media_type, "v1")
    for reference in ("v1", digest):
        answer = await mirror.ask(f"{_NAME}/manifests/{reference}")
        assert answer.body == content
        assert answer.headers["Content-Type"] == media_type


async def test_children_are_fetched_when_asked_for(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Of an index only what is pulled is fetched."""
    children = [registry.add_image("library/app", None, [f"layer {number}".encode()]) for number in range(3)]
    registry.add_index("library/app", "v1", children)
    await mirror.ask(f"{_NAME}/manifests/v1")
    assert (await mirror.ask(f"{_NAME}/manifests/{children[1]}")).status == 200
    assert [request.path for request in registry.of_kind("manifests", "GET")][1:] == [
        f"{_NAME}/manifests/{children[1]}"
    ]


async def test_80_media_type_is_the_bodys_own(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 80: what one client accepts decides nothing for the next; the type is that of the bytes."""
    content = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "layers": []}).encode()
    registry.add_manifest("library/app", content, DOCKER_MANIFEST, "v1")
    for accept in (OCI_INDEX, "text/html", "*/*", f"{OCI_MANIFEST}, {DOCKER_MANIFEST};q=0.1"):
        answer = await mirror.ask(f"{_NAME}/manifests/v1", headers={"Accept": accept})
        assert answer.headers["Content-Type"] == DOCKER_MANIFEST
        assert answer.body == content
    assert registry.count("manifests", "GET") == 1


# ------------------------------------------------------------------------------------------- what is refused


async def _refused(mirror: LiveMirror, digest: Digest) -> None:
    """502, and nothing kept."""
    answer = await mirror.ask(f"{_NAME}/manifests/{digest}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert not mirror.blob_file(digest).exists()


async def test_18_huge(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 18: a manifest above 4 MiB is refused and not kept; one of 4 MiB is served."""
    start = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    largest = start + b" " * (LARGEST - len(start))
    digest = registry.add_manifest("library/app", largest, OCI_MANIFEST, "largest")
    assert (await mirror.ask(f"{_NAME}/manifests/{digest}")).body == largest
    digest = registry.add_manifest("library/app", largest + b" ", OCI_MANIFEST, "larger")
    await _refused(mirror, digest)
    assert (await mirror.ask(f"{_NAME}/manifests/larger")).status == 502


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schemaVersion": 2, "layers": [',
        b"[" * 100_000,
        b'{"layers": {}}',
        b'{"layers": [{"digest": "sha256:../../x", "size": 1}]}',
        b'{"layers": [{"digest": 7, "size": -1}]}',
    ],
    ids=["empty", "list", "cut", "deep", "no-list", "digest", "size"],
)
async def test_18_invalid(registry: FakeRegistry, mirror: LiveMirror, content: bytes) -> None:
    """Row 18: bytes that are no manifest are refused although their digest is right, and not kept."""
    digest = registry.add_manifest("library/app", content, OCI_MANIFEST, "v1")
    await _refused(mirror, digest)


async def test_18_html(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 18: the page of a proxy or a captive portal is no manifest; once it is gone the pull works."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("manifests", html(), times=3)
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 502
    registry.heal()
    assert (await mirror.ask(f"{_NAME}/manifests/{digest}")).status == 200
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200


@pytest.mark.parametrize(
    ("body", "sent_as"),
    [
        ({"mediaType": OCI_MANIFEST, "manifests": [], "layers": []}, OCI_MANIFEST),
        ({"mediaType": OCI_INDEX, "manifests": [], "layers": []}, OCI_INDEX),
        ({"manifests": [], "layers": []}, OCI_INDEX),
        ({"mediaType": OCI_MANIFEST, "layers": []}, OCI_INDEX),
        ({"mediaType": OCI_INDEX, "manifests": []}, DOCKER_LIST),
        ({"mediaType": OCI_INDEX, "layers": []}, OCI_INDEX),
    ],
)
async def test_19_ambiguous(registry: FakeRegistry, mirror: LiveMirror, body: dict[str, object], sent_as: str) -> None:
    """Row 19: what two readers could read as two things is refused (CVE-2021-41190), and not kept."""
    digest = registry.add_manifest("library/app", json.dumps({"schemaVersion": 2, **body}).encode(), sent_as, "v1")
    await _refused(mirror, digest)


async def test_other_bytes_than_the_digest_names(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Asked for by digest, other bytes are refused, not kept, and not remembered as unknown."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("manifests", wrong_bytes)
    await _refused(mirror, digest)
    assert (await mirror.ask(f"{_NAME}/manifests/{digest}")).status == 200


async def test_cut_manifest(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A manifest whose body breaks off is asked for again; the client notices nothing."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("manifests", cut(10))
    assert (await mirror.ask(f"{_NAME}/manifests/{digest}")).status == 200


async def test_20_lying_digest_header(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 20: the bytes decide. A HEAD that names another digest is found out, and no wrong answer given."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    size = len(registry.manifest("library/app", digest))
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(Digest.of(b"a lie"))}
    registry.fail("manifests", lambda request, answer: reply(200, b"", headers, length=size)[:1])
    answer = await mirror.ask(f"{_NAME}/manifests/v1")
    assert answer.status == 200
    assert answer.headers["Docker-Content-Digest"] == str(digest)


async def test_a_head_that_lies_about_size_and_type(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Once the manifest is here, HEAD by its tag says what GET gives, whatever upstream's HEAD has said."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    headers = {"Content-Type": DOCKER_MANIFEST, "Docker-Content-Digest": str(digest)}
    registry.fail("manifests", lambda request, answer: reply(200, b"", headers, length=5)[:1])
    assert (await mirror.ask(f"{_NAME}/manifests/v1", method="HEAD")).headers["Content-Length"] == "5"
    assert (await mirror.ask(f"{_NAME}/manifests/{digest}")).status == 200
    answer = await mirror.ask(f"{_NAME}/manifests/v1", method="HEAD")
    assert answer.headers["Content-Length"] == str(len(registry.manifest("library/app", digest)))
    assert answer.headers["Content-Type"] == OCI_MANIFEST


# -------------------------------------------------------------------------------------------- errors of upstream


@pytest.mark.parametrize(
    ("upstream", "wanted", "code"),
    [
        (401, 401, "UNAUTHORIZED"),
        (403, 403, "DENIED"),
        (404, 404, "MANIFEST_UNKNOWN"),
        (429, 429, "TOOMANYREQUESTS"),
        (500, 503, "UNAVAILABLE"),
        (502, 503, "UNAVAILABLE"),
        (418, 502, "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("reference", ["v1", "digest"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_status_keeps_its_class(
    registry: FakeRegistry, mirror: LiveMirror, upstream: int, wanted: int, code: str, reference: str, method: str
) -> None:
    """Upstream's 401, 403, 404, 429 and 5xx stay apart, with their own codes, for GET and HEAD alike."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("manifests", status(upstream, {"Retry-After": "17"} if upstream == 429 else None), times=9)
    answer = await mirror.ask(f"{_NAME}/manifests/{digest if reference == 'digest' else 'v1'}", method=method)
    assert answer.status == wanted
    if method == "GET":
        assert answer.code == code
    else:
        assert answer.body == b""
    if upstream == 429:
        assert 16 <= int(answer.headers["Retry-After"]) <= 17
    elif wanted == 503:
        assert int(answer.headers["Retry-After"]) > 0


async def test_10_one_shared_back_off(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 10: after a 429 nobody asks this upstream until its time is over, and all are told to wait."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.add_image("library/other", "v1", [b"layer"])
    registry.fail("manifests", status(429, {"Retry-After": "30"}))
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 429
    asked = len(registry.requests)
    mirror.clock.forward(10)
    answer = await mirror.ask("/v2/library/other/manifests/v1")
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
    assert 19 <= int(answer.headers["Retry-After"]) <= 20
    assert len(registry.requests) == asked
    mirror.clock.forward(21)
    assert (await mirror.ask("/v2/library/other/manifests/v1")).status == 200


async def test_12_errors_are_not_cached(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 12: a 5xx is tried again at most twice, and the next request asks anew."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("manifests", status(500), times=3)
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 503
    assert registry.count("manifests") == 3
    assert (await mirror.ask(f"{_NAME}/manifests/v1")).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by_tag", [True, False])
async def test_13_unknown_is_remembered_shortly(
    registry: FakeRegistry, mirror: LiveMirror, method: str, by_tag: bool
) -> None:
    """Row 13: what upstream does not know is not asked for again at once, but soon."""
    registry.add_image("library/app", "v1", [b"layer"])
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    target = f"{_NAME}/manifests/{'later' if by_tag else Digest.of(content)}"
    assert (await mirror.ask(target, method=method)).status == 404
    asked = registry.count("manifests")
    for _ in range(5):
        assert (await mirror.ask(target, method=method)).status == 404
    answer = await mirror.ask(target)
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert registry.count("manifests") == asked
    registry.add_manifest("library/app", content, OCI_MANIFEST, "later")
    mirror.clock.forward(60)
    assert (await mirror.ask(target, method=method)).status == 200
