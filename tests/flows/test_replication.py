"""Replication rules of a mirror: to another mirror, to docker-registry, and to a registry that fails on demand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import RuleUnknown
from mirror.oci.attachments import signature_tag
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.image_tree import read_tree
from mirror.replication.rule_run import RunReport, RunWanted
from mirror.upstream.credentials.source import GivenCredentials
from mirror.upstream.registry_writer import RegistryWriter
from tests.support.command import mirror as command
from tests.support.live_mirror import LiveMirror, noise
from tests.support.push_client import PushClient, descriptor, hosting_mirror, index
from tests.support.push_target import Exchange, PushTarget, answers, cut, throttled
from tests.support.registry_process import RegistryProcess
from tests.support.registry_upstream import endpoint

_LAYER = noise(1_000_000, 21)
#: In a mirror, the name of a hosted registry stands before the names of its repositories.
_BELOW = {"": "corp/"}
_RULE = {"name": "to-b", "from": "corp/team/**", "to": "b.example.com"}


@asynccontextmanager
async def _site(root: Path, to: str, **rule: Any) -> AsyncIterator[LiveMirror]:
    """A mirror with a rule to a registry at this URL."""
    upstreams = {"docker.io": "http://127.0.0.1:9", "b.example.com": {"url": to, "push": True}}
    async with hosting_mirror(root, upstreams=upstreams, replication=[{**_RULE, **rule}]) as mirror:
        yield mirror


@pytest.fixture
async def mirror(tmp_path: Path, target: PushTarget) -> AsyncIterator[LiveMirror]:
    """A mirror with a rule to it."""
    async with _site(tmp_path, target.url) as running:
        yield running


async def _run(mirror: LiveMirror, name: str = "to-b", **wanted: Any) -> RunReport:
    return await mirror.app.replication.replications.run_rule(name, ProgressMeter(), RunWanted(**wanted), by="hand")


async def _tick(mirror: LiveMirror) -> None:
    """One look of the scheduler, and the end of what it began."""
    await mirror.app.replication.tick()
    await mirror.app.replication.idle()


async def _status(mirror: LiveMirror) -> dict[str, Any]:
    [status] = await mirror.app.replication.replications.status()
    return dict(status)


async def test_a_push_is_replicated_within_a_look(mirror: LiveMirror, target: PushTarget) -> None:
    """The first look compares everything; each later one only what has changed since."""
    client = PushClient(mirror, "corp/team/app")
    await client.push_image("v1", _LAYER)
    await PushClient(mirror, "corp/other/app").push_image("v1", b"not of the rule")
    await _tick(mirror)
    assert target.repository("team/app").tags["v1"] == Digest.of((await client.manifest("v1")).body)
    assert list(target._repositories) == ["team/app"]
    asked = len(target.asked)
    await _tick(mirror)
    assert len(target.asked) == asked
    image = await client.push_image("v2", _LAYER, b"more")
    await _tick(mirror)
    assert target.repository("team/app").tags["v2"] == Digest.of(image)
    assert not [one for one in target.asked[asked:] if one.path.endswith("/v1")]
    status = await _status(mirror)
    assert (status["state"], status["started_by"], status["result"]["put"]) == ("ok", "push", 1)


async def test_a_signature_that_follows(mirror: LiveMirror, target: PushTarget) -> None:
    """A referrer, and a tag of cosign's, are noticed although the tag has not moved."""
    client = PushClient(mirror, "corp/team/app")
    image = await client.push_image("v1", _LAYER)
    await _tick(mirror)
    subject = descriptor(image, "application/vnd.oci.image.manifest.v1+json")
    artifact = await client.make_image(b"an SBOM", artifactType="application/vnd.sbom", subject=subject)
    await client.put(artifact, Digest.of(artifact))
    await _tick(mirror)
    assert Digest.of(artifact) in target.repository("team/app").manifests
    for content in (b"first", b"second"):
        signature = await client.push_image(signature_tag(Digest.of(image)), content)
        await _tick(mirror)
        assert target.repository("team/app").tags[signature_tag(Digest.of(image))] == Digest.of(signature)
    # one that fails at first, of the child of an index, and of a referrer
    child = await client.make_image(b"of a platform")
    await client.put(child, Digest.of(child))
    await client.put(index(child), "v2")
    await _tick(mirror)
    for subject_of in (child, artifact):
        subject = descriptor(subject_of, "application/vnd.oci.image.manifest.v1+json")
        late = await client.make_image(b"late", artifactType="application/vnd.late", subject=subject)
        await client.put(late, Digest.of(late))
        target.fail("manifest", answers(400, "MANIFEST_INVALID"))
        await _tick(mirror)
        assert Digest.of(late) not in target.repository("team/app").manifests
        mirror.clock.forward(1000)
        await _tick(mirror)
        assert Digest.of(late) in target.repository("team/app").manifests


async def test_a_push_makes_no_other_tag_be_read(mirror: LiveMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tags a repository has: only what was pushed is read again."""
    client = PushClient(mirror, "corp/team/app")
    for number in range(5):
        await client.push_image(f"v{number}", str(number).encode())
    await _tick(mirror)
    read: list[Any] = []

    async def counted(source: Any, reference: Any, **more: Any) -> Any:
        read.append(reference)
        return await read_tree(source, reference, **more)

    monkeypatch.setattr("mirror.replication.rule_run.read_tree", counted)
    image = await client.push_image("v5", b"new")
    await _tick(mirror)
    assert read == [Digest.of(image)]


async def test_conflicts_are_reported_and_left_alone(tmp_path: Path, target: PushTarget) -> None:
    """What somebody else put there is not touched, unless the rule says so."""
    other = Digest.of(b"another")
    target.repository("team/app").manifests[other] = "application/vnd.oci.image.manifest.v1+json", b"another"
    target.repository("team/app").tags["v1"] = other
    async with _site(tmp_path, target.url) as mirror:
        client = PushClient(mirror, "corp/team/app")
        await client.push_image("v1", _LAYER)
        await client.push_image("v2", _LAYER)
        report = await _run(mirror)
        assert report.ok
        assert len(report.conflicts) == 1
        assert target.repository("team/app").tags["v1"] == other
        assert "v2" in target.repository("team/app").tags
        assert (await _status(mirror))["result"]["conflict_count"] == 1
    async with _site(tmp_path, target.url, overwrite=True) as mirror:
        report = await _run(mirror, dry_run=True)
        assert [step.value for step, tags in report.steps.items() if tags] == ["same", "move"]
        assert target.repository("team/app").tags["v1"] == other
        await _run(mirror)
        assert target.repository("team/app").tags["v1"] != other
        # moved there since: the rule has nothing newer to say
        target.repository("team/app").tags["v1"] = other
        assert len((await _run(mirror)).conflicts) == 1


async def test_deletions(tmp_path: Path, target: PushTarget) -> None:
    """Only where asked for, only what the rule put there, and only if somebody deleted it here."""
    for deletes, gone in (("never", False), ("callers", True)):
        target._repositories.clear()
        async with _site(tmp_path / deletes, target.url, deletes=deletes) as mirror:
            client = PushClient(mirror, "corp/team/app")
            for number in range(3):
                await client.push_image(f"v{number}", _LAYER, str(number).encode())
            await _run(mirror)
            digest = target.repository("team/app").tags["v1"]
            await client.ask("DELETE", "/v2/corp/team/app/manifests/v0")
            await client.ask("DELETE", f"/v2/corp/team/app/manifests/{digest}")
            # lost, and not deleted
            mirror.app.storage.catalog.drop_tag(
                mirror.app.router.resolve("corp/team/app", host=None, ns=None).repo, "v2"
            )
            await _tick(mirror)
            assert set(target.repository("team/app").tags) == ({"v2"} if gone else {"v0", "v1", "v2"})


async def test_many_deletions_wait_for_a_person(tmp_path: Path, target: PushTarget) -> None:
    """A repository that loses more than fifty tags is kept there until somebody says that this is right."""
    async with _site(tmp_path, target.url, deletes="all") as mirror:
        client = PushClient(mirror, "corp/team/app")
        image = await client.push_image("v0", b"small")
        for number in range(6):
            await client.put(image, "v0", tags=[f"v{number}-{each}" for each in range(9)])
        await _run(mirror)
        assert len(target.repository("team/app").tags) == 55
        await client.ask("DELETE", f"/v2/corp/team/app/manifests/{Digest.of(image)}")
        report = await _run(mirror)
        assert (report.held_back, report.ok) == (55, True)
        assert len(target.repository("team/app").tags) == 55
        assert (await _status(mirror))["result"]["held_back"] == 55
        await _run(mirror, yes=True)
        assert not target.repository("team/app").tags


async def test_what_was_deleted_there_stays_deleted(mirror: LiveMirror, target: PushTarget) -> None:
    """Until the tag moves here, or somebody asks for it again."""
    client = PushClient(mirror, "corp/team/app")
    await client.push_image("v1", _LAYER)
    await _run(mirror)
    del target.repository("team/app").tags["v1"]
    report = await _run(mirror)
    assert report.to_json()["deleted_there"] == ["corp/team/app:v1"]
    assert "v1" not in target.repository("team/app").tags
    await _run(mirror, again=True)
    assert "v1" in target.repository("team/app").tags
    del target.repository("team/app").tags["v1"]
    await client.push_image("v1", b"newer")
    await _run(mirror)
    assert "v1" in target.repository("team/app").tags


async def test_146_faults_of_the_other_side(mirror: LiveMirror, target: PushTarget) -> None:
    """A connection that breaks, 401, 429 and 500: the run ends well or fails, and the next one goes on."""
    client = PushClient(mirror, "corp/team/app")
    image = await client.push_image("v1", _LAYER)
    writer = mirror.app.replication.replications.named("to-b")._writer_for("b.example.com")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        mirror.clock.forward(seconds)

    writer.clocks.sleep, writer.clocks.monotonic = sleep, mirror.clock  # type: ignore[attr-defined]
    target.tokens = True
    target.fail("patch", cut(300_000))

    def expired(exchange: Exchange, usual: Callable[[], bool]) -> bool:
        target.expire_tokens()
        return usual()

    target.fail("patch", expired)
    target.fail("commit", throttled(9))
    target.fail("manifest", answers(500), 20)
    report = await _run(mirror)
    assert not report.ok
    assert 9 in slept
    assert target.repository("team/app").blobs[Digest.of(_LAYER)] == _LAYER
    assert not target.repository("team/app").tags
    status = await _status(mirror)
    assert (status["state"], status["consecutive_failures"]) == ("failed", 1)
    target._faults.clear()
    patches = len(target.of_kind("patch"))
    assert (await _run(mirror)).ok
    assert len(target.of_kind("patch")) == patches
    assert target.repository("team/app").tags["v1"] == Digest.of(image)


async def test_147_a_failure_is_tried_again_after_a_growing_wait(mirror: LiveMirror, target: PushTarget) -> None:
    """What concerns one tag alone ends nothing else."""
    client = PushClient(mirror, "corp/team/app")
    await client.push_image("v1", b"one")
    await client.push_image("v2", b"two")
    target.fail("manifest", answers(400, "MANIFEST_INVALID"))
    await _tick(mirror)
    assert list(target.repository("team/app").tags) == ["v2"]
    asked = len(target.asked)
    await _tick(mirror)
    assert len(target.asked) == asked
    mirror.clock.forward(20)
    await _tick(mirror)
    assert set(target.repository("team/app").tags) == {"v1", "v2"}
    assert (await _status(mirror))["state"] == "ok"


async def test_147_a_registry_that_is_down(tmp_path: Path) -> None:
    """Pushes are answered as ever; the rule says why nothing is sent, and waits before it tries again."""
    async with _site(tmp_path, "http://127.0.0.1:9") as mirror:
        client = PushClient(mirror, "corp/team/app")
        await client.push_image("v1", b"one")
        await _tick(mirror)
        status = await _status(mirror)
        assert (status["state"], status["consecutive_failures"]) == ("failed", 1)
        assert "b.example.com" in status["result"]["error"]
        await client.push_image("v2", b"two")
        await _tick(mirror)
        assert (await _status(mirror))["consecutive_failures"] == 1
        mirror.clock.forward(1000)
        await _tick(mirror)
        assert (await _status(mirror))["consecutive_failures"] == 2


async def test_149_a_tag_that_cannot_be_read_is_no_deletion(tmp_path: Path, target: PushTarget) -> None:
    """It is a failure of that tag, and nothing is deleted there."""
    async with _site(tmp_path, target.url, deletes="all") as mirror:
        client = PushClient(mirror, "corp/team/app")
        await client.push_image("v1", b"one")
        await _run(mirror)
        [record] = [file for file in (mirror.root / "repositories").rglob("_tags/*") if file.name.startswith("v1")]
        record.write_bytes(b"{")
        report = await _run(mirror)
        assert len(report.failures) == 1
        assert "v1" in target.repository("team/app").tags


async def test_the_rule_says_what_goes_where(tmp_path: Path, target: PushTarget) -> None:
    """Names, tags and referrers as configured."""
    rename = {"team/": "site-a/team-"}
    async with _site(tmp_path, target.url, rename=rename, tags=["v*"], referrers=False) as mirror:
        client = PushClient(mirror, "corp/team/app")
        image = await client.push_image("v1", b"one")
        await client.push_image("dev", b"two")
        await client.push_image(signature_tag(Digest.of(image)), b"a signature")
        await _run(mirror)
        assert {name: set(it.tags) for name, it in target._repositories.items() if it.tags} == {
            "site-a/team-app": {"v1"}
        }
        with pytest.raises(RuleUnknown):
            await _run(mirror, "another")


async def test_150_two_mirrors_that_replicate_to_each_other_end(tmp_path: Path) -> None:
    """Equal digests are no change; a deletion does not come back; a tag that both moved stays as it is on each side."""
    other_rule = {"name": "to-a", "from": "corp/team/**", "to": "a.example.com", "deletes": "callers", "rename": _BELOW}
    address: dict[str, Any] = {"url": "http://127.0.0.1:9", "push": True}
    upstreams = {"docker.io": "http://127.0.0.1:9", "a.example.com": address}
    async with (
        hosting_mirror(tmp_path / "b", upstreams=upstreams, replication=[other_rule]) as b,
        _site(tmp_path / "a", f"http://127.0.0.1:{b.port}", deletes="callers", rename=_BELOW) as a,
    ):
        back = _writer_to(a, b)
        b.app.replication.replications.named("to-a")._writer_for = lambda name: back
        here, there = PushClient(a, "corp/team/app"), PushClient(b, "corp/team/app")
        image = await here.push_image("v1", _LAYER)
        await _rest(a, b)
        assert (await there.manifest("v1")).body == image
        newer = await there.push_image("v1", b"newer")
        await _rest(a, b)
        assert (await here.manifest("v1")).body == newer
        await here.ask("DELETE", "/v2/corp/team/app/manifests/v1")
        await _rest(a, b)
        assert (await here.manifest("v1")).status == 404
        one, two = await here.push_image("v2", b"here"), await there.push_image("v2", b"there")
        await _rest(a, b)
        assert ((await here.manifest("v2")).body, (await there.manifest("v2")).body) == (one, two)
        await back.aclose()


def _writer_to(mirror: LiveMirror, of: LiveMirror) -> RegistryWriter:
    """A writer to a mirror whose port was not known when the settings of the other one were written."""
    return RegistryWriter(
        endpoint("a.example.com", f"http://127.0.0.1:{mirror.port}"),
        executor=of.app.shared.executor,
        credentials=GivenCredentials(),
    )


async def _rest(*mirrors: LiveMirror) -> None:
    """Let both sites look until neither writes anything. The number of looks is bounded."""
    repo = Repo("corp", "team/app")
    for _ in range(6):
        before = [mirror.app.storage.hosted.records.changes(repo) for mirror in mirrors]
        for mirror in mirrors:
            mirror.clock.forward(1000)
            await _tick(mirror)
        if [mirror.app.storage.hosted.records.changes(repo) for mirror in mirrors] == before:
            return
    raise AssertionError("they do not come to rest")


async def test_to_docker_registry(tmp_path: Path) -> None:
    """It has all tags and blobs then, and is found the same at the next comparison."""
    with RegistryProcess(tmp_path / "registry") as registry:
        async with _site(tmp_path / "a", registry.url, deletes="callers") as mirror:
            client = PushClient(mirror, "corp/team/app")
            await client.push_image("v1", _LAYER)
            await client.push_image("v2", _LAYER, b"more")
            assert (await _run(mirror)).ok
            since = len(registry.requests())
            report = await _run(mirror)
            assert not report.changed
            assert {one.method for one in registry.requests()[since:]} == {"HEAD"}
            await client.ask("DELETE", "/v2/corp/team/app/manifests/v1")
            report = await _run(mirror)
            # it cannot delete a tag alone, and is not asked to delete the manifest with all its tags
            assert len(report.conflicts) == 1 or report.changed


def test_settings_are_checked(tmp_path: Path) -> None:
    """Each mistake is named, with its place."""
    (tmp_path / "mirror.toml").write_text(
        f"""
[store]
root = {json.dumps(str(tmp_path / "store"))}
[[hosted]]
name = "corp"
keep_deleted = "0s"
[[upstream]]
name = "docker.io"
[[upstream]]
name = "b.example.com"
push = true
[[replication]]
name = "one"
from = "corp/**"
to = "docker.io"
[[replication]]
name = "one"
from = "other/**"
to = "nowhere.example.com"
"""
    )
    done = command("check", "--config", tmp_path / "mirror.toml")
    assert done.status == 2
    for mistake in (
        "replication[1].to: the upstream docker.io does not say push = true",
        "replication[2]: one is already the name of replication[1]",
        "replication[2].from: other/** does not begin with the name of a hosted registry",
        "replication[2].to: nowhere.example.com is no upstream",
    ):
        assert mistake in done.err, done.err
    text = (tmp_path / "mirror.toml").read_text().partition("[[replication]]")[0]
    rule = '[[replication]]\nname = "one"\nfrom = "corp/**"\nto = "b.example.com"\noverwrite = true\ndeletes = "all"\n'
    (tmp_path / "mirror.toml").write_text(text + rule)
    done = command("check", "--config", tmp_path / "mirror.toml")
    assert done.status == 0
    assert "not_moved_by" in done.err
    assert "keep_deleted = 0" in done.err
