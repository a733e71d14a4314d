"""A client gives up a request that is stuck in a frozen replica, and does something else at another one: once the first
replica goes on, nothing of that is undone.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import pytest

from tests.support.cluster_site import ClusterSite, Replica
from tests.support.engines.fault_proxy import Meanwhile, StoreCall
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import eventually

_TYPE: Final = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}


class _Late:
    """A request at a replica that is frozen when the replica first reads `key` for it, or before it has read anything
    of the request (None), until the client has given up and done `instead` elsewhere.
    """

    def __init__(self, replica: Replica, key: str | None, instead: Callable[[], object]) -> None:
        self._replica = replica
        self._key = key
        self._instead = instead
        self._client: http.client.HTTPConnection | None = None

    def ask(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Returns once the replica has gone on with it, and knew that the client had left."""
        client = self._client = http.client.HTTPConnection("127.0.0.1", self._replica.port)
        if self._key is None:
            self._replica.freeze()
            client.request(method, target, body, headers or {})
            self._give_up()
        else:
            assert self._replica.bucket is not None
            self._replica.bucket.cause(Meanwhile(self._frozen), where=self._is_first_read, times=1)
            client.request(method, target, body, headers or {})
        eventually(lambda: self._gone_on(method, target), "the request ends")

    def _is_first_read(self, call: StoreCall) -> bool:
        return call.method == "GET" and (self._key or "") in call.target

    def _gone_on(self, method: str, target: str) -> bool:
        return any(each["method"] == method for each in self._replica.mirror.requests(path=target))

    def _frozen(self) -> None:
        self._replica.freeze()
        self._give_up()

    def _give_up(self) -> None:
        assert self._client is not None
        self._client.close()
        self._instead()
        self._replica.thaw()
        # answered by the same event loop, after it has looked at all connections
        self._replica.ask("GET", "/v2/")


class _World:
    """Three replicas and a repository with an image under the tag `v1`; the first of them is frozen."""

    def __init__(self, site: ClusterSite, name: str) -> None:
        self.site = site
        self.name = name
        self.manifests = f"/v2/{name}/manifests/"
        self.frozen, self.other, _ = site.replicas
        self.first = site.at(1).push(name, "v1", noise(1000, seed=1))
        self.second = site.at(2).push(name, "second", noise(1000, seed=2))
        # the frozen one remembers all of it
        assert self.frozen.pull(name, "v1") == self.first

    def late(self, key: str | None, instead: Callable[[], object]) -> _Late:
        """See `_Late`."""
        return _Late(self.frozen, key, instead)

    def seen(self, reference: str) -> set[bytes | None]:
        """What each replica answers for it; None is 404."""
        answers = [one.manifest(self.name, reference) for one in self.site.replicas]
        assert {answer.status for answer in answers} <= {200, 404}, answers
        return {answer.body if answer.status == 200 else None for answer in answers}


def _moves(world: _World, key: str | None) -> None:
    """A push of a tag, which the client then makes at another replica, and moves the tag on."""

    def instead() -> None:
        assert world.other.put_manifest(world.name, "v1", world.first).status == 201
        assert world.other.put_manifest(world.name, "v1", world.second).status == 201

    world.late(key and "_tags/v1", instead).ask("PUT", f"{world.manifests}v1", world.first, _TYPE)
    assert world.seen("v1") == {world.second}


def _deletes_a_tag(world: _World, key: str | None) -> None:
    """The deletion of a tag, which the client then makes at another replica, and pushes the tag again."""

    def instead() -> None:
        assert world.other.ask("DELETE", f"{world.manifests}v1").status == 202
        assert world.other.put_manifest(world.name, "v1", world.second).status == 201

    world.late(key and "_tags/v1", instead).ask("DELETE", f"{world.manifests}v1")
    assert world.seen("v1") == {world.second}


def _deletes_an_image(world: _World, key: str | None) -> None:
    """The deletion of an image, which the client then makes at another replica, and pushes the image again."""
    digest = sha256(world.first)

    def instead() -> None:
        assert world.other.ask("DELETE", f"{world.manifests}{digest}").status == 202
        assert world.other.put_manifest(world.name, "v1", world.first).status == 201

    world.late(key and f"_manifests/{digest.replace(':', '-')}", instead).ask("DELETE", f"{world.manifests}{digest}")
    assert world.seen("v1") == world.seen(digest) == {world.first}


def _pushes(world: _World, key: str | None) -> None:
    """The push of an image, which the client then makes at another replica, and deletes it there."""
    pushed = json.dumps({**json.loads(world.first), "annotations": {"made": "late"}}).encode()
    digest = sha256(pushed)

    def instead() -> None:
        assert world.other.put_manifest(world.name, "late", pushed).status == 201
        assert world.other.ask("DELETE", f"{world.manifests}{digest}").status == 202

    world.late(key and f"_manifests/{digest.replace(':', '-')}", instead).ask(
        "PUT", f"{world.manifests}late", pushed, _TYPE
    )
    assert world.seen("late") == world.seen(digest) == {None}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, seaweedfs: SeaweedFS) -> Iterator[ClusterSite]:
    """One for all: each test has a repository of its own."""
    with ClusterSite(tmp_path_factory.mktemp("stale-requests"), seaweedfs) as running:
        yield running


@pytest.mark.parametrize("act", [_moves, _deletes_a_tag, _deletes_an_image, _pushes])
@pytest.mark.parametrize("read", ["before it is read", "in its middle"])
def test_151_what_a_client_has_given_up_changes_nothing(
    site: ClusterSite, act: Callable[[_World, str | None], None], read: str
) -> None:
    """Row 151, whether the request was in the kernel of the frozen replica, or under way."""
    world = _World(site, f"corp{act.__name__.replace('_', '-').replace('-', '/', 1)}/{read.replace(' ', '-')}")
    act(world, None if read == "before it is read" else "key")
    [late] = [each for each in world.frozen.mirror.requests(path=world.manifests) if each["method"] != "GET"]
    assert (late["status"], late["error"].partition(":")[0]) == (503, "StaleRequest"), late
