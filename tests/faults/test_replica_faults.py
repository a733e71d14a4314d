"""Rows 127, 130, 131 and 133: replicas are split, upgraded, all emptied, and die with open uploads."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import APPS, Tally, add_apps
from tests.support.cluster_site import ClusterSite, Replica
from tests.support.engines.fault_proxy import Silence
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.fake_registry import FakeRegistry
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import eventually
from tests.support.pushers import Pushers, open_to_pushers
from tests.support.redis_server import RedisServer
from tests.support.site_client import Said, SiteClient
from tests.support.stubborn import Stubborn

_LAYER: Final = noise(300_000, seed=1)


def _span(start: int, piece: bytes) -> dict[str, str]:
    return {"Content-Range": f"{start}-{start + len(piece) - 1}"}


# ----------------------------------------------------------------------------------------------------- splits


def _cut(site: ClusterSite, one: Replica) -> None:
    site.cut_from_peers(one)


def _silent(site: ClusterSite, one: Replica) -> None:
    one.peers.cause(Silence())
    for each in site.others(one):
        each.peers.cause(Silence(), where=lambda call: one.is_sender(call.headers))


_SPLITS: dict[str, Callable[[ClusterSite, Replica], None]] = {
    "peers": _cut,
    "peers hang": _silent,
    "redis": lambda site, one: one.cut_from_redis(),
    "redis hangs": lambda site, one: one.redis.hang() if one.redis is not None else None,
}


@pytest.mark.parametrize("split", [*_SPLITS])
def test_127_the_bucket_decides_while_replicas_are_split(
    seaweedfs: SeaweedFS, tmp_path: Path, split: str, tally: Tally
) -> None:
    """Row 127: a replica that does not reach its peers, or Redis, serves and takes pushes as before; of two pushes of
    one tag at both sides of the split both are acknowledged, and every replica agrees on which was the last.
    """
    with (
        RedisServer() as redis,
        ClusterSite(tmp_path, seaweedfs, redis=str(redis.socket), index_timeout="250ms") as site,
    ):
        apart, *others = site.replicas
        before = others[0].push("corp/app", "v1", _LAYER)
        _SPLITS[split](site, apart)
        assert apart.pull("corp/app", "v1") == before
        rounds = 5
        for number in range(rounds):
            pushed = [
                one.push("corp/app", f"made-{number}-{side}", noise(1000, seed=10 * number + side))
                for side, one in enumerate((apart, others[0]))
            ]

            def move(one: Replica, manifest: bytes) -> Said:
                return one.put_manifest("corp/app", "v1", manifest)

            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(move, (apart, others[0]), pushed))
            assert [answer.status for answer in answers] == [201, 201], answers
            seen = {one.manifest("corp/app", "v1").body for one in site.replicas}
            assert len(seen) == 1, f"round {number}"
            assert seen <= set(pushed), f"round {number}"
        assert apart.ask("DELETE", "/v2/corp/app/manifests/v1").status == 202
        assert {one.manifest("corp/app", "v1").status for one in site.replicas} == {404}
        site.mend()
        tally(split=split, rounds=rounds)


def test_127_a_replica_without_the_bucket(
    registry: FakeRegistry, seaweedfs: SeaweedFS, tmp_path: Path, tally: Tally
) -> None:
    """Row 127: a replica that is cut off from everything gives out what it has and takes no push; the others notice
    nothing; and when it reaches the bucket again, it answers as they do.
    """
    registry.add_image("library/app", "v1", [noise(100_000, seed=2)])
    with ClusterSite(
        tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, connect_timeout=2, read_timeout=2, timeout=4
    ) as site:
        apart, *others = site.replicas
        manifest = others[0].push("corp/app", "v1", _LAYER)
        assert apart.pull("corp/app", "v1") == manifest
        cached = apart.pull("library/app", "v1")
        site.cut_off(apart)
        assert apart.pull("library/app", "v1") == cached
        # 503 at first: another replica was writing at the last look, a moment ago
        eventually(lambda: apart.manifest("corp/app", "v1").body == manifest, "it answers as it last knew")
        refused = apart.ask("POST", f"/v2/corp/app/blobs/uploads/?digest={sha256(b'x')}", b"x")
        assert (refused.status, "Retry-After" in refused.headers) == (503, True), refused
        moved = others[0].push("corp/app", "v1", noise(1000, seed=3))
        assert others[1].pull("corp/app", "v1") == moved
        site.mend()
        eventually(lambda: apart.manifest("corp/app", "v1").body == moved, "it answers as the others do")
        assert apart.pull("corp/app", "v1") == moved
        assert apart.push("corp/app", "v2", noise(1000, seed=4)) == others[1].pull("corp/app", "v2")


# --------------------------------------------------------------------------------------------------- restarts


@pytest.mark.timeout(900)
def test_130_a_rolling_upgrade(
    registry: FakeRegistry, seaweedfs: SeaweedFS, tmp_path: Path, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Row 130: each replica in turn ends as an upgrade ends it, loses its disk as a pod does, and comes back, while
    clients push, delete and pull: what an ordinary client tries again succeeds, nothing is lost, no byte is wrong.
    """
    add_apps(registry, (50_000, 120_000))
    rounds = times("UPGRADES", 1)
    with (
        ClusterSite(
            tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, cache=True, more=open_to_pushers()
        ) as site,
        Pushers(site.ports, seed=5) as pushers,
        Stubborn(site.ports, APPS, clients=2, tries=20, seed=5) as pullers,
    ):
        pushers.go()
        for _ in range(rounds):
            for one in site.replicas:
                pushers.wait_for(5)
                pullers.wait_for_pulls(2)
                one.stop()
                one.wipe()
                pushers.wait_for(5)
                pullers.wait_for_pulls(2)
                one.start()
        pushers.wait_for(5)
        pushers.rest()
        read = pushers.look()
        pullers.leave()
        tally(restarts=3 * rounds, changes=pushers.acknowledged.total(), read=read, pulled=pullers.pulled)
        assert pushers.wrong == []
        assert (pullers.failed, pullers.corrupt) == ([], [])


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_131_all_replicas_lose_their_disks(
    registry: FakeRegistry, seaweedfs: SeaweedFS, tmp_path: Path, end: str, tally: Tally
) -> None:
    """Row 131: all of them are gone at once with all that they had on their disks: what was pushed, deleted, frozen,
    pinned or granted is as it was, for every replica, and what can be brought back can.
    """
    layers = [noise(200_000, seed=number) for number in range(4)]
    registry.add_image("library/app", "v1", layers)
    with ClusterSite(tmp_path, seaweedfs, upstreams={"docker.io": registry.url}, cache=True) as site:
        pushed = {
            (f"corp/app-{number}", tag): site.at(number).push(f"corp/app-{number}", tag, noise(50_000, seed=seed))
            for seed, (number, tag) in enumerate((number, tag) for number in range(3) for tag in ("v1", "v2"))
        }
        site.pull("library/app", "v1")
        deleted = pushed.pop(("corp/app-0", "v2"))
        assert site.at(1).ask("DELETE", f"/v2/corp/app-0/manifests/{sha256(deleted)}").status == 202
        site.at(1).command("freeze", "corp/app-1:v1")
        site.at(1).command("pin", "docker.io/library/app:v1")
        made = site.at(2).command("token", "create", "robot", "--allow", "push", "corp/app-2", "--json")
        assert made.json["secret"]
        site.at_once(Replica.stop if end == "stopped" else Replica.kill)
        for one in site.replicas:
            one.wipe()
        site.start()
        for one in site.replicas:
            for (name, tag), manifest in pushed.items():
                assert one.pull(name, tag) == manifest
            assert one.ask("GET", f"/v2/corp/app-0/manifests/{sha256(deleted)}").status == 404
            assert json.loads(one.ask("GET", "/v2/corp/app-0/tags/list").body)["tags"] == ["v1"]
            frozen = one.put_manifest("corp/app-1", "v1", pushed["corp/app-1", "v2"])
            assert frozen.status == 403, frozen
            assert "docker.io/library/app:v1" in one.command("pins").out
            assert "robot" in one.command("token", "list").out
            one.pull("library/app", "v1")
        site.at(2).command("undelete", "corp/app-0:v2")
        assert {one.pull("corp/app-0", "v2") for one in site.replicas} == {deleted}
        tally(images=len(pushed) + 1)


# ---------------------------------------------------------------------------------------------------- uploads


def _begin(replica: SiteClient, repository: str = "corp/app") -> str:
    begun = replica.ask("POST", f"/v2/{repository}/blobs/uploads/")
    assert begun.status == 202, begun
    return str(begun.headers["Location"])


def _finish(replica: SiteClient, place: str, content: bytes, rest: bytes = b"") -> Said:
    joint = "&" if "?" in place else "?"
    return replica.ask("PUT", f"{place}{joint}digest={sha256(content)}", rest)


def test_133_an_upload_at_every_replica(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 133, the good case: each request of one upload may come to another replica."""
    with ClusterSite(tmp_path, seaweedfs, workers=2) as site:
        for begins in range(3):
            content = noise(400_000, seed=begins)
            place = _begin(site.at(begins))
            for number, start in enumerate(range(0, len(content), 100_000)):
                piece = content[start : start + 100_000]
                sent = site.at(begins + number + 1).ask("PATCH", place, piece, _span(start, piece))
                assert sent.status == 202, sent
                place = str(sent.headers["Location"])
                where = site.at(begins + number).ask("GET", place)
                assert (where.status, where.headers["Range"]) == (204, f"0-{start + len(piece) - 1}"), where
            assert _finish(site.at(begins + 2), place, content).status == 201
            assert {one.blob("corp/app", content).body == content for one in site.replicas} == {True}
            # that session is over, whoever is asked
            assert {one.ask("GET", place).status for one in site.replicas} == {404}


_ENDS: dict[str, Callable[[ClusterSite, Replica], None]] = {
    "killed": lambda site, one: one.kill(),
    "emptied": lambda site, one: one.lose_disk(kill=True),
    "frozen": lambda site, one: one.freeze(),
    "cut off": lambda site, one: site.cut_from_peers(one),
}


@pytest.mark.parametrize("end", [*_ENDS])
def test_133_an_upload_whose_replica_is_gone(seaweedfs: SeaweedFS, tmp_path: Path, end: str) -> None:
    """Row 133: what was begun at a replica that is gone is unknown at every other one, and begun again there it
    succeeds.
    """
    with ClusterSite(tmp_path, seaweedfs) as site:
        gone, *others = site.replicas
        half = _LAYER[: len(_LAYER) // 2]
        place = _begin(gone)
        sent = others[0].ask("PATCH", place, half, _span(0, half))
        assert sent.status == 202, sent
        place = str(sent.headers["Location"])
        _ENDS[end](site, gone)
        for one in others:
            unknown = one.ask("GET", place)
            assert unknown.status == 404, unknown
            assert json.loads(unknown.body)["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
            # after bytes were passed on nobody can say what has become of them
            refused = _finish(one, place, _LAYER, _LAYER[len(half) :])
            assert refused.status in (404, 503), refused
            assert one.blob("corp/app", _LAYER).status == 404
        again = _begin(others[0])
        assert _finish(others[1], again, _LAYER, _LAYER).status == 201
        assert others[0].blob("corp/app", _LAYER).body == _LAYER


def test_133_an_upload_outlives_the_beginning_of_the_end(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    """Row 133: a replica that is asked to end lets open uploads go on through the others, and then ends."""
    with ClusterSite(tmp_path, seaweedfs, cluster={"drain": "10m"}) as site:
        ends, *others = site.replicas
        half = _LAYER[: len(_LAYER) // 2]
        place = _begin(ends)
        sent = ends.ask("PATCH", place, half, _span(0, half))
        assert sent.status == 202, sent
        place = str(sent.headers["Location"])
        ends.mirror.begin_stop()
        ends.mirror.wait_for_event("draining", reason="SIGTERM")
        ends.mirror.wait_for_event("waiting for uploads", uploads=1)
        assert _finish(others[0], place, _LAYER, _LAYER[len(half) :]).status == 201
        assert ends.mirror.wait() == 0
        assert others[1].blob("corp/app", _LAYER).body == _LAYER
