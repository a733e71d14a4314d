"""Repositories that lie about what they share with others."""

from __future__ import annotations

import json
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry, html
from tests.support.live_mirror import Clock, LiveMirror, live_mirror, noise

_LAYER = noise(300_000)
_DIGEST = Digest.of(_LAYER)


async def test_a_manifest_that_lies_about_a_size_costs_others_nothing(
    registry: FakeRegistry, mirror: LiveMirror
) -> None:
    """A blob whose bytes are right stays in service, whatever size somebody's manifest gives it."""
    registry.add_image("library/honest", "v1", [_LAYER])
    assert (await mirror.ask("/v2/library/honest/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/honest/blobs/{_DIGEST}")).body == _LAYER
    await mirror.landed(_DIGEST)

    registry.add_blob("library/liar", _LAYER)
    config = registry.add_blob("library/liar", b"{}")
    lie = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2},
        "layers": [{"mediaType": "application/x", "digest": str(_DIGEST), "size": 5}],
    }
    registry.add_manifest("library/liar", json.dumps(lie).encode(), OCI_MANIFEST, "v1")
    assert (await mirror.ask("/v2/library/liar/manifests/v1")).status == 200
    registry.forget()
    for _ in range(3):
        answer = await mirror.ask(f"/v2/library/liar/blobs/{_DIGEST}")
        assert (answer.status, answer.body) == (200, _LAYER)
        answer = await mirror.ask(f"/v2/library/honest/blobs/{_DIGEST}")
        assert (answer.status, answer.body) == (200, _LAYER)
    assert registry.count("blobs") == 0
    assert mirror.events("damaged blob set aside") == []


async def test_asking_for_a_layer_as_a_manifest_harms_nothing(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A client that gives a large layer's digest where a manifest's belongs is told no, and the layer stays cached."""
    layer = noise(5 << 20)
    digest = Digest.of(layer)
    registry.add_image("library/app", "v1", [layer])
    assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/app/blobs/{digest}")).body == layer
    await mirror.landed(digest)
    for name in ("app", "other"):
        assert (await mirror.ask(f"/v2/library/{name}/manifests/{digest}")).status == 404
    assert mirror.blob_file(digest).exists()
    assert mirror.events("damaged blob set aside") == []


async def test_a_foreign_layer_proves_nothing(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Registries do not look whether a repository has a layer with `urls`: naming one gives no right to bytes."""
    registry.add_image("library/private", "v1", [_LAYER])
    assert (await mirror.ask("/v2/library/private/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/private/blobs/{_DIGEST}")).body == _LAYER
    await mirror.landed(_DIGEST)
    config = registry.add_blob("library/thief", b"{}")
    claim = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(config), "size": 2},
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": str(_DIGEST),
                "size": len(_LAYER),
                "urls": ["https://elsewhere.example/layer"],
            }
        ],
    }
    registry.add_manifest("library/thief", json.dumps(claim).encode(), OCI_MANIFEST, "v1")
    assert (await mirror.ask("/v2/library/thief/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/thief/blobs/{_DIGEST}")).status == 404


async def test_a_manifest_of_another_repository_is_fetched(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """That upstream's HEAD names a digest does not give a repository the cached bytes: upstream must give them."""
    digest = registry.add_image("library/private", "v1", [_LAYER])
    assert (await mirror.ask("/v2/library/private/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/thief/manifests/{digest}")).status == 404
    registry.add_image("library/copy", "v1", [_LAYER])
    registry.forget()
    assert (await mirror.ask("/v2/library/copy/manifests/v1")).status == 200
    assert [one.method for one in registry.requests if "/manifests/" in one.target] == ["HEAD", "GET"]


async def test_no_referrers_known_is_not_none_there(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """While upstream is down an empty list would say «no signatures»: that is an error instead."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
    registry.stop()
    assert (await mirror.ask(f"/v2/library/app/referrers/{digest}")).status in (503, 504)


async def test_a_captive_portal_is_no_reason_to_lose_a_tag(registry: FakeRegistry, tmp_path: Path) -> None:
    """Upstream answers 200 with a page of HTML: the tag that is known is served, marked stale."""
    clock = Clock()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, clock=clock) as mirror:
        registry.add_image("library/app", "v1", [_LAYER])
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        clock.forward(3600)
        registry.fail("manifests", html(), times=9)
        answer = await mirror.ask("/v2/library/app/manifests/v1")
        assert (answer.status, "Warning" in answer.headers) == (200, True)


async def test_a_clock_that_was_wrong_keeps_no_tag(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was learnt under a clock a year ahead is asked again once the clock is right (row 43)."""
    clock = Clock()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, clock=clock) as mirror:
        registry.add_image("library/app", "v1", [_LAYER])
        clock.forward(365 * 86400)
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        moved = registry.add_image("library/app", "v1", [_LAYER, b"more"])
        clock.forward(-365 * 86400)
        answer = await mirror.ask("/v2/library/app/manifests/v1")
        assert answer.headers["Docker-Content-Digest"] == str(moved)
