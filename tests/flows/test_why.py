"""`mirror why` beside a running mirror of two workers, after its end, and what its metrics say meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.policy.fills.span_blocks import BLOCK
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.command import mirror as in_process
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import CommandFailed, eventually, run

_LAYER = noise(1 << 18)
_IMAGE = "docker.io/library/app:v1"
_MANIFEST = "/v2/library/app/manifests/v1"


class _Site:
    def __init__(self, config: Path, registry: FakeRegistry) -> None:
        self.config = config
        self.registry = registry
        self.layout = Layout(config.parent / "store")

    def cli(self, command: str, *words: str) -> str:
        return run([sys.executable, "-m", "mirror", command, "--config", self.config, *words]).decode()

    def why(self, what: str) -> dict[str, Any]:
        """Asked within this process, which is another one than the mirror's: some ask until something is known."""
        done = in_process("why", what, "--json", "--config", self.config)
        assert (done.status, done.err) == (0, "")
        [found] = done.json
        assert isinstance(found, dict)
        return found

    def why_when(self, what: str, question: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What is written about once a second is there soon. Each worker writes its own answers when it gets to it: the
        question is about every answer that a test looks at, not only about the last one.
        """
        return eventually(lambda: found if question(found := self.why(what)) else None, f"why {what}")

    def blob(self, content: bytes) -> Path:
        return Path(self.layout.blob(Digest.of(content)))


@pytest.fixture
def site(registry: FakeRegistry, tmp_path: Path) -> _Site:
    """Of two workers; v1 is one layer."""
    registry.add_image("library/app", "v1", [_LAYER])
    return _Site(write_config(tmp_path, {"docker.io": registry.url}), registry)


@pytest.fixture
def mirror(site: _Site) -> Iterator[MirrorProcess]:
    """Running."""
    with MirrorProcess(site.config) as running:
        yield running


def _pull(site: _Site, mirror: MirrorProcess) -> None:
    """Each answer is counted, noted and logged: a client may have the last byte of a blob before that."""
    assert mirror.get(_MANIFEST)[0] == 200
    mirror.wait_for_event("request", path=_MANIFEST)
    for content in (_LAYER, b"{}"):
        blob = f"/v2/library/app/blobs/{Digest.of(content)}"
        assert mirror.get(blob)[2] == content
        mirror.wait_for_event("request", path=blob)
        eventually(site.blob(content).exists, "it is stored")


def _outcomes(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["method"], one["outcome"]) for one in found["answers"]}


def test_of_an_image(site: _Site, mirror: MirrorProcess) -> None:
    """A miss is told as one, then a hit; what is here and what comes next, without a question to upstream."""
    _pull(site, mirror)
    found = site.why_when("app:v1", lambda found: _outcomes(found) == {("GET", "miss")})
    assert (found["image"], found["complete"], found["tags"]) == (_IMAGE, True, ["v1"])
    assert (found["route"]["match"], found["route"]["urls"]) == ("docker.io/**", [site.registry.url])
    assert "docker.io was asked" in found["answers"][0]["why"]
    assert found["answers"][0]["digest"] == found["digest"]
    request = mirror.wait_for_event("request", id=found["answers"][0]["request"])
    assert mirror.requests(path="manifests/v1") == [request]
    assert found["next"][0].startswith("no question to docker.io")
    site.registry.forget()
    assert mirror.get(_MANIFEST)[0] == 200
    assert mirror.get(_MANIFEST, method="HEAD")[0] == 200
    site.why_when("app:v1", lambda found: _outcomes(found) == {("GET", "hit"), ("HEAD", "hit")})
    text = site.cli("why", "app:v1")
    assert "fresh enough" in text
    assert "the next pull:\n  no question to docker.io" in text
    assert not site.registry.requests


def test_after_the_end_and_of_the_next_mirror(site: _Site) -> None:
    """What was answered is still known when the mirror has stopped, and when another one runs and has answered more."""
    with MirrorProcess(site.config) as mirror:
        _pull(site, mirror)
        mirror.stop()
    assert _outcomes(site.why("app:v1")) == {("GET", "miss")}
    with MirrorProcess(site.config) as mirror:
        for _ in range(8):
            assert mirror.get("/v2/library/app/manifests/none")[0] == 404
        site.why_when("app:none", lambda found: bool(found["answers"]))
        mirror.stop()
    assert _outcomes(site.why("app:v1")) == {("GET", "miss")}
    missing = site.why("app:none")
    assert missing["answers"][0]["why"].startswith("not found: ManifestUnknown")
    assert missing["digest"] is None


def test_of_a_digest(site: _Site, mirror: MirrorProcess) -> None:
    """A manifest is found in its repository, a blob with the image that needs it; unknown ones are told as such."""
    _pull(site, mirror)
    image = site.why("app:v1")
    assert site.why(image["digest"])["image"] == f"docker.io/library/app@{image['digest']}"
    layer = str(Digest.of(_LAYER))
    found = site.why_when(layer, lambda found: bool(found["answers"]))
    assert (found["size"], found["images"]) == (len(_LAYER), [_IMAGE])
    assert _outcomes(found) == {("GET", "miss")}
    assert found["next"] == [
        {"repository": "docker.io/library/app", "what": "served from here; docker.io is not asked"}
    ]
    assert site.why(f"app@{layer}")["images"] == [_IMAGE]
    unknown = str(Digest.of(b"never"))
    assert site.why(unknown)["size"] is None
    assert "nothing" in site.cli("why", unknown)
    site.blob(_LAYER).unlink()
    assert site.why(layer)["next"][0]["what"].startswith("GET from docker.io")
    assert "GET of one part that is not here" in site.why("app:v1")["next"][-1]


def test_of_a_part_that_fails(site: _Site, mirror: MirrorProcess) -> None:
    """What is told of an image tells of a layer of it that could not be had, though its tag is a hit; what is told of
    its digest tells of the pulls by tag.
    """
    _pull(site, mirror)
    site.blob(_LAYER).unlink()
    site.registry.fail("blobs", status(502), times=100)
    layer = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"
    assert mirror.get(_MANIFEST)[0] == 200
    assert mirror.get(layer)[0] >= 500

    def all_is_written(found: dict[str, Any]) -> bool:
        parts = {one["reference"]: one["status"] for one in found["parts"]}
        return _outcomes(found) == {("GET", "hit")} and len(parts) == 2 and max(parts.values()) >= 500

    found = site.why_when("app:v1", all_is_written)
    bad = [one for one in found["parts"] if one["status"] >= 400]
    assert [(one["reference"], one["kind"]) for one in bad] == [(str(Digest.of(_LAYER)), "blob")]
    text = site.cli("why", "app:v1")
    assert f"its parts: 1 × status {bad[0]['status']}, 1 × miss" in text
    assert "an error: UpstreamUnavailable" in text
    assert [one["reference"] for one in site.why(found["digest"])["answers"]] == ["v1"]


def test_of_what_must_stay_or_must_not_move(site: _Site, mirror: MirrorProcess) -> None:
    """A freeze and a pin are told, and what the freeze means for the next pull."""
    _pull(site, mirror)
    site.cli("freeze", "app:v1", "--reason", "incident")
    site.cli("pin", "app:v1", "--reason", "ours")
    found = site.why("app:v1")
    assert found["frozen"] == found["digest"]
    assert "ours" in found["pinned"][0]
    assert "the tag is frozen at" in found["next"][0]
    text = site.cli("why", "app:v1")
    assert "(incident)" in text
    assert "pinned" in text


def test_of_a_failure(site: _Site, mirror: MirrorProcess) -> None:
    """An error of upstream is told with what it was, and counted by its name."""
    site.registry.fail("manifests", status(502), times=100)
    assert mirror.get(_MANIFEST)[0] >= 500
    found = site.why_when("app:v1", lambda found: bool(found["answers"]))
    assert found["answers"][0]["why"].startswith("an error: UpstreamUnavailable")
    assert found["next"][0].startswith("HEAD to docker.io, because no answer")
    assert mirror.metrics()['mirror_upstream_errors_total{error="UpstreamUnavailable",upstream="docker.io"}'] >= 1


def test_of_what_is_denied(site: _Site) -> None:
    """Lists of content are looked at before anybody has pulled, without a mirror that runs."""
    site.config.write_text(site.config.read_text() + '[content]\ndeny = ["docker.io/library/app:v1"]\n')
    LocalStore(site.layout)
    assert site.why("app:v1")["next"] == ["refused (403): docker.io/library/app:v1 is denied here by " + _IMAGE]
    assert site.why("app:v2")["next"][0].startswith("HEAD to docker.io")


def test_what_it_refuses(site: _Site) -> None:
    """What is neither an image of a configured registry nor a digest ends with exit status 2."""
    for word in ("A B", "elsewhere.example/app", "sha256:12"):
        with pytest.raises(CommandFailed, match="exit code 2\n"):
            site.cli("why", word)


def test_a_registry_that_is_not_configured(site: _Site) -> None:
    """A pull of that path is one of the default registry, and can be explained under that name."""
    LocalStore(site.layout)
    done = in_process("why", "unknown.example/x:1", "--config", site.config)
    assert done.status == 2
    assert "the registry unknown.example is not configured in this mirror" in done.err
    assert "is given docker.io/unknown.example/x:1" in done.err
    assert site.why("docker.io/unknown.example/x:1")["next"]
    assert "is given" not in in_process("why", "A B", "--config", site.config).err


def test_lazy_ranges_are_said(site: _Site) -> None:
    LocalStore(site.layout)
    assert site.why("app:v1")["route"]["ranges"] == "verified"
    site.config.write_text(site.config.read_text().replace("tag_ttl", 'ranges = "lazy"\ntag_ttl'))
    assert site.why("app:v1")["route"]["ranges"] == "lazy"
    assert "ranges lazy" in in_process("why", "app:v1", "--config", site.config).out


def test_of_unverified_parts(site: _Site) -> None:
    """On a lazy route: what is here of a layer that is missing, of the image and of the layer itself."""
    site.config.write_text(site.config.read_text().replace("tag_ttl", 'ranges = "lazy"\nlazy_share = 1.0\ntag_ttl'))
    layer = noise(4 << 20)
    digest = Digest.of(layer)
    site.registry.add_image("library/app", "v2", [layer])
    with MirrorProcess(site.config) as mirror:
        assert mirror.get("/v2/library/app/manifests/v2")[0] == 200
        part = mirror.get(f"/v2/library/app/blobs/{digest}", {"Range": "bytes=2000000-2000009"})
        assert (part[0], part[2]) == (206, layer[2_000_000:2_000_010])
        for _ in range(2):
            found = site.why(str(digest))
            assert (found["size"], found["growing"], found["unverified_parts"]) == (None, None, BLOCK)
            assert "without the 65.5 kB of it that are here" in found["next"][0]["what"]
            assert site.why("app:v2")["unfinished"] == [
                {"digest": str(digest), "growing": None, "unverified_parts": BLOCK}
            ]
            assert "  a download in progress or interrupted: 65.5 kB in unverified parts of it" in site.cli(
                "why", str(digest)
            )
            assert f"  of {digest}, which is missing: 65.5 kB in unverified parts of it" in site.cli("why", "app:v2")
            # also of a mirror that has stopped
            mirror.stop()


def test_words_that_are_no_text(site: _Site, mirror: MirrorProcess) -> None:
    """Bytes that are not UTF-8, as an old terminal sends them, are refused by name, and nothing is written down."""
    _pull(site, mirror)
    for command in ("pin app:v1 --reason", "freeze app:v1 --reason", "jobs", "why", "show"):
        words = [*command.split(), os.fsdecode(b"gr\xfc\xdfe")]
        with pytest.raises(CommandFailed, match=r"exit code 2\n(?s:.*)gr\\udcfc\\udcdfe") as failed:
            site.cli(*words)
        assert "Traceback" not in str(failed.value)
    assert json.loads(site.cli("pins", "--json")) == json.loads(site.cli("freezes", "--json")) == []


def test_metrics_of_the_workers(site: _Site, mirror: MirrorProcess) -> None:
    """They are of all workers together, and a worker that is killed is no longer counted, its successor is."""
    _pull(site, mirror)
    pids = mirror.wait_for_workers(2)
    eventually(lambda: mirror.metrics()["mirror_workers"] == 2, "both serve")
    counted = mirror.metrics()
    assert counted["mirror_worker_starts_total"] == 2
    assert counted["mirror_loop_lag_seconds_count"] >= 0
    assert counted["mirror_process_resident_bytes"] > 20 << 20
    assert 0 < counted["mirror_process_open_descriptors"] < counted["mirror_process_descriptors_limit"]
    assert counted["mirror_connections"] >= 1
    assert counted["mirror_followers"] == counted["mirror_read_ahead_manifests"] == 0
    assert [value for name, value in counted.items() if name.startswith("mirror_build_info")] == [1.0]
    mirror.kill_worker(pids[0])

    def replaced() -> bool:
        now = mirror.metrics()
        return (now["mirror_worker_starts_total"], now["mirror_workers"]) == (3, 2)

    eventually(replaced, "it was replaced")


def test_metrics_of_workers_that_are_gone(site: _Site, mirror: MirrorProcess) -> None:
    """However many are killed, nothing that was counted is lost or counted twice at any scrape, and no files stay."""
    _pull(site, mirror)
    [folder] = site.config.parent.glob("mirror-metrics-*")
    requests = 3
    # a blob is counted after it was sent
    eventually(lambda: _total(mirror, "mirror_requests_total") == requests, "each is counted")
    for number in range(3):
        eventually(lambda: mirror.metrics()["mirror_workers"] == 2, "both serve")
        victim = mirror.wait_for_workers(2)[0]
        mirror.kill_worker(victim)

        def replaced(starts: int = 3 + number, victim: int = victim) -> bool:
            assert _total(mirror, "mirror_requests_total") == requests
            gone = not any(file.name.endswith(f"_{victim}.db") for file in folder.iterdir())
            return gone and mirror.metrics()["mirror_worker_starts_total"] == starts

        eventually(replaced, "it was replaced, and its files are added up")
    kinds = {file.name.rpartition("_")[0] for file in folder.glob("*_ended.db")}
    assert kinds == {"counter", "histogram", "gauge_mostrecent"}
    assert mirror.metrics()['mirror_request_seconds_count{cache="miss",kind="blob"}'] == 2


def _total(mirror: MirrorProcess, name: str) -> float:
    return sum(value for sample, value in mirror.metrics().items() if sample.startswith(name))
