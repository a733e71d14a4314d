"""Sealed repositories: what is here is served without an upstream, the rest is told at once and taken note of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mirror.aio.caches import LruCache
from mirror.errors import BlobUnknown, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import Repo
from mirror.policy.image_misses import Miss
from mirror.policy.records import Freeze
from mirror.repository.protocol import Fetchable
from mirror.store.local.layout import Layout
from mirror.store.local.miss_file import LocalMisses
from mirror.trust.upstream_access import Provable
from tests.support.fake_registry import FakeRegistry
from tests.support.here import APP, Here
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, until
from tests.support.scripted import Scripted

_LAYER = noise(300_000)
_AT = "/v2/library/app"
_WORDS = "not in this sealed mirror"


@pytest.fixture
def upstream() -> Iterator[Scripted]:
    """Somebody who only counts who comes."""
    with Scripted() as running:
        yield running
        assert running.connections == 0


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """What another process does to the store."""
    return Here.at(tmp_path / "store")


@pytest.fixture
async def mirror(upstream: Scripted, here: Here, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """All of it is sealed."""
    async with live_mirror(tmp_path / "store", {"docker.io": upstream.url}, offline=True) as running:
        yield running


def _expect_miss(answer: Got, code: str) -> None:
    assert answer.status == 404
    assert answer.code == code
    assert _WORDS in answer.json["errors"][0]["message"]
    assert "Warning" not in answer.headers


async def _report(mirror: LiveMirror) -> dict[str, Miss]:
    await mirror.app.shared.misses.flush()
    return {miss.image: miss for miss in LocalMisses(Layout(mirror.root)).read()}


# ----------------------------------------------------------------------------------------------------- what is here


async def test_what_was_pulled_before_is_served_for_good(registry: FakeRegistry, tmp_path: Path) -> None:
    """Filled while open and then sealed, every resource is a plain hit after a year, and upstream is never reached."""
    image = registry.add_image("library/app", "v1", [_LAYER])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as open_mirror:
        assert (await open_mirror.ask(f"{_AT}/manifests/v1")).status == 200
        assert (await open_mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}")).status == 200
        await open_mirror.landed(Digest.of(_LAYER))
    with Scripted() as upstream:
        async with live_mirror(tmp_path / "store", {"docker.io": upstream.url}, offline=True) as mirror:
            mirror.clock.forward(365 * 86400)
            for reference in ("v1", image):
                for method in ("HEAD", "GET", "HEAD"):
                    answer = await mirror.ask(f"{_AT}/manifests/{reference}", method=method)
                    assert answer.status == 200
                    assert answer.headers["Docker-Content-Digest"] == str(image)
                    assert answer.cache == "hit"
                    assert "Warning" not in answer.headers
            for method in ("HEAD", "GET"):
                answer = await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}", method=method)
                assert answer.status == 200
                assert answer.headers["Content-Length"] == str(len(_LAYER))
                assert answer.cache == "hit"
            part = await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}", headers={"Range": "bytes=5-9"})
            assert (part.status, part.body) == (206, _LAYER[5:10])
            answer = await mirror.ask(f"{_AT}/tags/list")
            assert (answer.json["tags"], answer.cache) == (["v1"], "hit")
            answer = await mirror.ask(f"{_AT}/referrers/{image}")
            assert (answer.status, answer.json["manifests"], answer.cache) == (200, [], "hit")
            assert await _report(mirror) == {}
        assert upstream.connections == 0


async def test_referrers_with_what_they_say_of_themselves(mirror: LiveMirror, here: Here) -> None:
    """Manifests here with this subject, with artifact type and annotations, filtered on demand; no others."""
    subject = here.image([b"layer"], tag="v1")
    signature = here.image(
        [b"signature"], subject=subject.to_json(), artifactType="application/x.sig", annotations={"who": "me"}
    )
    sbom = here.image([b"sbom"], subject=subject.to_json(), artifactType="application/x.sbom")
    here.image([b"other"], subject=sbom.to_json(), artifactType="application/x.sig")
    answer = await mirror.ask(f"{_AT}/referrers/{subject.digest}")
    assert answer.headers["Content-Type"] == OCI_INDEX
    referrers = {each["digest"]: each for each in answer.json["manifests"]}
    assert referrers.keys() == {str(signature.digest), str(sbom.digest)}
    assert referrers[str(signature.digest)]["annotations"] == {"who": "me"}
    assert referrers[str(signature.digest)]["artifactType"] == "application/x.sig"
    answer = await mirror.ask(f"{_AT}/referrers/{subject.digest}?artifactType=application/x.sbom")
    assert [each["digest"] for each in answer.json["manifests"]] == [str(sbom.digest)]
    later = here.image([b"later"], subject=subject.to_json())
    mirror.clock.forward(2)
    answer = await mirror.ask(f"{_AT}/referrers/{subject.digest}")
    assert str(later.digest) in [each["digest"] for each in answer.json["manifests"]]


async def test_a_sealed_route_beside_an_open_one(registry: FakeRegistry, tmp_path: Path) -> None:
    """Only the route's repositories are sealed; the same registry is asked for the others."""
    registry.add_image("library/app", "v1", [_LAYER])
    registry.add_image("team/app", "v1", [_LAYER])
    route = [{"match": "docker.io/library/*", "offline": True}, {"match": "**"}]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        _expect_miss(await mirror.ask(f"{_AT}/manifests/v1"), "MANIFEST_UNKNOWN")
        assert not registry.requests
        assert (await mirror.ask("/v2/team/app/manifests/v1")).status == 200
        assert (await mirror.ask(f"/v2/team/app/blobs/{Digest.of(_LAYER)}")).status == 200
        await mirror.landed(Digest.of(_LAYER))
        # its bytes are here, the right to them is another repository's
        _expect_miss(await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}"), "BLOB_UNKNOWN")
        assert not [request for request in registry.requests if "library/app" in request.target]


# ------------------------------------------------------------------------------------------------- what is not here


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("resource", "code"),
    [
        ("manifests/v1", "MANIFEST_UNKNOWN"),
        (f"manifests/{Digest.of(b'x')}", "MANIFEST_UNKNOWN"),
        (f"blobs/{Digest.of(b'x')}", "BLOB_UNKNOWN"),
        ("tags/list", "NAME_UNKNOWN"),
        (f"referrers/{Digest.of(b'x')}", "NAME_UNKNOWN"),
    ],
)
async def test_a_repository_with_nothing(mirror: LiveMirror, method: str, resource: str, code: str) -> None:
    """Every resource is a 404 with the specification's code that says why, and upstream is not contacted."""
    answer = await mirror.ask(f"{_AT}/{resource}", method=method)
    if method == "HEAD":
        assert answer.status == 404
    else:
        _expect_miss(answer, code)


async def test_an_import_is_seen_at_once(mirror: LiveMirror, here: Here) -> None:
    """What was missed a moment ago and was brought in by another process is served, also while the index is behind."""
    digest = Digest.of(_LAYER)
    _expect_miss(await mirror.ask(f"{_AT}/manifests/v1"), "MANIFEST_UNKNOWN")
    _expect_miss(await mirror.ask(f"{_AT}/blobs/{digest}"), "BLOB_UNKNOWN")
    image = here.image([_LAYER], tag="v1")
    answer = await mirror.ask(f"{_AT}/manifests/v1")
    assert answer.headers["Docker-Content-Digest"] == str(image.digest)
    assert (await mirror.ask(f"{_AT}/blobs/{digest}")).body == _LAYER


async def test_a_tag_that_another_process_moves(mirror: LiveMirror, here: Here) -> None:
    """It is seen within two seconds; a tag whose manifest is gone is looked at again at once."""
    first = here.image([b"first"], tag="v1")
    assert (await mirror.ask(f"{_AT}/manifests/v1")).headers["Docker-Content-Digest"] == str(first.digest)
    second = here.image([b"second"], tag="v1")
    mirror.clock.forward(2)
    for method in ("HEAD", "GET"):
        answer = await mirror.ask(f"{_AT}/manifests/v1", method=method)
        assert answer.headers["Docker-Content-Digest"] == str(second.digest)
    here.store.delete(here.image([b"third"], tag="v2").digest)
    _expect_miss(await mirror.ask(f"{_AT}/manifests/v2"), "MANIFEST_UNKNOWN")
    fourth = here.image([b"fourth"], tag="v2")
    assert (await mirror.ask(f"{_AT}/manifests/v2")).headers["Docker-Content-Digest"] == str(fourth.digest)


async def test_a_frozen_tag(mirror: LiveMirror, here: Here) -> None:
    """It answers what it was frozen at, by HEAD and GET, and what it was known to point to once it is free again."""
    old, new = here.image([b"old"]), here.image([b"new"], tag="v1")
    freezes = mirror.app.storage.freezes
    freezes.put(Freeze(APP, "v1", old.digest, old.media_type, old.size, "", 0.0))
    for method in ("HEAD", "GET"):
        answer = await mirror.ask(f"{_AT}/manifests/v1", method=method)
        assert (answer.headers["Docker-Content-Digest"], answer.cache) == (str(old.digest), "hit; detail=frozen")
    freezes.drop(APP, "v1")
    mirror.clock.forward(2)
    assert (await mirror.ask(f"{_AT}/manifests/v1")).headers["Docker-Content-Digest"] == str(new.digest)


async def test_rules_about_content_hold_as_well(upstream: Scripted, here: Here, tmp_path: Path) -> None:
    """A sealed repository may be guarded: what is denied is 403, what is not here a miss."""
    here.image([_LAYER], tag="v1")
    here.image([b"1", b"2"], tag="v2")
    route = [{"match": "**", "max_size": "100kB"}]
    async with live_mirror(tmp_path / "store", {"docker.io": upstream.url}, offline=True, route=route) as mirror:
        assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 403
        assert (await mirror.ask(f"{_AT}/manifests/v2")).status == 200
        _expect_miss(await mirror.ask(f"{_AT}/manifests/v3"), "MANIFEST_UNKNOWN")


async def test_a_damaged_blob_is_a_miss(mirror: LiveMirror, here: Here) -> None:
    """It goes to quarantine, not to the client; so does a damaged manifest."""
    image = here.image([_LAYER], tag="v1")
    file = mirror.blob_file(Digest.of(_LAYER))
    file.chmod(0o600)
    file.write_bytes(_LAYER[:-1])
    assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 200
    _expect_miss(await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}"), "BLOB_UNKNOWN")
    assert not file.exists()
    other = here.image([b"other"], tag="v2")
    file = mirror.blob_file(other.digest)
    file.chmod(0o600)
    file.write_bytes(b"{}")
    _expect_miss(await mirror.ask(f"{_AT}/manifests/v2"), "MANIFEST_UNKNOWN")
    assert len(list((mirror.root / "quarantine").iterdir())) == 2
    assert (await _report(mirror)).keys() == {f"{APP}:v1", f"{APP}:v2"}
    assert image.digest != other.digest


async def test_what_other_parts_of_the_mirror_get(mirror: LiveMirror, here: Here) -> None:
    """It can be read and not fetched from; if the disk fails in the middle of a blob, there is no upstream to ask."""
    here.image([_LAYER], tag="v1")
    repository = mirror.app.router.guarded(APP)
    assert not isinstance(repository, Fetchable | Provable)
    assert await repository.read(Digest.of(_LAYER), 1 << 20) == _LAYER
    with pytest.raises(BlobUnknown, match=_WORDS):
        await repository.read(Digest.of(b"x"), 1000)
    content = await repository.blob(Digest.of(_LAYER))
    with pytest.raises(StoreError, match="no upstream"):
        async for _ in content.from_upstream(None):
            pass
    content.close()


# ------------------------------------------------------------------------------------------------ the report of them


async def test_what_the_report_says(mirror: LiveMirror, here: Here) -> None:
    """Each image once, by tag or digest, with first and last time and how often; a blob that no image needs apart."""
    began = mirror.clock()
    for _ in range(3):
        await mirror.ask(f"{_AT}/manifests/v1", method="HEAD")
    mirror.clock.forward(100)
    await mirror.ask(f"{_AT}/manifests/v1")
    digest, stray = Digest.of(b"x"), Digest.of(b"stray")
    await mirror.ask(f"{_AT}/manifests/{digest}")
    await mirror.ask(f"{_AT}/blobs/{stray}")
    await mirror.ask(f"{_AT}/tags/list")
    report = await _report(mirror)
    assert report == {
        f"{APP}:v1": Miss(APP, "v1", began, began + 100, 4),
        f"{APP}@{digest}": Miss(APP, digest, began + 100, began + 100),
        str(APP): Miss(APP, None, began + 100, began + 100, 1, (stray,)),
    }
    metrics = (await mirror.ask("/metrics")).body.decode()
    assert 'mirror_sealed_misses_total{kind="manifest"}' in metrics


async def test_a_missing_layer_is_reported_with_its_images(mirror: LiveMirror, here: Here) -> None:
    """Of every tag that needs it, also through an index, and by digest where there is no tag."""
    gone = here.blob(b"gone", here=False)
    digest = Digest.parse(gone["digest"])
    child = here.image([gone, b"more"])
    here.index({"linux/amd64": child}, tag="v1")
    here.image([gone], tag="v2")
    here.image([b"whole"], tag="v3")
    lonely = Repo("docker.io", "library/lonely")
    untagged = here.image([gone], repo=lonely)
    assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 200
    _expect_miss(await mirror.ask(f"{_AT}/blobs/{digest}"), "BLOB_UNKNOWN")
    _expect_miss(await mirror.ask(f"/v2/library/lonely/blobs/{digest}"), "BLOB_UNKNOWN")
    report = await _report(mirror)
    assert report.keys() == {f"{APP}:v1", f"{APP}:v2", f"{lonely}@{untagged.digest}"}
    assert {miss.blobs for miss in report.values()} == {(digest,)}


async def test_names_without_end_do_not_fill_memory_or_disk(mirror: LiveMirror) -> None:
    """Only the most recent ones are kept, in memory as well as on disk."""
    misses = mirror.app.shared.misses
    misses._images, misses._blobs = LruCache(50), LruCache(50)
    misses._report = LocalMisses(Layout(mirror.root), most=20)
    for number in range(200):
        mirror.clock.forward(1)
        misses.manifest(APP, f"v{number}")
        misses.blob(APP, Digest.of(b"%d" % number), named=True)
    assert len(misses._images) == len(misses._blobs) == 50
    report = await _report(mirror)
    assert report.keys() <= {str(APP), *(f"{APP}:v{number}" for number in range(181, 200))}
    assert len(report) == 20
    assert len(report[str(APP)].blobs) == 16


async def test_the_report_survives_and_is_shared(upstream: Scripted, tmp_path: Path) -> None:
    """Two processes add to one report, a restart goes on counting, and what waits at the end is written."""
    root, upstreams = tmp_path / "store", {"docker.io": upstream.url}
    async with (
        live_mirror(root, upstreams, offline=True) as one,
        live_mirror(root, upstreams, offline=True, clock=one.clock) as two,
    ):
        await asyncio.gather(*(each.ask(f"{_AT}/manifests/v1") for each in (one, two) for _ in range(5)))
        await asyncio.gather(*(each.app.shared.misses.flush() for each in (one, two)))
        [miss] = (await _report(one)).values()
        assert miss.count == 10
    async with live_mirror(root, upstreams, offline=True) as again:
        await again.ask(f"{_AT}/manifests/v1")
        await again.ask(f"{_AT}/manifests/v2")
    assert {miss.image: miss.count for miss in LocalMisses(Layout(root)).read()} == {f"{APP}:v1": 11, f"{APP}:v2": 1}


async def test_it_is_written_without_being_asked(mirror: LiveMirror) -> None:
    """Soon after the miss."""
    await mirror.ask(f"{_AT}/manifests/v1")
    await until(lambda: LocalMisses(Layout(mirror.root)).read())


async def test_a_disk_that_takes_no_report(mirror: LiveMirror) -> None:
    """The answers do not suffer, it is said once, and nothing of it is lost once the disk takes it."""
    place = mirror.root / "misses.json"
    place.mkdir()
    for _ in range(2):
        _expect_miss(await mirror.ask(f"{_AT}/manifests/v1"), "MANIFEST_UNKNOWN")
        await mirror.app.shared.misses.flush()
    assert len(mirror.events("miss report cannot be written")) == 1
    place.rmdir()
    assert (await _report(mirror))[f"{APP}:v1"].count == 2


def test_a_report_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    """Cut, foreign or nested without end; good records beside bad ones stay."""
    Here.at(tmp_path)
    layout = Layout(tmp_path)
    report = LocalMisses(layout)
    report.add([Miss(APP, "v1", 1.0, 2.0)])
    good = layout.misses.read_bytes()
    for bad in (b"", good[:-4], b"[]", b'{"misses": 5}', b'{"misses":' + b"[" * 100_000):
        layout.misses.write_bytes(bad)
        assert report.read() == []
    body = json.loads(good)
    body["misses"] += [None, {}, {**body["misses"][0], "name": "../.."}, {**body["misses"][0], "blobs": ["x"]}]
    layout.misses.write_text(json.dumps(body))
    assert report.read() == [Miss(APP, "v1", 1.0, 2.0)]
    report.clear()
    report.clear()
    assert report.read() == []
