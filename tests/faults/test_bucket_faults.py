"""Rows 113 to 124: a whole mirror whose bucket, or the way there, breaks in each way.

The bucket is SeaweedFS's, with the mirror's requests going through a proxy that causes the fault. After each fault the
bucket is well again, and everything that was acknowledged has to be there, on a new disk as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.conftest import Tally
from tests.support.bucket_site import HOSTED, BucketSite
from tests.support.engines.fault_proxy import (
    Answer,
    CutAnswer,
    CutRequest,
    FaultProxy,
    FlippedAnswer,
    LostAnswer,
    Meanwhile,
    Reset,
    Silence,
    SlowAnswer,
    StaleListing,
    StalledAnswer,
    StoreCall,
)
from tests.support.engines.radosgw import RadosGateway
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.faketime import FakeTime
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import eventually
from tests.support.site_client import Said

#: Bounds that a test can wait for; a busy machine needs most of them for what is well.
_SHORT: Final[dict[str, Any]] = {"connect_timeout": 2, "read_timeout": 3, "timeout": 5, "retries": 1}

_LAYER: Final = noise(300_000, seed=113)
#: Larger than a part of an upload.
_LARGE: Final = noise(20 << 20, seed=118)


def _later(question: Callable[[], Said], status: int) -> Said:
    """The answer with this status, once the mirror has noticed that the bucket is well again."""

    def asked() -> Said | None:
        answer = question()
        assert answer.status in (status, 503), answer
        return answer if answer.status == status else None

    return eventually(asked, f"the mirror answers {status}")


def _in_the_bucket(site: BucketSite, content: bytes) -> list[str]:
    """The keys of the bytes of a blob; returns once there are some."""
    return eventually(lambda: site.keys(sha256(content).partition(":")[2]) or None, "the blob is in the bucket")


def _lose_disk(site: BucketSite) -> None:
    """Returns once the new disk knows which records the bucket has."""
    site.lose_disk()
    site.mirror.wait_for_event("bucket records listed")


def _put(part: str) -> Callable[[StoreCall], bool]:
    """Writes of objects whose key has this in it."""
    return lambda call: call.method == "PUT" and part in call.target


def _reads_bytes(content: bytes) -> Callable[[StoreCall], bool]:
    """Reads of the bytes of a blob, hosted or cached."""
    named = sha256(content).partition(":")[2]
    return lambda call: (
        call.method == "GET" and named in call.target and ("/hosted/" in call.target or "/cache/" in call.target)
    )


def test_113_the_bucket_is_down(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 113: hits and upstream go on, hosted ones among them; whatever would change something gets 503 with
    Retry-After, and nothing of it is there afterwards.
    """
    for name in ("warm", "cold"):
        registry.add_image(f"library/{name}", "v1", [noise(100_000, seed=len(name))], config=name.encode())
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, **_SHORT) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        site.pull("corp/app", "v1")
        site.pull("library/warm", "v1")
        before = site.keys()
        site.proxy.cause(Reset())
        for _ in range(3):
            assert site.pull("corp/app", "v1") == manifest
            site.pull("library/warm", "v1")
        site.pull("library/cold", "v1")
        for refused in (
            site.push_blob("corp/app", noise(1000, seed=1)),
            site.put_manifest("corp/app", "v2", manifest),
            site.ask("DELETE", "/v2/corp/app/manifests/v1"),
            site.ask("DELETE", f"/v2/corp/app/manifests/{sha256(manifest)}"),
        ):
            assert refused.status == 503, refused
            assert int(refused.headers["Retry-After"]) >= 1
        site.proxy.heal()
        assert site.keys() == before
        _later(lambda: site.manifest("corp/app", "v2"), 404)
        assert site.pull("corp/app", "v1") == manifest
        _later(lambda: site.put_manifest("corp/app", "v2", manifest), 201)
        site.lose_disk()
        assert site.pull("corp/app", "v1") == site.pull("corp/app", "v2") == manifest


def test_113_a_start_without_the_bucket(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 113: a mirror starts all the same; it serves what it has, and takes pushes once the bucket is back."""
    registry.add_image("library/app", "v1", [_LAYER])
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, **_SHORT) as site:
        manifest = site.push("corp/app", "v1", noise(5000, seed=2))
        site.pull("library/app", "v1")
        site.stop()
        site.proxy.cause(Reset())
        site.start()
        site.pull("library/app", "v1")
        assert site.push_blob("corp/app", noise(1000, seed=1)).status == 503
        site.proxy.heal()
        _later(lambda: site.push_blob("corp/app", noise(1000, seed=1)), 201)
        _later(lambda: site.manifest("corp/app", "v1"), 200)
        assert site.pull("corp/app", "v1") == manifest


def test_114_the_bucket_is_slow(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 114: what upstream has comes from there after a bounded wait; for what only the bucket has, the client is
    told to come again.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, cache=True, **_SHORT) as site:
        hosted = noise(200_000, seed=114)
        site.push("corp/app", "v1", hosted)
        site.pull("library/app", "v1")
        _in_the_bucket(site, _LAYER)
        _lose_disk(site)
        site.proxy.cause(Silence())
        assert site.pull("library/app", "v1")
        answer = site.blob("corp/app", hosted)
        assert answer.status == 503, answer
        assert int(answer.headers["Retry-After"]) >= 1
        site.proxy.heal()
        assert _later(lambda: site.blob("corp/app", hosted), 200).body == hosted
        site.lose_disk()
        site.proxy.cause(SlowAnswer(400_000))
        assert _later(lambda: site.blob("corp/app", hosted), 200).body == hosted


def test_115_credentials_become_wrong_and_right_again(
    seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Row 115: the log names what is refused, and has no secret; no pull fails that need not. The right ones are found
    in their file without a restart.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    right = str(seaweedfs.access.settings["secret_key"])
    secret = tmp_path / "secret"
    secret.write_text(right)
    settings = {"secret_key": None, "secret_key_file": str(secret), **_SHORT}
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, **settings) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        secret.write_text("canary-5e1f")
        refused = eventually(
            lambda: answer if (answer := site.push_blob("corp/app", noise(1000, seed=1))).status == 503 else None,
            "the new secret is in use",
        )
        assert site.pull("corp/app", "v1") == manifest
        site.pull("library/app", "v1")
        line = site.mirror.wait_for_event("bucket refuses")
        assert "SignatureDoesNotMatch" in line["reason"]
        assert "canary" not in json.dumps(site.mirror.log) + refused.message
        secret.write_text(right)
        _later(lambda: site.put_manifest("corp/app", "v2", manifest), 201)
        site.mirror.wait_for_event("bucket no longer refuses")


def test_115_credentials_are_wrong_at_the_start(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 115: a mirror starts with them, says so, and gives what needs no bucket."""
    registry.add_image("library/app", "v1", [_LAYER])
    manifest = str(registry.add_image("library/other", "v1", [_LAYER]))
    settings = {"secret_key": "canary-5e1f", **_SHORT}
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, **settings) as site:
        assert site.manifest("library/other", manifest).status == 200
        assert site.blob("library/other", _LAYER).body == _LAYER
        refused = site.push_blob("corp/app", _LAYER)
        assert refused.status == 503, refused
        site.mirror.wait_for_event("bucket not probed")
        assert "canary" not in json.dumps(site.mirror.log) + refused.message


def test_115_credentials_expire(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 115: the store refuses an old token until there is a new one; what is here is served meanwhile."""
    with BucketSite(tmp_path, seaweedfs, **_SHORT) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        site.proxy.cause(Answer(400, "ExpiredToken"))
        for _ in range(3):
            assert site.pull("corp/app", "v1") == manifest
            assert site.push_blob("corp/app", noise(1000, seed=1)).status == 503
        site.proxy.heal()
        _later(lambda: site.put_manifest("corp/app", "v2", manifest), 201)


def test_116_the_bucket_throttles(seaweedfs: SeaweedFS, tmp_path: Path, tally: Tally) -> None:
    """Row 116: the mirror waits as long as it is told, and the push succeeds, or its client is told to wait."""
    with BucketSite(tmp_path, seaweedfs) as site:
        site.push("corp/app", "v1", _LAYER)
        site.proxy.cause(Answer(503, "SlowDown", {"Retry-After": "1"}), times=6)
        _later(lambda: site.push_blob("corp/app", noise(1000, seed=3)), 201)
        manifest = site.push("corp/app", "v2", noise(1000, seed=3))
        site.lose_disk()
        site.proxy.cause(Answer(503, "SlowDown", {"Retry-After": "1"}), times=3)
        _later(lambda: site.manifest("corp/app", "v2"), 200)
        assert site.pull("corp/app", "v2") == manifest
        tally(throttled=site.proxy.happened[Answer])


@pytest.mark.parametrize("fault", [CutAnswer(2_500_000), StalledAnswer(2_500_000)], ids=["cut", "stalled"])
def test_117_hosted_bytes_are_cut(seaweedfs: SeaweedFS, tmp_path: Path, fault: CutAnswer | StalledAnswer) -> None:
    """Row 117: the read goes on by Range at the byte where it broke, and the client notices nothing."""
    layer = noise(8 << 20, seed=117)
    with BucketSite(tmp_path, seaweedfs, **_SHORT) as site:
        site.push("corp/app", "v1", layer)
        site.lose_disk()
        site.proxy.cause(fault, times=2, where=_reads_bytes(layer))
        assert site.blob("corp/app", layer).body == layer
        assert site.proxy.happened[type(fault)] == 2
        asked = [call for call in site.proxy.calls if _reads_bytes(layer)(call)]
        assert [call for call in asked if "range" in call.headers], asked


def test_117_cached_bytes_are_cut(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 117: upstream gives the rest of what the bucket does not."""
    registry.add_image("library/app", "v1", [_LAYER])
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, cache=True, **_SHORT) as site:
        site.pull("library/app", "v1")
        _in_the_bucket(site, _LAYER)
        site.lose_disk()
        site.proxy.cause(CutAnswer(after=100_000), where=_reads_bytes(_LAYER))
        site.pull("library/app", "v1")


@pytest.mark.parametrize("where", ["partNumber=1&", "partNumber=2&", "uploadId="], ids=["first", "second", "any"])
def test_118_an_upload_is_cut_once(seaweedfs: SeaweedFS, tmp_path: Path, where: str) -> None:
    """Row 118: a part whose connection breaks is sent again, and the push succeeds."""
    with BucketSite(tmp_path, seaweedfs) as site:
        site.proxy.cause(CutRequest(after=1_000_000), times=1, where=_put(where))
        assert site.push_blob("corp/app", _LARGE).status == 201
        assert site.proxy.happened == {CutRequest: 1}
        assert site.unfinished_uploads() == []
        site.lose_disk()
        assert site.blob("corp/app", _LARGE).body == _LARGE


@pytest.mark.parametrize("last", [False, True], ids=["parts", "end"])
def test_118_an_upload_cannot_end(seaweedfs: SeaweedFS, tmp_path: Path, last: bool) -> None:
    """Row 118: nothing is visible of an upload whose parts, or whose end, do not arrive, and nothing is left to pay
    for.
    """
    with BucketSite(tmp_path, seaweedfs, **_SHORT) as site:
        if last:
            site.proxy.cause(Reset(), where=lambda call: call.method == "POST" and "uploadId=" in call.target)
        else:
            site.proxy.cause(CutRequest(after=1_000_000), where=_put("uploadId="))
        assert site.push_blob("corp/app", _LARGE).status == 503
        assert site.keys("hosted/") == site.keys("states/") == []
        assert site.blob("corp/app", _LARGE).status == 404
        site.proxy.heal()
        assert site.unfinished_uploads() == []
        _later(lambda: site.push_blob("corp/app", _LARGE), 201)


def test_119_the_bucket_has_wrong_bytes(seaweedfs: SeaweedFS, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 119: wrong hosted bytes are never served whole; they are damage, which a push repairs. Wrong cached bytes are
    fetched again.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    with BucketSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, cache=True) as site:
        hosted = noise(200_000, seed=119)
        manifest = site.push("corp/app", "v1", hosted)
        site.pull("library/app", "v1")
        [mine] = [key for key in _in_the_bucket(site, hosted) if key.startswith("hosted/")]
        [theirs] = [key for key in _in_the_bucket(site, _LAYER) if key.startswith("cache/")]
        for key, content in ((mine, hosted), (theirs, _LAYER)):
            assert site.object(key) == content
            site.put_object(key, content[:-1] + bytes([content[-1] ^ 1]))
        site.lose_disk()
        # who was sent the beginning of wrong bytes sees the connection break, and comes again
        with suppress(OSError):
            site.pull("library/app", "v1")
        site.pull("library/app", "v1")
        for _ in range(3):
            try:
                answer = site.blob("corp/app", hosted)
            except OSError:
                continue
            assert answer.status in (404, 503), answer
        assert eventually(lambda: site.blob("corp/app", hosted).status == 404, "it is damage")
        site.mirror.wait_for_event("hosted blob lost in the bucket")
        assert site.push_blob("corp/app", hosted).status == 201
        site.lose_disk()
        assert site.pull("corp/app", "v1") == manifest


def test_119_bytes_are_flipped_on_the_way(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 119: what a broken network makes of good bytes is no damage of the store."""
    with BucketSite(tmp_path, seaweedfs) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        site.lose_disk()
        site.proxy.cause(FlippedAnswer(), times=1, where=_reads_bytes(_LAYER))
        try:
            answer = site.blob("corp/app", _LAYER)
            assert (answer.status, answer.body == _LAYER) in ((200, True), (503, False)), answer
        except OSError:
            pass
        assert site.pull("corp/app", "v1") == manifest
        assert site.proxy.happened == {FlippedAnswer: 1}


def test_120_a_hosted_object_is_gone(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 120: 404, told as damage; the next push repairs it."""
    with BucketSite(tmp_path, seaweedfs) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        [key] = [key for key in _in_the_bucket(site, _LAYER) if key.startswith("hosted/")]
        # while it runs, its sweep may find first that the object is gone
        site.lose_disk(meanwhile=lambda: site.delete_object(key))
        eventually(lambda: site.blob("corp/app", _LAYER).status == 404, "it is damage")
        site.mirror.wait_for_event("hosted blob lost in the bucket")
        assert site.push_blob("corp/app", _LAYER).status == 201
        assert site.pull("corp/app", "v1") == manifest


def test_121_another_writer_is_first(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 121: a tag that changes between look and write is looked at again; no update is lost."""
    with BucketSite(tmp_path, seaweedfs) as site:
        first = site.push("corp/app", "v1", _LAYER)
        second = site.push("corp/app", "v2", _LAYER)
        [tag] = site.keys("_tags/v1")
        [other] = site.keys("_tags/v2")
        theirs = json.loads(site.object(other) or b"")
        theirs |= {"tag": "v1"} if "tag" in theirs else {}
        meanwhile = Meanwhile(lambda: site.put_object(tag, json.dumps(theirs).encode()))
        site.proxy.cause(meanwhile, times=1, where=_put("_tags/v1"))
        third = site.push("corp/app", "v1", noise(1000, seed=121))
        assert site.proxy.happened == {Meanwhile: 1}
        assert site.pull("corp/app", "v1") == third
        assert first != second != third
        site.lose_disk()
        assert site.pull("corp/app", "v1") == third
        assert site.pull("corp/app", "v2") == second


@pytest.mark.parametrize("part", ["hosted/", "states/", "_tags/", "_manifests/", "repositories/", "names/"])
def test_122_the_answer_of_a_write_is_lost(seaweedfs: SeaweedFS, tmp_path: Path, part: str) -> None:
    """Row 122: the writer finds that the object is its own, and the push succeeds at the first try."""
    with BucketSite(tmp_path, seaweedfs) as site:
        site.proxy.cause(LostAnswer(), times=2, where=_put(part))
        manifest = site.push("corp/app", "v1", _LAYER)
        assert site.proxy.happened[LostAnswer] >= 1
        site.proxy.heal()
        assert site.pull("corp/app", "v1") == manifest
        site.lose_disk()
        assert site.pull("corp/app", "v1") == manifest


def _rounds(site: BucketSite) -> int:
    """How many rounds of collection have ended with everything looked at."""
    return sum(line.get("event") == "collection ended" and line["complete"] for line in site.mirror.log)


def test_123_listings_are_stale(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 123: collection, which lists, takes nothing that is in use, although listings lack what was written last; and
    what is deleted goes once they have caught up.
    """
    hosted = HOSTED.replace('name = "corp"', 'name = "corp"\n    keep_deleted = "0s"')
    more = f'{hosted}\n[hosting]\ngrace = "0s"\ncollect_every = "10ms"\n'
    with BucketSite(tmp_path, seaweedfs, more=more) as site:
        site.proxy.cause(StaleListing("repositories/"), where=lambda call: call.lists)
        manifests = {tag: site.push("corp/app", tag, noise(5000, seed=number)) for number, tag in enumerate("abc")}
        rounds = _rounds(site)
        eventually(lambda: _rounds(site) > rounds + 3, "collection has looked again, from the beginning to the end")
        site.proxy.heal()
        for tag, manifest in manifests.items():
            assert site.pull("corp/app", tag) == manifest
        site.lose_disk()
        for tag, manifest in manifests.items():
            assert site.pull("corp/app", tag) == manifest
            assert site.ask("DELETE", f"/v2/corp/app/manifests/{sha256(manifest)}").status == 202
        eventually(lambda: not site.keys("hosted/"), "all bytes are collected")


def test_124_the_clock_is_wrong(radosgw: RadosGateway, tmp_path: Path) -> None:
    """Row 124: a store that refuses the mirror's clock is told apart from wrong keys, and nothing is collected early by
    a clock that is ahead.
    """
    clock = FakeTime(tmp_path)
    with BucketSite(tmp_path, radosgw, env=clock.environment) as site:
        manifest = site.push("corp/app", "v1", _LAYER)
        site.pull("corp/app", "v1")
        clock.set(2)
        refused = site.push_blob("corp/app", noise(1000, seed=1))
        assert refused.status == 503, refused
        assert site.pull("corp/app", "v1") == manifest
        clock.set(0)
        _later(lambda: site.push_blob("corp/app", noise(1000, seed=1)), 201)
        assert site.pull("corp/app", "v1") == manifest


def test_the_proxy_is_on_the_way(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Without a fault, what the other tests do works."""
    with BucketSite(tmp_path, seaweedfs) as site:
        manifest = site.push("corp/app", "v1", _LAYER, _LARGE)
        assert site.pull("corp/app", "v1") == manifest
        site.lose_disk(kill=True)
        assert site.pull("corp/app", "v1") == manifest
        assert isinstance(site.proxy, FaultProxy)
        assert site.proxy.calls
