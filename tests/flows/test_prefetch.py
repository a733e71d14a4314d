"""Images brought in before anybody asks for them: what is asked of upstream, what is here afterwards, what is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import StoreError
from mirror.fills.flight import Flight
from mirror.graph.closure import Role
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.records import Freeze
from mirror.ports import BlobInfo
from mirror.prefetch.batch import Prefetched, prefetch
from mirror.prefetch.pulling import BlobProgress, State, platform_of
from mirror.store.local.blobs import LocalIngest
from mirror.values.platforms import parse_platforms
from tests.support.fake_registry import FakeRegistry, cut, stall, status, throttle
from tests.support.live_mirror import LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Request, Stall

_APP = Repo("docker.io", "library/app")
_AT = f"/v2/{_APP.name}"
_AMD64 = {"os": "linux", "architecture": "amd64"}
_ARM64 = {"os": "linux", "architecture": "arm64"}


def _add_index(registry: FakeRegistry, tag: str, children: Sequence[tuple[Digest, dict[str, Any]]]) -> Digest:
    """An index; each child comes with further fields of its descriptor, such as its platform."""
    listed = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(digest),
            "size": len(registry.manifest(_APP.name, digest)),
            **more,
        }
        for digest, more in children
    ]
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    return registry.add_manifest(_APP.name, content, OCI_INDEX, tag)


def _config(platform: dict[str, str], seed: str = "") -> bytes:
    return json.dumps({**platform, "seed": seed, "rootfs": {"type": "layers", "diff_ids": []}}).encode()


def _add_platforms(registry: FakeRegistry, tag: str = "v1") -> dict[str, Digest]:
    """An index of two platforms, each with a config and a layer of its own and one that they share."""
    made = {
        name: registry.add_image(
            _APP.name, None, [b"shared", noise(50_000, seed)], config=_config({"os": "linux", "architecture": name})
        )
        for seed, name in enumerate(("amd64", "arm64"))
    }
    _add_index(registry, tag, [(made["amd64"], {"platform": _AMD64}), (made["arm64"], {"platform": _ARM64})])
    return made


async def _prefetch(mirror: LiveMirror, *references: str | Digest | Image, **more: Any) -> Prefetched:
    images = [
        one if isinstance(one, Image) else Image(_APP, digest=one) if isinstance(one, Digest) else Image(_APP, tag=one)
        for one in references
    ]
    platforms = parse_platforms([more.pop("platforms", "")])
    return await prefetch(mirror.app.router.guarded, images, platforms=platforms, **more)


async def _expect_offline(registry: FakeRegistry, mirror: LiveMirror, reference: str | Digest) -> None:
    """An image manifest, its config and its layers are served while upstream says nothing but 503."""
    registry.fail("manifests", status(503), times=1000)
    registry.fail("blobs", status(503), times=1000)
    answer = await mirror.ask(f"/v2/{_APP.name}/manifests/{reference}")
    assert answer.status == 200, answer
    for blob in [answer.json["config"], *answer.json["layers"]]:
        got = await mirror.ask(f"/v2/{_APP.name}/blobs/{blob['digest']}")
        assert (got.status, got.cache) == (200, "hit"), got
    registry.heal()


def _gets(registry: FakeRegistry, kind: str = "blobs") -> Counter[str]:
    """How often each was asked for by GET."""
    return Counter(request.path.rpartition("/")[2] for request in registry.of_kind(kind, "GET"))


def _reasons(done: Prefetched) -> list[str]:
    return [failure.reason for failure in done.failures]


# ------------------------------------------------------------------------------------------------- what is brought


async def test_cold_and_warm(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Cold, each manifest and blob is requested once; warm, nothing is, not even the tag. The result counts both."""
    layers = [noise(300_000, 1), noise(100, 2)]
    root = registry.add_image(_APP.name, "v1", layers)
    done = await _prefetch(mirror, "v1")
    assert done.ok
    size = len(registry.manifest(_APP.name, root)) + sum(map(len, layers)) + len(b"{}")
    assert (done.fetched.count, done.fetched.bytes, done.here.count) == (4, size, 0)
    [warmed] = done.images.values()
    assert warmed.root == root
    assert Counter(moved.role for moved in warmed.blobs.values()) == {Role.MANIFEST: 1, Role.CONFIG: 1, Role.LAYER: 2}
    assert set(_gets(registry).values()) == {1}
    assert registry.count("manifests", "GET") == 1

    asked = len(registry.requests)
    again = await _prefetch(mirror, "v1")
    assert again.ok
    assert (again.here.count, again.here.bytes, again.fetched.count) == (4, size, 0)
    assert len(registry.requests) == asked
    await _expect_offline(registry, mirror, "v1")


async def test_every_platform(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Without a choice the whole index; blobs that its platforms share are fetched once."""
    made = _add_platforms(registry)
    done = await _prefetch(mirror, "v1")
    assert done.ok
    assert done.fetched.count == 1 + 2 + 2 + 3
    assert set(_gets(registry).values()) == {1}
    for digest in made.values():
        await _expect_offline(registry, mirror, digest)


async def test_one_platform(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Only the index and what is below the chosen manifest; that is enough for a pull by tag without upstream."""
    made = _add_platforms(registry)
    done = await _prefetch(mirror, "v1", platforms="linux/arm64")
    assert done.ok
    assert done.fetched.count == 1 + 1 + 1 + 2
    assert set(_gets(registry, "manifests")) == {str(made["arm64"]), str(next(iter(done.images.values())).root)}
    registry.fail("manifests", status(503), times=1000)
    index = await mirror.ask(f"/v2/{_APP.name}/manifests/v1")
    assert index.json["manifests"][1]["digest"] == str(made["arm64"])
    await _expect_offline(registry, mirror, made["arm64"])


async def test_a_missing_platform(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """It fails, and the message names the platforms that there are; the other requested ones are fetched all the
    same.
    """
    made = _add_platforms(registry)
    done = await _prefetch(mirror, "v1", platforms="linux/s390x,linux/arm64,windows/amd64")
    assert not done.ok
    assert _reasons(done) == ["not for linux/s390x, windows/amd64; it is for linux/amd64, linux/arm64"]
    await _expect_offline(registry, mirror, made["arm64"])


async def test_children_that_say_no_platform(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """They belong to every choice; beside others they do not stand in for the platform that is missing. An index of
    nothing is for nobody.
    """
    one, two = (registry.add_image(_APP.name, None, [name.encode()], config=name.encode()) for name in ("one", "two"))
    _add_index(registry, "artifacts", [(one, {}), (two, {})])
    assert (await _prefetch(mirror, "artifacts", platforms="linux/arm64")).ok
    _add_index(registry, "mixed", [(one, {"platform": _AMD64}), (two, {})])
    done = await _prefetch(mirror, "mixed", platforms="linux/arm64")
    assert _reasons(done) == ["not for linux/arm64; it is for linux/amd64"]
    assert two in next(iter(done.images.values())).blobs
    _add_index(registry, "empty", [])
    done = await _prefetch(mirror, "empty", platforms="linux/arm64")
    assert _reasons(done) == ["not for linux/arm64; it is for no platform"]
    _add_index(registry, "nested", [(next(iter((await _prefetch(mirror, "mixed")).images.values())).root or one, {})])
    assert (await _prefetch(mirror, "nested", platforms="linux/amd64")).ok


async def test_an_image_without_an_index(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Its config names its platform: the image is fetched if that platform is requested; otherwise it is a failure."""
    registry.add_image(_APP.name, "v1", [noise(1000, 1)], config=_config(_AMD64))
    assert (await _prefetch(mirror, "v1", platforms="linux/amd64")).ok
    await _expect_offline(registry, mirror, "v1")

    registry.add_image(_APP.name, "v2", [noise(1000, 2)], config=_config(_AMD64, "another"))
    done = await _prefetch(mirror, "v2", platforms="linux/arm64")
    assert _reasons(done) == ["not for linux/arm64; it is for linux/amd64"]
    assert done.fetched.count == 2
    assert str(Digest.of(noise(1000, 2))) not in _gets(registry)

    both = await _prefetch(mirror, "v2", platforms="linux/arm64,linux/amd64")
    assert _reasons(both) == ["not for linux/arm64; it is for linux/amd64"]
    await _expect_offline(registry, mirror, "v2")


@pytest.mark.parametrize("config", [b"{}", b"[]", b"not json", b'{"os": 3}', b'{"os": "", "architecture": null}'])
async def test_an_image_that_does_not_say_its_platform(
    registry: FakeRegistry, mirror: LiveMirror, config: bytes
) -> None:
    """It belongs to every choice, as artifacts do."""
    registry.add_image(_APP.name, "v1", [noise(1000)], config=config)
    done = await _prefetch(mirror, "v1", platforms="linux/arm64")
    assert done.ok
    assert done.fetched.count == 3


async def test_an_artifact(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A chart's config is none of an image: its words about platforms mean nothing."""
    config = registry.add_blob(_APP.name, _config(_AMD64))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.cncf.helm.config.v1+json",
            "digest": str(config),
            "size": len(_config(_AMD64)),
        },
        "layers": [],
    }
    registry.add_manifest(_APP.name, json.dumps(manifest).encode(), OCI_MANIFEST, "chart")
    assert (await _prefetch(mirror, "chart", platforms="linux/arm64")).ok


async def test_foreign_layers_are_not_fetched(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Registries do not have them."""
    foreign = {"mediaType": "application/x", "digest": str(Digest.of(b"elsewhere")), "size": 9, "urls": ["http://x/"]}
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [foreign]}).encode()
    registry.add_manifest(_APP.name, content, OCI_MANIFEST, "v1")
    done = await _prefetch(mirror, "v1")
    assert done.ok
    assert not _gets(registry)


async def test_many_images_share_layers(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Of two repositories: a shared layer is requested from upstream once, and counted once."""
    layers = [noise(200_000, 1), noise(200_000, 2)]
    registry.add_image(_APP.name, "v1", layers, config=b'{"a": 1}')
    registry.add_image(_APP.name, "v2", layers, config=b'{"a": 2}')
    registry.add_image("team/other", "v1", layers, config=b'{"a": 3}')
    other = Image(Repo("docker.io", "team/other"), tag="v1")
    done = await _prefetch(mirror, "v1", "v2", other, "v1")
    assert done.ok
    assert list(map(str, done.images)) == ["docker.io/library/app:v1", "docker.io/library/app:v2", str(other)]
    assert set(_gets(registry).values()) == {1}
    assert (done.fetched.count, done.here.count) == (3 + 3 + 2, 0)
    assert done.fetched.bytes == 400_000 + sum(
        moved.size for warmed in done.images.values() for moved in warmed.blobs.values() if moved.role is not Role.LAYER
    )


async def test_blobs_share_the_slots(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """However many images and layers, no more blobs are under way than allowed."""
    for number in range(3):
        registry.add_image(
            _APP.name, f"v{number}", [noise(1000, number * 10 + n) for n in range(5)], config=b"%d" % number
        )
    most = 0

    def look(_image: Image, _progress: BlobProgress) -> None:
        nonlocal most
        most = max(most, len(mirror.app.shared.flights.active()))

    assert (await _prefetch(mirror, "v0", "v1", "v2", blobs_at_once=2, report=look)).ok
    assert 1 <= most <= 2


# ------------------------------------------------------------------------------------------------------- referrers


def _add_referrer(registry: FakeRegistry, subject: Digest, what: bytes, tag: str | None = None) -> Digest:
    kind, content = OCI_MANIFEST, registry.manifest(_APP.name, subject)
    told = {"mediaType": kind, "digest": str(subject), "size": len(content)}
    return registry.add_image(_APP.name, tag, [what], config=what + b" config", subject=told, artifactType="test/x")


@pytest.mark.parametrize("api", [True, False])
async def test_referrers(registry: FakeRegistry, mirror: LiveMirror, api: bool) -> None:
    """Of the index and of each chosen manifest, and what refers to these: by the API, or by the fallback tag where
    upstream has none. They are listed and served afterwards without upstream.
    """
    registry.referrers = api
    made = _add_platforms(registry)
    root = next(iter((await _prefetch(mirror, "v1", platforms="linux/amd64")).images.values())).root
    assert root
    signature = _add_referrer(registry, root, b"signature of the index")
    sbom = _add_referrer(registry, made["amd64"], b"sbom of amd64")
    signed = _add_referrer(registry, sbom, b"signature of the sbom")
    unwanted = _add_referrer(registry, made["arm64"], b"sbom of arm64")
    if not api:
        for subject, referrer in ((root, signature), (made["amd64"], sbom), (sbom, signed), (made["arm64"], unwanted)):
            _add_index(registry, f"sha256-{subject.hex}", [(referrer, {})])
    done = await _prefetch(mirror, "v1", platforms="linux/amd64", referrers=True)
    assert done.ok, done.failures
    moved = next(iter(done.images.values())).blobs
    assert {digest for digest in (signature, sbom, signed, unwanted) if digest in moved} == {signature, sbom, signed}

    mirror.clock.forward(100)
    for kind in ("referrers", "manifests", "blobs"):
        registry.fail(kind, status(503), times=1000)
    listed = await mirror.ask(f"/v2/{_APP.name}/referrers/{made['amd64']}")
    assert [one["digest"] for one in listed.json["manifests"]] == [str(sbom)]
    for digest in (signature, sbom, signed):
        await _expect_offline(registry, mirror, digest)
        for kind in ("referrers", "manifests", "blobs"):
            registry.fail(kind, status(503), times=1000)
    registry.heal()


async def test_cosign_tags(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Existing tags are fetched; missing ones are no failure."""
    made = _add_platforms(registry)
    index = await _prefetch(mirror, "v1", platforms="linux/amd64")
    root = next(iter(index.images.values())).root
    assert root
    registry.add_image(_APP.name, f"sha256-{root.hex}.sig", [b"signature"], config=b"1")
    registry.add_image(_APP.name, f"sha256-{made['amd64'].hex}.att", [b"attestation"], config=b"2")
    registry.add_image(_APP.name, f"sha256-{made['arm64'].hex}.sbom", [b"unwanted"], config=b"3")
    done = await _prefetch(mirror, "v1", platforms="linux/amd64", referrers=True)
    assert done.ok, done.failures
    assert str(Digest.of(b"unwanted")) not in _gets(registry)
    await _expect_offline(registry, mirror, f"sha256-{root.hex}.sig")
    await _expect_offline(registry, mirror, f"sha256-{made['amd64'].hex}.att")


async def test_without_referrers(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """They are not requested, neither by the API nor by tag."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    await _prefetch(mirror, "v1")
    assert not registry.count("referrers")
    assert registry.count("manifests") == 2


async def test_attestations_in_the_index(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Attestations for a chosen platform are fetched with the referrers, and only then."""
    wanted = registry.add_image(_APP.name, None, [b"a"], config=_config(_AMD64))
    other = registry.add_image(_APP.name, None, [b"b"], config=_config(_ARM64))
    unknown = {"os": "unknown", "architecture": "unknown"}
    attested, unwanted = (
        registry.add_image(_APP.name, None, [b"attestation of " + str(one).encode()], config=str(one).encode())
        for one in (wanted, other)
    )
    _add_index(
        registry,
        "v1",
        [
            (wanted, {"platform": _AMD64}),
            (other, {"platform": _ARM64}),
            (attested, {"platform": unknown, "annotations": {"vnd.docker.reference.digest": str(wanted)}}),
            (unwanted, {"platform": unknown, "annotations": {"vnd.docker.reference.digest": str(other)}}),
        ],
    )
    plain = await _prefetch(mirror, "v1", platforms="linux/amd64")
    assert plain.ok
    assert attested not in next(iter(plain.images.values())).blobs
    done = await _prefetch(mirror, "v1", platforms="linux/amd64", referrers=True)
    assert done.ok
    moved = next(iter(done.images.values())).blobs
    assert attested in moved
    assert unwanted not in moved


async def test_referrers_that_cannot_be_listed(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """That is a failure, and the image itself is here and reported as such."""
    root = registry.add_image(_APP.name, "v1", [b"layer"])
    registry.fail("referrers", status(500), times=10)
    done = await _prefetch(mirror, "v1", referrers=True)
    assert not done.ok
    assert done.fetched.count == 3
    [reason] = _reasons(done)
    assert reason.startswith(f"the referrers of {root} could not be listed: ")


async def test_referrers_without_end(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """If a registry invents a referrer for every referrer, the mirror stops after some levels."""
    subject = registry.add_image(_APP.name, "v1", [b"layer"])
    for level in range(30):
        subject = _add_referrer(registry, subject, b"level %d" % level)
    done = await _prefetch(mirror, "v1", referrers=True)
    assert [reason.partition(":")[0] for reason in _reasons(done)] == ["not followed"]
    assert registry.count("referrers") < 15


# -------------------------------------------------------------------------------------------------------- failures


async def test_an_unknown_image(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """It fails with a reason; the others are fetched."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    done = await _prefetch(mirror, "nope", "v1")
    assert not done.ok
    assert [str(failure) for failure in done.failures] == [
        "docker.io/library/app:nope: docker.io/library/app has no tag nope"
    ]
    await _expect_offline(registry, mirror, "v1")


async def test_a_layer_that_upstream_has_lost(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """The rest of the image is fetched, the failure names the layer, and once upstream has it again only it is
    fetched.
    """
    layers = [noise(1000, 1), noise(1000, 2)]
    registry.add_image(_APP.name, "v1", layers)
    lost = Digest.of(layers[1])
    del registry.repository(_APP.name).blobs[lost]
    done = await _prefetch(mirror, "v1")
    [failure] = done.failures
    assert failure.digest == lost
    assert failure.reason == f"docker.io/library/app has no blob {lost}"
    assert done.fetched.count == 3

    registry.add_blob(_APP.name, layers[1])
    registry.forget()
    mirror.clock.forward(11)
    again = await _prefetch(mirror, "v1")
    assert again.ok
    assert (again.fetched.count, again.fetched.bytes, again.here.count) == (1, 1000, 3)
    assert _gets(registry) == {str(lost): 1}


async def test_a_child_of_an_index_that_is_gone(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Its manifest is the failure; the other platform is here."""
    made = _add_platforms(registry)
    del registry.repository(_APP.name).manifests[made["arm64"]]
    done = await _prefetch(mirror, "v1")
    assert [failure.digest for failure in done.failures] == [made["arm64"]]
    await _expect_offline(registry, mirror, made["amd64"])


async def test_an_interrupted_blob_is_gone_on_with(registry: FakeRegistry, tmp_path: Path) -> None:
    """Ended in mid-blob, what has come stays; the next one asks upstream for the rest alone."""
    layer = noise(1 << 20, 7)
    registry.add_image(_APP.name, "v1", [layer])
    gate = Stall()
    registry.fail("blobs", _only(Digest.of(layer), stall(gate, after=1 << 19)), times=2)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        task = asyncio.create_task(_prefetch(mirror, "v1"))
        await reached(gate)
        partial = mirror.app.storage.layout.ingest(Digest.of(layer), "docker.io")
        await until(lambda: partial.exists() and partial.stat().st_size == 1 << 19)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.release()
    registry.heal()
    registry.forget()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        done = await _prefetch(mirror, "v1")
        assert done.ok
    asked = [request.start for request in registry.of_kind("blobs", "GET") if str(Digest.of(layer)) in request.path]
    assert asked == [1 << 19]


def _only(digest: Digest, fault: Any) -> Any:
    """The fault, for one blob alone."""

    def chosen(request: Request, answer: Any) -> Any:
        return fault(request, answer) if str(digest) in request.path else answer(request)

    return chosen


async def test_a_body_that_breaks_off_is_resumed_at_once(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Like a client's pull: upstream's trouble in mid-body is no failure."""
    registry.add_image(_APP.name, "v1", [noise(1 << 20, 3)])
    registry.fail("blobs", cut(1000), times=2)
    assert (await _prefetch(mirror, "v1")).ok


async def test_upstream_is_down_or_throttles(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """What was never here fails with upstream's reason; what is here is told as it was, and is no failure."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    assert (await _prefetch(mirror, "v1")).ok
    mirror.clock.forward(1000)
    registry.fail("manifests", status(503), times=20)
    done = await _prefetch(mirror, "v1", "v2")
    assert [str(image) for image in done.stale] == ["docker.io/library/app:v1"]
    assert [str(failure.image) for failure in done.failures] == ["docker.io/library/app:v2"]
    assert "503" in _reasons(done)[0]
    registry.heal()
    registry.fail("manifests", throttle(3600))
    assert "429" in _reasons(await _prefetch(mirror, "v3"))[0]


@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
async def test_an_upstream_that_asks_for_a_little_patience(
    registry: FakeRegistry, mirror: LiveMirror, kind: str
) -> None:
    """The prefetch waits as long as upstream asks, and then fetches everything; but it does not wait for ever."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    registry.fail(kind, throttle(7), times=2)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        mirror.clock.forward(seconds)

    done = await _prefetch(mirror, "v1", referrers=True, blobs_at_once=1, sleep=sleep)
    assert done.ok, done.failures
    assert slept
    assert max(slept) <= 7.001
    assert mirror.events("upstream throttled")[0]["upstream"] == "docker.io"
    mirror.clock.forward(1000)
    registry.fail(kind, throttle(7), times=100)
    registry.add_image(_APP.name, "v2", [b"another"], config=b"2")
    # requests that wait for the same upstream fail in any order
    reasons = _reasons(await _prefetch(mirror, "v2", referrers=True, blobs_at_once=1, sleep=sleep))
    assert any("429" in reason for reason in reasons)


async def test_a_bug_costs_one_image(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is told as a failure of that image; the others come."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    made = mirror.app.router.guarded

    def source_for(repo: Repo) -> Any:
        if repo.name == "broken":
            raise RuntimeError("on purpose")
        return made(repo)

    seen: list[str] = []
    monkeypatch.setattr("mirror.telemetry.log.exception", lambda event, **_: seen.append(event), raising=False)
    images = [Image(Repo("docker.io", "broken"), tag="v1"), Image(_APP, tag="v1")]
    done = await prefetch(source_for, images)
    assert [failure.reason for failure in done.failures] == ["unexpected: RuntimeError"]
    assert done.images[images[1]].ok
    assert seen == ["prefetch crashed"]


# -------------------------------------------------------------------------------------------------- what must stay


async def test_content_that_only_memory_has_is_written_again(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A manifest that was evicted under a running server, or a tag's record that is gone, is on the disk again."""
    root = registry.add_image(_APP.name, "v1", [b"layer"])
    await _prefetch(mirror, "v1")
    mirror.blob_file(root).unlink()
    mirror.app.storage.catalog.drop_tag(_APP, "v1")
    mirror.app.storage.catalog.drop_manifest(_APP, root)
    assert (await _prefetch(mirror, "v1")).ok
    assert mirror.blob_file(root).exists()
    record = mirror.app.storage.catalog.get_tag(_APP, "v1")
    assert record
    assert record.digest == root
    assert mirror.app.storage.catalog.get_manifest(_APP, root)


async def test_a_disk_that_does_not_sync(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would take away again is told as a failure."""
    registry.add_image(_APP.name, "v1", [b"layer"])

    def refuse() -> None:
        raise StoreError("on purpose")

    monkeypatch.setattr(mirror.app.storage.catalog, "flush", refuse)
    assert _reasons(await _prefetch(mirror, "v1")) == ["here, but not safely on the disk: on purpose"]


async def test_content_that_is_evicted_at_once(
    registry: FakeRegistry, mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evicted, purged or removed in the very moment: that is not said to be a store that cannot take it."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    filler, layer = mirror.app.shared.flights._filler, Digest.of(b"layer")
    published = filler._published

    async def remove(info: BlobInfo, flight: Flight) -> None:
        if info.digest == layer:
            mirror.app.storage.store.delete(layer)
        await published(info, flight)

    monkeypatch.setattr(filler, "_published", remove)
    done = await _prefetch(mirror, "v1")
    assert [(lost.digest, lost.reason) for lost in done.failures] == [
        (layer, f"dropped again as soon as it was stored: {layer}")
    ]


async def test_a_store_that_is_too_small(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was dropped again to make room for later images is a failure, for it is not here."""
    for number in range(6):
        registry.add_image(_APP.name, f"v{number}", [noise(400_000, number)], config=b"%d" % number)
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, store={"capacity": "1MB"}) as mirror:
        await mirror.rebuilt()
        done = await _prefetch(mirror, *(f"v{number}" for number in range(6)), images_at_once=1)
        assert not done.ok
        lost = [failure.digest for failure in done.failures if failure.reason.startswith("dropped again")]
        assert lost
        for warmed in done.images.values():
            for digest in warmed.of(State.FETCHED):
                assert mirror.blob_file(digest).exists()


async def test_a_blob_larger_than_the_store(registry: FakeRegistry, tmp_path: Path) -> None:
    """It passes through for clients; here that is a failure. The store is not said to be failing for it."""
    layer = noise(2_000_000)
    registry.add_image(_APP.name, "v1", [layer])
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, store={"capacity": "1MB"}) as mirror:
        done = await _prefetch(mirror, "v1")
        # small ones may have to go while room for it is looked for; that is told, too
        [reason] = [one.reason for one in done.failures if one.digest == Digest.of(layer)]
        assert "the store cannot take" in reason
        assert "2 MB is more than the capacity of the store, 1 MB" in reason
        assert (await mirror.ask(f"/v2/{_APP.name}/blobs/{Digest.of(layer)}")).body == layer
        assert len(mirror.events("blob larger than store")) == 2
        assert not mirror.events("store failed")


async def test_a_client_pulls_meanwhile(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Both follow the one download."""
    layer = noise(1 << 20, 9)
    registry.add_image(_APP.name, "v1", [layer])
    gate = Stall()
    registry.fail("blobs", _only(Digest.of(layer), stall(gate, after=1000)), times=2)
    task = asyncio.create_task(_prefetch(mirror, "v1"))
    await reached(gate)
    client = asyncio.create_task(mirror.ask(f"/v2/{_APP.name}/blobs/{Digest.of(layer)}"))
    await until(lambda: any(flight.followers == 2 for flight in mirror.app.shared.flights.active()))
    gate.release()
    assert "collapsed" in (await client).cache
    assert (await task).ok
    assert _gets(registry)[str(Digest.of(layer))] == 1


@pytest.mark.parametrize("publishes", [True, False])
async def test_another_process_has_filled_it(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publishes: bool
) -> None:
    """What it has filled is here once it is published, not before; if it never comes to that, we publish it. Upstream
    is asked once either way.
    """
    layer = noise(1 << 20, 11)
    registry.add_image(_APP.name, "v1", [layer], config=b"1")
    commit, committing, go = LocalIngest.commit, threading.Event(), threading.Event()

    def slow(ingest: LocalIngest) -> BlobInfo:
        if ingest.digest == Digest.of(layer) and not committing.is_set():
            committing.set()
            go.wait(60)
            if not publishes:
                raise StoreError("on purpose")
        return commit(ingest)

    monkeypatch.setattr(LocalIngest, "commit", slow)
    upstreams = {"docker.io": registry.url}
    whole = asyncio.Event()

    def look(_image: Image, progress: BlobProgress) -> None:
        if progress.digest == Digest.of(layer) and progress.received == len(layer):
            whole.set()

    async with (
        live_mirror(tmp_path / "store", upstreams) as filler,
        live_mirror(tmp_path / "store", upstreams) as other,
    ):
        first = asyncio.create_task(_prefetch(filler, "v1"))
        assert await asyncio.to_thread(committing.wait, 60)
        second = asyncio.create_task(_prefetch(other, "v1", report=look))
        await whole.wait()
        assert not other.blob_file(Digest.of(layer)).exists()
        assert not second.done()
        go.set()
        assert (await second).ok
        assert (await first).ok or not publishes
        assert other.blob_file(Digest.of(layer)).read_bytes() == layer
    assert _gets(registry)[str(Digest.of(layer))] == 1


# ----------------------------------------------------------------------------------------------------------- rules


async def test_forbidden_images_are_not_prefetched(registry: FakeRegistry, tmp_path: Path) -> None:
    """Rules about content apply as for clients: the image fails with their reason, and no layer is fetched."""
    denied = registry.add_image(_APP.name, "denied", [b"denied"], config=b"1")
    registry.add_image(_APP.name, "large", [noise(100_000)], config=b"2")
    registry.add_image(_APP.name, "fine", [b"fine"], config=b"3")
    rules: dict[str, Any] = {
        "content": {"deny": [f"{_APP}@{denied}"]},
        "route": [{"match": "**", "max_size": "50kB"}],
    }
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **rules) as mirror:
        done = await _prefetch(mirror, "denied", "large", "fine", referrers=True)
        assert {failure.image.tag for failure in done.failures} == {"denied", "large"}
        assert set(_gets(registry)) == {str(Digest.of(b"fine")), str(Digest.of(b"3"))}


async def test_only_digests_may_be_pulled(registry: FakeRegistry, tmp_path: Path) -> None:
    """If a rule requires digests, a tag fails; cosign's tags, which no client could pull, are skipped."""
    root = registry.add_image(_APP.name, "v1", [b"layer"])
    route = [{"match": "**", "require_digest": True}]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert not (await _prefetch(mirror, "v1")).ok
        assert (await _prefetch(mirror, root, referrers=True)).ok


async def test_a_sealed_repository(registry: FakeRegistry, tmp_path: Path) -> None:
    """Nothing is fetched: what is here is told as that, what is missing fails, also where memory still has it."""
    root = registry.add_image(_APP.name, "v1", [b"layer", b"more"])
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams) as mirror:
        assert (await _prefetch(mirror, "v1")).ok
    registry.forget()
    async with live_mirror(tmp_path / "store", upstreams, offline=True) as mirror:
        done = await _prefetch(mirror, "v1", referrers=True)
        assert (done.ok, done.here.count, done.fetched.count) == (True, 4, 0), done.failures
        assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 200
        mirror.blob_file(Digest.of(b"more")).unlink()
        assert [failure.digest for failure in (await _prefetch(mirror, "v1")).failures] == [Digest.of(b"more")]
        mirror.blob_file(root).unlink()
        assert "is not here any more" in _reasons(await _prefetch(mirror, "v1"))[0]
    assert not registry.requests


async def test_a_frozen_tag(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """The frozen digest is fetched, and upstream's last answer for the tag is not overwritten."""
    first = registry.add_image(_APP.name, "v1", [b"first"], config=b"1")
    await _prefetch(mirror, "v1")
    second = registry.add_image(_APP.name, "v1", [b"second"], config=b"2")
    mirror.clock.forward(1000)
    await _prefetch(mirror, "v1")
    size = len(registry.manifest(_APP.name, first))
    mirror.app.storage.freezes.put(Freeze(_APP, "v1", first, OCI_MANIFEST, size, "", mirror.clock()))
    mirror.clock.forward(10)
    mirror.app.storage.catalog.drop_manifest(_APP, first)
    done = await _prefetch(mirror, "v1")
    assert [warmed.root for warmed in done.images.values()] == [first]
    assert done.ok
    assert mirror.app.storage.catalog.get_manifest(_APP, first)
    record = mirror.app.storage.catalog.get_tag(_APP, "v1")
    assert record
    assert record.digest == second


# ---------------------------------------------------------------------------------------------------- what is told


async def test_progress(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Each blob is known before it moves, grows, and ends once; the numbers are bytes."""
    layer = noise(10 << 20, 4)
    registry.add_image(_APP.name, "v1", [layer])
    seen: list[BlobProgress] = []
    await _prefetch(mirror, "v1", report=lambda image, progress: seen.append(progress))
    mine = [progress for progress in seen if progress.digest == Digest.of(layer)]
    assert mine[0] == BlobProgress(Digest.of(layer), Role.LAYER, 0, len(layer))
    assert mine[-1] == BlobProgress(Digest.of(layer), Role.LAYER, len(layer), len(layer), State.FETCHED)
    assert [progress.received for progress in mine] == sorted(progress.received for progress in mine)
    assert sum(progress.state is not None for progress in mine) == 1
    assert {progress.role for progress in seen} == {Role.MANIFEST, Role.CONFIG, Role.LAYER}


async def test_as_json(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """For programs: by image and in total, failures with digest and reason."""
    root = registry.add_image(_APP.name, "v1", [b"layer", b"lost"])
    del registry.repository(_APP.name).blobs[Digest.of(b"lost")]
    done = await _prefetch(mirror, "v1", "nope")
    told = json.loads(json.dumps(done.to_json()))
    size = len(registry.manifest(_APP.name, root)) + len(b"layer") + len(b"{}")
    assert told == {
        "ok": False,
        "new": {"count": 3, "bytes": size},
        "here": {"count": 0, "bytes": 0},
        "images": [
            {
                "image": "docker.io/library/app:v1",
                "digest": str(root),
                "ok": False,
                "stale": False,
                "new": {"count": 3, "bytes": size},
                "here": {"count": 0, "bytes": 0},
                "failures": [
                    {
                        "digest": str(Digest.of(b"lost")),
                        "reason": f"docker.io/library/app has no blob {Digest.of(b'lost')}",
                    }
                ],
            },
            {
                "image": "docker.io/library/app:nope",
                "digest": None,
                "ok": False,
                "stale": False,
                "new": {"count": 0, "bytes": 0},
                "here": {"count": 0, "bytes": 0},
                "failures": [{"digest": None, "reason": "docker.io/library/app has no tag nope"}],
            },
        ],
    }


async def test_no_images(mirror: LiveMirror) -> None:
    """Nothing to do, and no failure."""
    done = await _prefetch(mirror)
    assert done.ok
    assert done.to_json()["images"] == []


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (b"{}", {}),
        (_config(_AMD64), _AMD64),
        (
            b'{"os": "linux", "architecture": "arm", "variant": "v7"}',
            {"os": "linux", "architecture": "arm", "variant": "v7"},
        ),
        (b'{"os": 1, "architecture": ""}', {}),
    ],
)
def test_the_platform_of_a_config(config: bytes, says: dict[str, str]) -> None:
    """Only strings count."""
    assert platform_of(config) == says
