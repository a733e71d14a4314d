"""Traces, as a collector has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirror import telemetry
from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from tests.support.collector import Collector, Received
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_cluster import in_order, live_cluster
from tests.support.live_mirror import live_mirror, noise
from tests.support.mirror_process import MirrorProcess, write_config

_LAYER = noise(1 << 20)
_MANIFEST = "/v2/library/app/manifests/v1"
_BLOB = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def _parent(flags: str) -> dict[str, str]:
    return {"traceparent": f"00-{_TRACE}-{_PARENT}-{flags}"}


def _trace(collector: Collector, sample: float = 1.0) -> dict[str, Any]:
    return {"trace": {"endpoint": collector.url, "sample_ratio": sample}}


def _below(collector: Collector, span: Received) -> list[str]:
    """The names of its children."""
    return sorted(one.name for one in collector.spans if one.parent == span.span)


async def test_a_cold_pull(tmp_path: Path) -> None:
    """The request is the root; tag, manifest, flight and what they ask of upstream are below it, in one trace each."""
    with Collector() as collector, FakeRegistry(tokens=True) as registry:
        registry.add_image("library/app", "v1", [_LAYER])
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **_trace(collector)) as mirror:
            assert (await mirror.ask(_MANIFEST)).status == 200
            assert (await mirror.ask(_BLOB)).body == _LAYER
            await mirror.idle()
            assert (await mirror.ask("/metrics")).status == 200
            registry_saw = [dict(request.headers) for request in registry.requests]
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "mirror"
    manifest, blob = collector.named("request")
    assert (manifest.kind, manifest.parent, manifest.failed) == ("SERVER", "", None)
    assert manifest.attributes["url.path"] == _MANIFEST
    assert manifest.attributes["http.response.status_code"] == 200
    assert manifest.attributes["mirror.cache"] == blob.attributes["mirror.cache"] == "miss"
    assert _below(collector, manifest) == ["manifest", "tag"]
    [tag] = collector.named("tag")
    assert "upstream resolve" in _below(collector, tag)
    assert "upstream token" in _below(collector, tag)
    assert _below(collector, blob) == ["flight"]
    [flight] = collector.named("flight")
    assert flight.attributes["mirror.digest"] == str(Digest.of(_LAYER))
    assert {"fill", "upstream blob"} <= set(_below(collector, flight))
    asked = [one for one in collector.spans if one.name.startswith("upstream")]
    assert {one.kind for one in asked} == {"CLIENT"}
    assert {one.trace for one in collector.spans} == {manifest.trace, blob.trace}
    # upstream is a foreign host: it learns nothing of it
    assert registry_saw
    assert not [one for one in registry_saw if {name.lower() for name in one} & {"traceparent", "tracestate"}]
    assert telemetry.span("after") is telemetry.span("the end")


async def test_a_clients_trace_is_continued(registry: FakeRegistry, tmp_path: Path) -> None:
    """Its sampled flag decides, whatever part of the others is traced."""
    registry.add_image("library/app", "v1", [_LAYER])
    with Collector() as collector:
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **_trace(collector, 0)) as mirror:
            await mirror.ask(_MANIFEST)
            await mirror.ask(_MANIFEST, headers=_parent("00"))
            await mirror.ask(_MANIFEST, headers=_parent("01"))
            await mirror.ask(_MANIFEST, headers={"traceparent": "nonsense"})
    [request] = collector.spans
    assert (request.trace, request.parent) == (_TRACE, _PARENT)
    # a hit out of memory has nothing below it
    assert request.attributes["mirror.cache"] == "hit"


async def test_a_trace_goes_on_at_another_replica(registry: FakeRegistry, tmp_path: Path) -> None:
    """A blob that another replica fetches is in the trace of the client that wants it; upstream sees nothing of it."""
    registry.add_image("library/app", "v1", [_LAYER])
    with Collector() as collector:
        async with live_cluster(tmp_path, {"docker.io": registry.url}, 2, **_trace(collector)) as replicas:
            owner, other = in_order(replicas, "docker.io", Digest.of(_LAYER))
            assert (await other.mirror.ask(_BLOB)).body == _LAYER
            await owner.mirror.idle()
            await other.mirror.idle()
    asked, passed_on = sorted(collector.named("request"), key=lambda span: len(span.parent))
    [peer_blob] = collector.named("peer blob")
    assert (asked.parent, peer_blob.kind, passed_on.parent) == ("", "CLIENT", peer_blob.span)
    assert passed_on.attributes["mirror.peer"] == other.address
    assert {one.trace for one in collector.spans} == {asked.trace}
    assert "flight" in _below(collector, passed_on)
    saw = [name.lower() for request in registry.requests for name in dict(request.headers)]
    assert saw
    assert "traceparent" not in saw


async def test_failures_are_traced_without_secrets(registry: FakeRegistry, tmp_path: Path) -> None:
    """What failed is marked with the error's name; queries and credentials of the request are nowhere."""
    registry.fail("manifests", status(502), times=100)
    headers = {"Authorization": "Bearer geheimgeheim", "Cookie": "geheim=geheim"}
    with Collector() as collector:
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **_trace(collector)) as mirror:
            assert (await mirror.ask(f"{_MANIFEST}?key=geheim", headers=headers)).status >= 500
    [request] = collector.named("request")
    assert request.failed is not None
    assert str(request.attributes["mirror.error"]).startswith("UpstreamUnavailable")
    [tag] = collector.named("tag")
    assert str(tag.failed).startswith("UpstreamUnavailable: ")
    assert b"geheim" not in collector.raw


@pytest.mark.parametrize("answer", [400, 503])
async def test_a_collector_that_fails(answer: int, registry: FakeRegistry, tmp_path: Path) -> None:
    """Clients notice nothing; it is said once."""
    digest = registry.add_image("library/app", "v1", [_LAYER])
    with Collector(answer) as collector:
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **_trace(collector)) as mirror:
            got = await mirror.ask(_MANIFEST)
            assert got.headers["Docker-Content-Digest"] == str(digest)
    assert len(mirror.events("traces cannot be sent")) == 1
    assert collector.paths


async def test_evicting_is_traced(registry: FakeRegistry, tmp_path: Path) -> None:
    """A pull that must wait for room shows it."""
    for name in ("one", "two"):
        registry.add_image(f"library/{name}", "v1", [noise(1 << 20, seed=len(name) + ord(name[0]))])
    store = {"capacity": "1500kB", "high_water": 1.0, "low_water": 0.9}
    with Collector() as collector:
        async with live_mirror(
            tmp_path / "store", {"docker.io": registry.url}, store=store, **_trace(collector)
        ) as mirror:
            await mirror.rebuilt()
            for name in ("one", "two"):
                digest = Digest.of(noise(1 << 20, seed=len(name) + ord(name[0])))
                await mirror.ask(f"/v2/library/{name}/manifests/v1")
                await mirror.ask(f"/v2/library/{name}/blobs/{digest}")
                await mirror.idle()
    dropped = [one for one in collector.named("evict") if one.attributes["mirror.blobs"]]
    assert dropped
    flights = {one.span for one in collector.named("flight")}
    assert {one.parent for one in dropped} <= flights | {""}


def test_workers_send_what_is_left_when_they_stop(registry: FakeRegistry, tmp_path: Path) -> None:
    """Each of several processes sends its own spans, the last ones before it ends."""
    registry.add_image("library/app", "v1", [_LAYER])
    with Collector() as collector:
        more = f'[trace]\nendpoint = "{collector.url}/v1/traces"\nsample_ratio = 1.0'
        with MirrorProcess(write_config(tmp_path, {"docker.io": registry.url}, more=more)) as mirror:
            for _ in range(8):
                assert mirror.get(_MANIFEST)[0] == 200
            assert mirror.stop() == 0
    assert len(collector.named("request")) == 8
    workers = {str(one["service.instance.id"]).rpartition("-")[2] for one in collector.resources}
    assert workers <= {str(entry["worker"]) for entry in mirror.log if entry["event"] == "worker started"}


def test_a_bad_endpoint_is_refused(tmp_path: Path) -> None:
    """By `mirror check` and everything else, with the setting's name."""
    path = tmp_path / "mirror.toml"
    for endpoint in ("collector:4317", "grpc://collector", "http://me:secret@collector"):
        path.write_text(f'[trace]\nendpoint = "{endpoint}"\n')
        with pytest.raises(ConfigError, match=r"trace\.endpoint: "):
            load(path)


def test_nothing_is_loaded_without_it(tmp_path: Path) -> None:
    """The library is imported where tracing is on, and nowhere else; spans are one object that does nothing."""
    program = (
        "import sys, mirror.process.worker, mirror.cli; from mirror import telemetry\n"
        "mirror.cli.every_command()\n"
        "assert telemetry.span('a', b=1) is telemetry.client_span('c')\n"
        "assert telemetry.request_span('GET', '/', {}) is None\n"
        "with telemetry.span('a') as span: span.note(b=1)\n"
        # libraries of ours look for others of OpenTelemetry's themselves
        "unwanted = {'mirror.telemetry.tracing', 'opentelemetry.sdk.trace', 'opentelemetry.exporter'}\n"
        "assert not unwanted & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
