"""What a store is asked before hosted content is entrusted to it, with a bucket that breaks each promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mirror.errors import BucketAbsent, BucketDenied, BucketUnavailable, BucketUnfit, RecordChanged
from mirror.ports import ABSENT, Body, Bucket, Expected, Version
from mirror.store.objects.bucket_check import BucketCheck, DiskUse, check_bucket
from mirror.store.objects.bucket_probe import ProbedBucket, probe_conditions
from tests.support.bucket_suite import BucketSuite
from tests.support.memory_bucket import MemoryBucket


class CreatesTwice(MemoryBucket):
    """Ignores that an object must be absent."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        return super().write(key, content, expect=None if expect is ABSENT else expect)


class ForgetsVersions(MemoryBucket):
    """Ignores which version an object must have."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        return super().write(key, content, expect=expect if expect is ABSENT else None)


class RefusesAll(MemoryBucket):
    """Refuses to replace any version, as if each were stale."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        if isinstance(expect, str):
            raise RecordChanged(key)
        return super().write(key, content, expect=expect)


class ReadsOldContent(MemoryBucket):
    """Gives what was written first, for ever."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        version = super().write(key, content, expect=expect)
        if expect is ABSENT:
            self.first = content
        self.damage(key, self.first)
        return version


UNFIT = {
    CreatesTwice: "created twice",
    ForgetsVersions: "in a version that it no longer has",
    RefusesAll: "in the version that it has",
    ReadsOldContent: "what was written last",
}


def test_a_good_store_is_left_as_it_was() -> None:
    """All conditions are tried, and nothing stays."""
    bucket = MemoryBucket()
    probe_conditions(bucket)
    assert bucket.content() == {}
    assert bucket.calls["write"] == 4


@pytest.mark.parametrize("kind", UNFIT, ids=lambda kind: kind.__name__)
def test_a_store_that_breaks_a_promise(kind: Callable[[], MemoryBucket]) -> None:
    """It is refused, with the reason; nothing stays."""
    bucket = kind()
    with pytest.raises(BucketUnfit, match=UNFIT[kind]):  # type: ignore[index]
        probe_conditions(bucket)
    assert bucket.content() == {}


class TestProbedBucket(BucketSuite):
    """It does all that a bucket does, and refuses what an unfit one would do wrong."""

    @pytest.fixture
    def bucket(self) -> Bucket:
        """Before a fit one."""
        return ProbedBucket(MemoryBucket())

    def fetch(self, bucket: Bucket, url: str) -> bytes:
        """Nothing listens there."""
        inner: Any = bucket
        content: bytes = inner._bucket.fetch(url)
        return content

    def test_it_is_probed_once(self) -> None:
        """Before the first write with a condition, not before any other call."""
        inner = MemoryBucket()
        bucket = ProbedBucket(inner)
        bucket.write("plain", b"1")
        bucket.read("plain", 10)
        assert inner.calls["write"] == 1
        for key in ("a", "b"):
            bucket.write(key, b"1", expect=ABSENT)
        assert inner.calls["write"] == 7

    def test_an_unfit_store_gets_no_conditional_write(self) -> None:
        """All else goes on; the store is not probed again."""
        inner = CreatesTwice()
        bucket = ProbedBucket(inner)
        with pytest.raises(BucketUnfit, match="created twice"):
            bucket.probe()
        asked = sum(inner.calls.values())
        for _ in range(3):
            with pytest.raises(BucketUnfit, match="created twice"):
                bucket.write("tag", b"1", expect=ABSENT)
        assert sum(inner.calls.values()) == asked
        bucket.write("plain", b"1")
        assert bucket.read("plain", 10)
        assert inner.content() == {"plain": b"1"}
        assert "created twice" in repr(bucket)

    def test_a_bucket_that_is_down_is_probed_later(self) -> None:
        """Nothing is written on a condition before the probe has passed."""
        inner = CreatesTwice()
        bucket = ProbedBucket(inner)
        inner.down = True
        for _ in range(2):
            with pytest.raises(BucketUnavailable) as raised:
                bucket.write("tag", b"1", expect=ABSENT)
            assert not isinstance(raised.value, BucketUnfit)
        inner.down = False
        with pytest.raises(BucketUnfit):
            bucket.write("tag", b"1", expect=ABSENT)
        assert inner.content() == {}


class TestChecks:
    """`mirror check --online`."""

    def by_step(self, checks: list[BucketCheck]) -> dict[str, bool]:
        """The results, by step."""
        return {check.step: check.ok for check in checks}

    def test_everything_works(self) -> None:
        """Each thing was done; nothing stays."""
        bucket = MemoryBucket()
        checks = check_bucket(bucket, fetch=bucket.fetch)
        assert self.by_step(checks) == dict.fromkeys(
            (
                "write",
                "read",
                "read a range",
                "write on conditions",
                "upload in parts",
                "list",
                "sign",
                "delete",
                "unfinished uploads",
            ),
            True,
        )
        assert not any(check.advice for check in checks)
        assert bucket.content() == {}
        assert "sign" not in self.by_step(check_bucket(bucket))

    @pytest.mark.parametrize(
        ("verb", "step"),
        [
            ("read", "read"),
            ("open", "read a range"),
            ("upload", "upload in parts"),
            ("list", "list"),
            ("delete", "delete"),
            ("abort_uploads", "unfinished uploads"),
        ],
    )
    def test_a_missing_permission(self, verb: str, step: str) -> None:
        """Is named where it was missed, and all else is tried."""
        bucket = MemoryBucket()
        bucket.fail(verb, 100, error=BucketDenied(f"{verb}: s3:Something is missing"))
        checks = check_bucket(bucket, fetch=bucket.fetch)
        [check] = [check for check in checks if check.step == step]
        assert not check.ok
        assert check.detail == f"{verb}: s3:Something is missing"
        assert "permission" in check.advice
        assert self.by_step(checks)["write"]

    def test_wrong_keys(self) -> None:
        """The advice is about the keys: no permission helps."""
        bucket = MemoryBucket()
        bucket.fail("list", 100, error=BucketDenied("the store does not know the access key", wrong_credentials=True))
        [check] = [check for check in check_bucket(bucket) if not check.ok]
        assert "correct the credentials" in check.advice
        assert "permission" not in check.advice

    def test_a_reader(self) -> None:
        """What needs an object is not tried, and no success is claimed for it."""
        bucket = MemoryBucket()
        for verb in ("write", "upload", "delete"):
            bucket.fail(verb, 100, error=BucketDenied("s3:PutObject is missing"))
        results = self.by_step(check_bucket(bucket, fetch=bucket.fetch))
        assert {step for step, ok in results.items() if ok} == {"read", "list", "unfinished uploads"}

    def test_whose_it_is(self) -> None:
        """A mirror that was overtaken by that of another disk is a failure; a new disk is only warned. Nothing is
        changed.
        """
        bucket = MemoryBucket()

        def use(disk: DiskUse) -> BucketCheck:
            [check] = [check for check in check_bucket(bucket, disk=disk) if check.step == "use"]
            return check

        assert use(DiskUse("", None)).detail == "no mirror has used it yet"
        assert not use(DiskUse("d1", "b1")).ok
        bucket.write("mirror.json", b'{"layout": 1, "id": "b1"}')
        bucket.write("last-used.json", b'{"disk": "d1", "nonce": "n"}')
        before = bucket.content()
        assert use(DiskUse("d1", "b1")).detail == "the mirror of this disk uses it"
        overtaken = use(DiskUse("d2", "b1"))
        assert not overtaken.ok
        assert "another disk (its id is d1) has taken it over" in overtaken.detail
        fresh = use(DiskUse("d2", None))
        assert fresh.ok
        assert "end that one" in fresh.advice
        other = use(DiskUse("d1", "b2"))
        assert not other.ok
        assert "the id b2; this one has the id b1" in other.detail
        assert bucket.content() == before

    @pytest.mark.parametrize("noted", [None, "b1"])
    def test_whose_it_is_beside_a_cluster(self, noted: str | None) -> None:
        """The cluster's own replicas use it; for all others it is a failure, whose advice says what a start does."""
        bucket = MemoryBucket()
        bucket.write("mirror.json", b'{"layout": 1, "id": "b1"}')

        def use(disk: str, cluster: str) -> BucketCheck:
            checks = check_bucket(bucket, disk=DiskUse(disk, noted, cluster))
            [check] = [check for check in checks if check.step == "use"]
            return check

        assert use("d1", "east").ok
        bucket.write("last-used.json", b'{"cluster": "east", "nonce": "n"}')
        for disk in ("d1", "d2"):
            assert use(disk, "east") == BucketCheck(
                "use", True, "the cluster east uses it, of which this mirror is a replica"
            )
        other, single = use("d1", "west"), use("d1", "")
        assert not other.ok
        assert "the cluster east uses it, and this mirror is a replica of the cluster west" in other.detail
        assert "cluster.name" in other.advice
        assert "takes the bucket over" in other.advice
        assert not single.ok
        assert "the cluster east uses it, and this mirror has no [cluster]" in single.detail
        assert "end all replicas first" in single.advice
        bucket.write("last-used.json", b'{"disk": "d1", "nonce": "n"}')
        replaces, same = use("d2", "east"), use("d1", "east")
        assert not replaces.ok
        assert "a single mirror uses it, and not the cluster east: the mirror of the disk d1" in replaces.detail
        assert "takes the bucket over for the cluster" in replaces.advice
        assert same.ok
        assert "takes it over" in same.advice

    def test_a_bucket_that_is_down(self) -> None:
        """Nothing works, and the advice is about the way there."""
        bucket = MemoryBucket()
        bucket.down = True
        checks = check_bucket(bucket)
        assert not any(check.ok for check in checks)
        assert "endpoint" in checks[0].advice

    def test_an_unfit_store(self) -> None:
        """The condition that it ignores is named."""
        [check] = [check for check in check_bucket(CreatesTwice()) if not check.ok]
        assert check.step == "write on conditions"
        assert "created twice" in check.detail

    def test_what_a_store_cannot_do(self) -> None:
        """Signing is a failure where clients are redirected; unfinished uploads take a rule."""
        bucket = MemoryBucket(signs=False, lists_uploads=False)
        checks = check_bucket(bucket, fetch=bucket.fetch)
        assert [check.step for check in checks if not check.ok] == ["sign"]
        assert "lifecycle rule" in checks[-1].advice

    def test_a_store_that_gives_other_bytes(self) -> None:
        """It is not taken for one that works."""

        class Damages(MemoryBucket):
            def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
                version = super().write(key, content, expect=expect)
                self.damage(key, content[:-1] + b"?")
                return version

            def open(self, key: str, start: int = 0, stop: int | None = None) -> Body | None:  # type: ignore[override]
                return super().open(key, 0)

        results = self.by_step(check_bucket(Damages()))
        assert not results["read"]
        assert not results["read a range"]
        assert not results["write on conditions"]


@pytest.mark.parametrize(("kind", "advised"), [(BucketAbsent, False), (BucketUnavailable, True)])
def test_a_bucket_that_does_not_exist_is_no_matter_of_the_network(
    monkeypatch: pytest.MonkeyPatch, kind: type[BucketUnavailable], *, advised: bool
) -> None:
    """The text says what to do; of a store that cannot be reached, the advice does."""

    def fail(*_arguments: object) -> None:
        raise kind("what it says")

    bucket = MemoryBucket()
    monkeypatch.setattr(bucket, "write", fail)
    check = check_bucket(bucket)[0]
    assert (check.step, check.ok, check.detail) == ("write", False, "what it says")
    assert ("network" in check.advice) is advised
