"""Row 132: what an operator does at one replica is so at the others when the command ends."""

from __future__ import annotations

from pathlib import Path

from tests.support.cluster_site import ClusterSite, Replica
from tests.support.fake_registry import FakeRegistry
from tests.support.process import eventually

_TAG = "/v2/library/app/manifests/v1"
_IMAGE = "docker.io/library/app:v1"
#: Each of two workers gets some of so many requests.
_MANY = 16


def _answers(replica: Replica) -> set[str | None]:
    """What the workers of a replica say that the tag points to."""
    found = [replica.ask("GET", _TAG) for _ in range(_MANY)]
    assert {answer.status for answer in found} == {200}
    return {answer.headers["Docker-Content-Digest"] for answer in found}


def test_132_a_purge_has_taken_effect_everywhere(registry: FakeRegistry, tmp_path: Path) -> None:
    """In each worker of each replica. One that is frozen is named within moments, and purges when it is back."""
    with ClusterSite(tmp_path, workers=2, upstreams={"docker.io": registry.url}) as site:
        a, b, c = site.replicas
        first = registry.add_image("library/app", "v1", [b"first"])
        assert [_answers(one) for one in site.replicas] == [{str(first)}] * 3
        second = registry.add_image("library/app", "v1", [b"second"])
        assert [_answers(one) for one in site.replicas] == [{str(first)}] * 3
        a.command("purge", _IMAGE)
        assert [_answers(one) for one in site.replicas] == [{str(second)}] * 3

        third = registry.add_image("library/app", "v1", [b"third"])
        c.freeze()
        done = a.try_command("purge", _IMAGE)
        assert (done.status, c.member in done.err, b.member in done.err) == (1, True, False), done
        assert [_answers(one) for one in (a, b)] == [{str(third)}] * 2
        c.thaw()
        a.mirror.wait_for_event("purge confirmed")
        assert _answers(c) == {str(third)}

        # the ones that were asked again are those that had not confirmed: what was pulled since stays
        registry.add_image("library/app", "v1", [b"fourth"])
        assert _answers(b) == {str(third)}
        # another worker may not know yet that the one that was frozen is back
        eventually(lambda: "; 2 of 2 other replicas answering" in a.command("status").out, "all answer")


def test_each_replica_knows_who_answers_though_nothing_asks(tmp_path: Path) -> None:
    """One that was killed is down, and up again once it is back, in the status of a replica that no client asks."""
    with ClusterSite(tmp_path, workers=2) as site:
        a, _, c = site.replicas

        def says(text: str) -> bool:
            return text in a.command("status").out

        eventually(lambda: says("; 2 of 2 other replicas answering"), "all answer")
        c.kill()
        eventually(lambda: says(f"{c.member}: down since"), "it is down")
        eventually(lambda: a.mirror.metrics()["mirror_peers_down"] == 1, "the metrics say so, of whichever worker")
        c.start()
        eventually(lambda: says("; 2 of 2 other replicas answering"), "it is back")
