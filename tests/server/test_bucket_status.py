"""What the mirror says of its bucket."""

from __future__ import annotations

import pytest

from mirror.cli.status import describe_bucket
from mirror.ports import BucketHealth
from mirror.server.admin.bucket_status import BucketFacts, RememberedRecords, state_of

KNOWN = RememberedRecords("b1", True, 40)
DOWN = BucketHealth(1_700_000_000.0, reason="connection refused")


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (BucketHealth(), "ok"),
        (BucketHealth(throttles=True), "throttled"),
        (BucketHealth(throttles=True, refuses=("write",), reason="s3:PutObject is needed"), "refusing"),
        (BucketHealth(is_unfit=True, refuses=("list",)), "unfit"),
        (DOWN, "down"),
    ],
)
def test_the_worst_is_shown(health: BucketHealth, state: str) -> None:
    assert state_of(health) == state


async def test_the_worker_that_fares_worst_speaks_for_all() -> None:
    facts = BucketFacts("s3://images", BucketHealth, lambda: False, lambda: KNOWN)
    assert await facts.status([]) == {
        "address": "s3://images",
        "state": "ok",
        "since": None,
        "reason": None,
        "reads_only": False,
        "id": "b1",
        "records_complete": True,
        "records_listed": 40,
        "cache": None,
    }
    seen = await facts.status([BucketHealth(), DOWN, BucketHealth(throttles=True)])
    assert (seen["state"], seen["since"], seen["reason"]) == ("down", "2023-11-14T22:13:20Z", "connection refused")
    said = describe_bucket(seen)
    assert said == "s3://images does not answer since 2023-11-14T22:13:20Z: connection refused"


async def test_what_else_is_wrong_is_said() -> None:
    def facts(*, reads_only: bool) -> BucketFacts:
        known = RememberedRecords("b1", False, 12_000)
        return BucketFacts("s3://images", BucketHealth, lambda: reads_only, lambda: known)

    said = describe_bucket(await facts(reads_only=False).status([]))
    assert said == "s3://images answers; its records are being listed, 12,000 so far"
    wrong = BucketFacts("s3://images", BucketHealth, lambda: False, lambda: KNOWN, trouble=lambda: "it is another one")
    seen = await wrong.status([])
    assert (seen["state"], seen["reason"]) == ("unfit", "it is another one")
    # a mirror that was overtaken lists nothing any more
    said = describe_bucket(await facts(reads_only=True).status([]))
    assert said == "s3://images answers; another mirror uses it, this one only reads"
