"""Row 132: what happens at one replica is seen by the next request at every other one."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import Tally
from tests.support.cluster_site import ClusterSite, Replica
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import eventually
from tests.support.push_client import image
from tests.support.redis_server import RedisServer
from tests.support.site_client import SiteClient

_CONFIG: Final = b'{"os": "linux", "architecture": "amd64"}'


class _Cluster:
    """Three replicas, and what is done at one of them in turn and looked at from the others."""

    def __init__(self, site: ClusterSite, registry: FakeRegistry) -> None:
        self.site = site
        self.registry = registry
        #: How many answers were compared.
        self.looked = 0
        self._turns = itertools.count()

    def turns(self) -> tuple[Replica, list[Replica]]:
        """The replica whose turn it is to change something, and the others."""
        one = self.site.at(next(self._turns) % len(self.site.replicas))
        return one, [other for other in self.site.replicas if other is not one]

    def expect(self, replica: SiteClient, target: str, status: int, content: bytes | None = None) -> None:
        """The next request there."""
        answer = replica.ask("GET", target)
        assert answer.status == status, (replica, target, answer)
        assert content is None or answer.body == content, (replica, target, answer)
        self.looked += 1

    def expect_tag(self, replica: SiteClient, repository: str, tag: str, manifest: bytes | None) -> None:
        """What a tag names there, and whether it is listed; None: no such tag."""
        status = 200 if manifest is not None else 404
        self.expect(replica, f"/v2/{repository}/manifests/{tag}", status, manifest)
        listed = replica.ask("GET", f"/v2/{repository}/tags/list")
        tags = json.loads(listed.body)["tags"] or [] if listed.status == 200 else []
        assert (tag in tags) == (manifest is not None), (replica, repository, listed)


def _pushes_and_tags(cluster: _Cluster, name: str) -> None:
    """A push, another image under the same tag, and the deletion of the tag."""
    one, others = cluster.turns()
    for other in others:
        # what is remembered as absent, too, has to be looked at again
        cluster.expect_tag(other, name, "v1", None)
    first = one.push(name, "v1", noise(1000, seed=1))
    for other in others:
        assert other.pull(name, "v1") == first
        cluster.expect_tag(other, name, "v1", first)
    one, others = cluster.turns()
    second = one.push(name, "v1", noise(1000, seed=2))
    for other in others:
        cluster.expect_tag(other, name, "v1", second)
        assert other.pull(name, "v1") == second
    one, others = cluster.turns()
    assert one.ask("DELETE", f"/v2/{name}/manifests/v1").status == 202
    for other in others:
        cluster.expect_tag(other, name, "v1", None)
        cluster.expect(other, f"/v2/{name}/manifests/{sha256(second)}", 200, second)


def _blobs(cluster: _Cluster, name: str) -> None:
    """A blob that is pushed at one replica may be named by a manifest, or mounted, at another."""
    one, (second, third) = cluster.turns()
    layer = noise(2000, seed=3)
    for content in (_CONFIG, layer):
        cluster.expect(second, f"/v2/{name}/blobs/{sha256(content)}", 404)
        assert one.push_blob(name, content).status == 201
        cluster.expect(second, f"/v2/{name}/blobs/{sha256(content)}", 200, content)
    assert second.put_manifest(name, "v1", image(_CONFIG, layer)).status == 201
    mounted = f"/v2/{name}/mounted/blobs/uploads/?mount={sha256(layer)}&from={name}"
    assert third.ask("POST", mounted).status == 201
    cluster.expect(one, f"/v2/{name}/mounted/blobs/{sha256(layer)}", 200, layer)


def _deletions(cluster: _Cluster, name: str) -> None:
    """An image is deleted by its digest, and brought back."""
    one, others = cluster.turns()
    manifest = one.push(name, "v1", noise(1000, seed=4))
    target = f"/v2/{name}/manifests/{sha256(manifest)}"
    for other in others:
        cluster.expect(other, target, 200, manifest)
    one, others = cluster.turns()
    assert one.ask("DELETE", target).status == 202
    for other in others:
        cluster.expect(other, target, 404)
        cluster.expect_tag(other, name, "v1", None)
    one, others = cluster.turns()
    one.command("undelete", f"{name}:v1")
    for other in others:
        cluster.expect(other, target, 200, manifest)
        cluster.expect_tag(other, name, "v1", manifest)


def _referrers(cluster: _Cluster, name: str) -> None:
    """A signature that is pushed, and deleted, at another replica than its subject."""
    one, (second, third) = cluster.turns()
    subject = one.push(name, "v1", noise(1000, seed=5))
    descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": len(subject)}
    signature = image(_CONFIG, subject={**descriptor, "digest": sha256(subject)}, artifactType="test/signature")
    assert second.push_blob(name, _CONFIG).status == 201
    target = f"/v2/{name}/referrers/{sha256(subject)}"

    def listed(replica: SiteClient) -> list[str]:
        cluster.looked += 1
        return [each["digest"] for each in json.loads(replica.ask("GET", target).body)["manifests"]]

    assert listed(third) == []
    assert second.put_manifest(name, sha256(signature), signature).status == 201
    assert listed(third) == listed(one) == [sha256(signature)]
    assert third.ask("DELETE", f"/v2/{name}/manifests/{sha256(signature)}").status == 202
    assert listed(one) == listed(second) == []


def _freezes(cluster: _Cluster, name: str) -> None:
    """A tag that is frozen at one replica can be moved at none, until it is unfrozen at any."""
    one, (second, third) = cluster.turns()
    before = one.push(name, "v1", noise(1000, seed=5))
    assert second.pull(name, "v1") == before
    first = one.push(name, "v1", noise(1000, seed=6))
    other = third.push(name, "v2", noise(1000, seed=7))
    # where it is, and not where this replica has seen it last
    second.command("freeze", f"{name}:v1")
    for replica in (one, third):
        assert replica.put_manifest(name, "v1", other).status == 403
        assert replica.ask("DELETE", f"/v2/{name}/manifests/v1").status == 403
        cluster.expect_tag(replica, name, "v1", first)
    third.command("unfreeze", f"{name}:v1")
    assert one.put_manifest(name, "v1", other).status == 201
    cluster.expect_tag(second, name, "v1", other)


def _cached_content(cluster: _Cluster, name: str) -> None:
    """A cached image that is pinned at one replica is purged at none; purged at one, it is gone at all."""
    # no other repository has it
    layer = noise(3000, seed=8) + name.encode()
    repository = f"docker.io/{name.replace('corp/', 'library/')}"
    upstream = repository.partition("/")[2]
    cluster.registry.add_image(upstream, "v1", [layer], config=name.encode())
    one, (second, third) = cluster.turns()
    target = f"/v2/{upstream}/blobs/{sha256(layer)}"

    def downloads() -> int:
        return sum(sha256(layer) in each.path for each in cluster.registry.of_kind("blobs", "GET"))

    for replica in cluster.site.replicas:
        replica.pull(upstream, "v1")
    before = downloads()
    second.command("pin", f"{repository}:v1")
    for replica in (one, third):
        assert "because of the pin" in replica.try_command("purge", f"{repository}:v1").err
        cluster.expect(replica, target, 200, layer)
    assert downloads() == before
    third.command("unpin", f"{repository}:v1")
    purged = one.try_command("purge", f"{repository}:v1")
    if purged.status:
        # a replica that is busy may confirm it later than the command waits
        assert "not confirmed" in purged.err, purged
        stores = [replica.store for replica in cluster.site.replicas]
        blob = f"blobs/*/*/{sha256(layer).removeprefix('sha256:')}"
        eventually(lambda: not any(any(store.glob(blob)) for store in stores), "all have purged it")
    assert second.ask("GET", f"/v2/{upstream}/manifests/v1").status == 200
    cluster.expect(second, target, 200, layer)
    assert downloads() == before + 1, "what was purged at another replica was still there"


def _robots(cluster: _Cluster, name: str) -> None:
    """A robot that is made at one replica may log in at each other one, until it is revoked at any; they know that
    within two seconds.
    """
    one, (second, third) = cluster.turns()
    manifest = one.push(name, "v1", noise(1000, seed=9))
    robot = name.rpartition("/")[2]
    made = second.command("token", "create", robot, "--allow", "pull", f"{name}", "--expires", "never", "--json")
    said = base64.b64encode(f"{robot}:{made.json['secret']}".encode()).decode()
    headers = {"Authorization": f"Basic {said}"}
    target = f"/v2/{name}/manifests/v1"
    for replica in cluster.site.replicas:
        assert replica.ask("GET", target, headers=headers).body == manifest
    third.command("token", "revoke", robot)

    def is_refused(replica: Replica) -> bool:
        status = replica.ask("GET", target, headers=headers).status
        assert status in (200, 401), status
        return status == 401

    for replica in (one, second):
        eventually(partial(is_refused, replica), "the robot is revoked here, too")
        cluster.looked += 1


_ACTS: Final[list[Callable[[_Cluster, str], None]]] = [
    _pushes_and_tags,
    _blobs,
    _deletions,
    _referrers,
    _freezes,
    _cached_content,
    _robots,
]


def _nothing(redis: RedisServer) -> None:
    return None


#: What happens to Redis before; it is started again, empty, for the next of them.
_STATES: Final[dict[str, Callable[[RedisServer], None]]] = {
    "up": _nothing,
    "down": RedisServer.kill,
    "hung": RedisServer.pause,
    "emptied": lambda redis: redis.restart(),
}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, seaweedfs: SeaweedFS, redis: RedisServer) -> Iterator[_Cluster]:
    """With two workers each, since what one of them was told the other has to know."""
    folder = tmp_path_factory.mktemp("replica-reads")
    with FakeRegistry() as registry, _site(folder, seaweedfs, registry, redis) as site:
        yield _Cluster(site, registry)


@contextmanager
def _site(folder: Path, engine: SeaweedFS, registry: FakeRegistry, redis: RedisServer | None) -> Iterator[ClusterSite]:
    with ClusterSite(
        folder,
        engine,
        upstreams={"docker.io": registry.url},
        workers=2,
        cache=True,
        redis=None if redis is None else str(redis.socket),
        # a Redis that hangs costs no more for each question
        index_timeout="250ms",
    ) as site:
        yield site


@pytest.mark.parametrize("act", _ACTS, ids=[act.__name__.strip("_") for act in _ACTS])
@pytest.mark.parametrize("state", [*_STATES])
def test_132_seen_by_the_next_request_at_every_replica(
    cluster: _Cluster, redis: RedisServer, state: str, act: Callable[[_Cluster, str], None], tally: Tally
) -> None:
    """Row 132, whatever Redis does."""
    before = cluster.looked
    _STATES[state](redis)
    try:
        act(cluster, f"corp/{state}/{act.__name__.strip('_').replace('_', '-')}")
    finally:
        redis.restart()
    tally(redis=state, looked=cluster.looked - before)


@pytest.mark.parametrize("cut", ["one", "all"])
def test_132_while_notices_are_lost(
    seaweedfs: SeaweedFS, tmp_path: Path, registry: FakeRegistry, cut: str, tally: Tally
) -> None:
    """Row 132 for what is hosted, while replicas do not reach each other: the bucket alone decides."""
    with _site(tmp_path, seaweedfs, registry, None) as site:
        cluster = _Cluster(site, registry)
        for replica in site.replicas[:1] if cut == "one" else site.replicas:
            site.cut_from_peers(replica)
        for number, act in enumerate((_pushes_and_tags, _blobs, _deletions, _referrers)):
            act(cluster, f"corp/app-{number}")
        tally(looked=cluster.looked)
