"""Rows 59, 125 and 126: replicas fetch cached content from each other, whatever happens to one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.policy.cluster.ownership import by_weight
from tests.faults.conftest import Tally
from tests.support.cluster_site import ClusterSite, Replica
from tests.support.crowd import Client, Crowd, Outcome
from tests.support.engines.fault_proxy import Answer, CutAnswer, Fault, FlippedAnswer, Reset, Silence, SlowAnswer
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.process import eventually
from tests.support.scripted import Stall

_TAG = "/v2/library/app/manifests/v1"
_SIZE = 4 << 20
#: Upstream says nothing until everybody is there, however long that takes.
_PATIENT = 'read_timeout = "1h"'


def _in_order(site: ClusterSite, content: bytes) -> Sequence[Replica]:
    """The replicas by the order in which they are asked for a blob of docker.io: the owner is the first."""
    by_member = {one.member: one for one in site.replicas}
    return [by_member[member] for member in by_weight("docker.io", Digest.of(content), by_member)]


def _target(content: bytes) -> str:
    return f"/v2/library/app/blobs/{Digest.of(content)}"


def _all_up(replica: Replica) -> bool:
    """Whether it has answers of all members that it knows, and leaves none alone."""
    return all(member["up"] for member in replica.command("status", "--json").json["cluster"]["members"])


@contextmanager
def _crowds(replicas: Sequence[Replica], content: bytes, folder: Path) -> Iterator[Sequence[Crowd]]:
    """One for each of these replicas, of clients that want this blob."""
    expected = folder / "expected"
    expected.write_bytes(content)
    with ExitStack() as stack:
        yield [stack.enter_context(Crowd(one.port, _target(content), expected)) for one in replicas]


def _expect_whole(clients: Sequence[Client], size: int) -> None:
    wrong = [
        client
        for client in clients
        if (client.outcome, client.status, client.received, client.wrong_at) != (Outcome.COMPLETE, 200, size, None)
    ]
    assert not wrong, f"{len(wrong)} of {len(clients)}: {wrong[:5]}"


def _ranges(registry: FakeRegistry) -> list[str | None]:
    """What upstream was asked to send, in the order in which it was asked."""
    return [request.header("Range") for request in registry.of_kind("blobs", "GET")]


def _pulled_tags(site: ClusterSite) -> None:
    """Each replica has the manifest, as it has before a client asks it for a blob."""
    for one in site.replicas:
        assert one.ask("GET", _TAG).status == 200


@pytest.mark.parametrize("with_bucket", [False, True], ids=["disks", "bucket"])
def test_59_three_replicas_ask_upstream_once(
    registry: FakeRegistry, tmp_path: Path, seaweedfs: SeaweedFS, with_bucket: bool, tally: Tally
) -> None:
    """Row 59: 200 clients at three replicas want one cold blob: upstream is asked once and sends it once, 1.00x; each
    client has bytes before the download is over, and then all of them.
    """
    content = noise(_SIZE)
    registry.add_image("library/app", "v1", [content])
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    engine = seaweedfs if with_bucket else None
    with (
        ClusterSite(
            tmp_path,
            engine,
            upstreams={"docker.io": registry.url},
            upstream=_PATIENT,
            workers=2,
            cache=with_bucket,
        ) as site,
        _crowds(site.replicas, content, tmp_path) as crowds,
    ):
        _pulled_tags(site)
        for crowd, count in zip(crowds, (67, 67, 66), strict=True):
            crowd.join(count)
        for crowd in crowds:
            crowd.begin()
        gate.release()
        for crowd in crowds:
            crowd.finish()
            _expect_whole(crowd.clients, _SIZE)
        clients = sum(len(crowd.clients) for crowd in crowds)
        tally(replicas=3, clients=clients, gets=len(_ranges(registry)))
        assert _ranges(registry) == [None]


_LOSSES: dict[str, Callable[[ClusterSite, Replica], None]] = {
    "killed": lambda site, owner: owner.kill(),
    "frozen": lambda site, owner: owner.freeze(),
    "cut off": lambda site, owner: site.cut_from_peers(owner),
}


@pytest.mark.parametrize("loss", [*_LOSSES])
def test_125_the_owner_is_lost_in_the_middle_of_a_blob(
    registry: FakeRegistry, tmp_path: Path, loss: str, tally: Tally
) -> None:
    """Row 125: clients of the other two replicas get every byte, and upstream sends no byte to them a second time that
    they have: what it is asked for again begins where they are.
    """
    content = noise(_SIZE)
    registry.add_image("library/app", "v1", [content])
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2))
    with ClusterSite(tmp_path, upstreams={"docker.io": registry.url}, upstream=_PATIENT) as site:
        owner, *others = _in_order(site, content)
        _pulled_tags(site)
        with _crowds([owner, *others], content, tmp_path) as (at_owner, *crowds):
            at_owner.join(1)
            at_owner.begin()
            for crowd in crowds:
                crowd.join(5)
                crowd.begin()
            _LOSSES[loss](site, owner)
            gate.release()
            for crowd in crowds:
                crowd.finish()
                _expect_whole(crowd.clients, _SIZE)
        whole, *again = _ranges(registry)
        tally(loss=loss, again=len(again))
        assert whole is None
        assert len(again) <= 1
        assert all(each is not None and int(each.removeprefix("bytes=").partition("-")[0]) > 0 for each in again)


@pytest.mark.parametrize("loss", [*_LOSSES])
def test_125_pulls_go_on_without_a_replica(registry: FakeRegistry, tmp_path: Path, loss: str) -> None:
    """Row 125: with one replica gone, every image can be pulled at each other one, cold, from the owner that is left or
    from upstream; and the replica that comes back is a peer again.
    """
    layers = [noise(100_000, seed=number) for number in range(11)]
    more = (noise(100_000, seed=number) for number in count(len(layers)))
    with ClusterSite(tmp_path, upstreams={"docker.io": registry.url}) as site:
        lost, *left = site.replicas
        # one of them at least belongs to the replica that is lost, whatever the addresses are
        layers.append(next(layer for layer in more if _in_order(site, layer)[0] is lost))
        registry.add_image("library/app", "v1", layers)
        _pulled_tags(site)
        _LOSSES[loss](site, lost)
        for one in left:
            one.pull("library/app", "v1")
        assert registry.count("blobs", "GET") <= 2 * len(layers) + 2
        if loss == "killed":
            lost.start()
        site.mend()
        lost.thaw()
        asked = registry.count("blobs", "GET")
        lost.pull("library/app", "v1")
        assert registry.count("blobs", "GET") <= asked + len(layers) + 1


_FAULTS: dict[str, Fault] = {
    "down": Reset(),
    "hung": Silence(),
    "slow": SlowAnswer(2_000_000),
    "cut": CutAnswer(100_000),
    "another version": Answer(400, "UNSUPPORTED"),
    "failing": Answer(500, "INTERNAL"),
    "lying": FlippedAnswer(),
}


def _pull(replica: Replica, tries: int) -> int:
    """Pull the image; returns how many answers broke off."""
    for broken in range(tries - 1):
        with suppress(ConnectionError):
            replica.pull("library/app", "v1")
            return broken
    replica.pull("library/app", "v1")
    return tries - 1


@pytest.mark.parametrize("fault", [*_FAULTS])
def test_125_a_peer_that_fails(registry: FakeRegistry, tmp_path: Path, fault: str, tally: Tally) -> None:
    """Row 125: whatever a peer answers, or does not, each pull at another replica is whole and right. Only wrong bytes
    are noticed at their end: that answer breaks off, and the next one comes from elsewhere.
    """
    layers = [noise(300_000, seed=number) for number in range(6)]
    registry.add_image("library/app", "v1", layers)
    with ClusterSite(tmp_path, upstreams={"docker.io": registry.url}) as site:
        _pulled_tags(site)
        first, *others = site.replicas
        first.pull("library/app", "v1")
        for one in site.replicas:
            one.peers.cause(_FAULTS[fault], where=lambda call: "/peer/v1/blob/" in call.target)
        # each blob may be asked of two peers
        tries = 1 + 2 * len(layers) if fault == "lying" else 1
        broken = sum(_pull(one, tries) for one in others)
        tally(broken=broken, fault=fault, times=sum(sum(one.peers.happened.values()) for one in site.replicas))
        assert any(one.peers.happened for one in site.replicas), "no peer was asked"
        if fault == "lying":
            assert any(line.get("event") == "peer gave wrong bytes" for one in others for line in one.mirror.log)


def test_126_members_that_do_not_agree_on_the_owner(registry: FakeRegistry, tmp_path: Path, tally: Tally) -> None:
    """Row 126: while a replica joins, the others do not know it yet: there are two owners for what will belong to it,
    at most one more download of each blob, and never a wrong byte.
    """
    gates: dict[str, Stall] = {}

    def gated(request: object, answer: object) -> object:
        digest = request.path.rpartition("/")[2]  # type: ignore[attr-defined]
        return stall(gates[digest], after=1000)(request, answer) if digest in gates else answer(request)  # type: ignore

    with ClusterSite(tmp_path, upstreams={"docker.io": registry.url}, upstream=_PATIENT) as site:
        old, new = site.replicas[:2], site.at(2)
        for one in old:
            one.stop()
            one.members = [each.member for each in old]
        # both at once: one that ran on would know of the other what is true no more, and have connections that are gone
        site.at_once(Replica.start, old)
        # one that was asked while the other started is left alone for some seconds, and then upstream has three callers
        eventually(lambda: all(_all_up(one) for one in old), "both know that the other is up")
        layers = [noise(500_000, seed=number) for number in range(5)]
        more = (noise(500_000, seed=number) for number in count(5))
        layers.append(next(layer for layer in more if _in_order(site, layer)[0] is new))
        gates.update({str(Digest.of(layer)): Stall() for layer in layers})
        registry.add_image("library/app", "v1", layers)
        _pulled_tags(site)
        registry.fail("blobs", gated, times=1000)  # type: ignore[arg-type]
        for layer in layers:
            with _crowds(site.replicas, layer, tmp_path) as crowds:
                for crowd in crowds:
                    crowd.join(3)
                for crowd in crowds:
                    crowd.begin()
                gates[str(Digest.of(layer))].release()
                for crowd in crowds:
                    crowd.finish()
                    _expect_whole(crowd.clients, len(layer))
        gets = [request.path.rpartition("/")[2] for request in registry.of_kind("blobs", "GET")]
        tally(blobs=len(layers), gets=len(gets))
        assert all(1 <= gets.count(str(Digest.of(layer))) <= 2 for layer in layers)
        manifest = json.loads(site.at(0).pull("library/app", "v1"))
        assert len(manifest["layers"]) == len(layers)
