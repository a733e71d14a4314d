"""What the mirror says of the work that one replica does for all."""

from __future__ import annotations

from mirror.cli.status import describe_leases
from mirror.errors import BucketUnavailable
from mirror.server.admin.mirror_status import ClusterFacts, LeaseJson

SWEEP: LeaseJson = {"work": "sweep of the bucket", "holder": "http://10.0.0.2:5001", "since": "2026-01-01T00:00:00Z"}


async def test_the_holders_are_named() -> None:
    status = await ClusterFacts("site", "http://10.0.0.1:5001", lambda: [SWEEP], lambda: -61.04).status([])
    assert status == {
        "name": "site",
        "address": "http://10.0.0.1:5001",
        "members": [],
        "leases": [SWEEP],
        "clock_offset": -61.0,
    }
    assert describe_leases(status) == [
        "sweep of the bucket: http://10.0.0.2:5001, since 2026-01-01T00:00:00Z",
        "the clock of this replica is 61 s behind the bucket's: it does no work for all",
    ]


async def test_a_bucket_that_does_not_answer_hides_nothing_else() -> None:
    def down() -> list[LeaseJson]:
        raise BucketUnavailable("the bucket does not answer")

    status = await ClusterFacts("site", "http://10.0.0.1:5001", down, lambda: 5.0).status([])
    assert (status["leases"], status["clock_offset"]) == (None, 5.0)
    assert describe_leases(status) == []
    assert (await ClusterFacts("site", "http://10.0.0.1:5001").status([]))["leases"] is None
