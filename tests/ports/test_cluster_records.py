"""Records that several replicas write: what one has acknowledged is seen by the next read at every other one, whoever
stops or dies at which step. Rows 121, 124 and 132 of the table of faults at the level of records.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.app.stored_records import FollowedChanges
from mirror.errors import BucketThrottled, BucketUnavailable
from mirror.oci.reference import Repo
from mirror.ports import ABSENT, RecordTree
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.layout import Layout
from mirror.store.objects.record_tree import BucketTree, Reads
from tests.support.bucket_records import Machine
from tests.support.record_tree_suite import APP, KEY, ONE, THREE, TWO, RecordTreeSuite, content_of
from tests.support.stepping_bucket import Killed, SteppingBucket

TAGS = "repositories/corp/team/app/_tags"
JOURNAL = "journals/names/corp/team!app"


@pytest.fixture
def bucket() -> SteppingBucket:
    """Empty."""
    return SteppingBucket()


@pytest.fixture
def one(tmp_path: Path, bucket: SteppingBucket) -> Machine:
    """A replica that knows what the bucket has."""
    return replica(tmp_path, bucket, "one")


@pytest.fixture
def two(tmp_path: Path, bucket: SteppingBucket) -> Machine:
    """Another one."""
    return replica(tmp_path, bucket, "two")


@pytest.fixture
def three(tmp_path: Path, bucket: SteppingBucket) -> Machine:
    """A third one."""
    return replica(tmp_path, bucket, "three")


def replica(tmp_path: Path, bucket: SteppingBucket, name: str) -> Machine:
    """A replica with a disk of its own."""
    machine = Machine(tmp_path / name, bucket, replica=name)
    machine.list_all()
    return machine


@pytest.mark.parametrize("reads", [Reads.STRICT, Reads.OWN])
class TestClusterTree(RecordTreeSuite):
    """Two replicas are one store."""

    # each list looks at the journals
    places = 6

    @pytest.fixture
    def tree(self, one: Machine, reads: Reads) -> RecordTree:
        """Empty."""
        return one.tree(reads)

    @pytest.fixture
    def another(self, two: Machine, reads: Reads) -> RecordTree:
        """The same records at another replica."""
        return two.tree(reads)

    def test_a_first_record_is_counted(self, tree: RecordTree, another: RecordTree) -> None:
        """By the replica that writes it, and by every other one when it lists the repositories."""
        before = another.repositories_added()
        tree.write(KEY, ONE)
        assert list(another.repositories(("_tags",))) == [APP]
        assert another.repositories_added() > before


WRITES: list[tuple[str, Callable[[BucketTree], object], bytes | None]] = [
    ("created", lambda tree: tree.write(KEY, TWO, expect=ABSENT), TWO),
    ("replaced", lambda tree: tree.write(KEY, TWO), TWO),
    ("dropped", lambda tree: tree.drop(KEY), None),
]


@pytest.mark.parametrize(("before", "change"), [(each, number) for number, each in enumerate((False, True, True))])
@pytest.mark.parametrize("settles", [False, True])
def test_row_132_a_change_is_seen_by_the_next_pull(
    one: Machine, two: Machine, *, before: bool, change: int, settles: bool
) -> None:
    """Whether the journal still says that it is being made, or names it already; by record and by name."""
    if before:
        one.tree().write(KEY, ONE)
        one.settle()
    pull = two.tree(Reads.LENIENT)
    assert content_of(pull) == (ONE if before else None)
    assert pull.names(TAGS) == (["1.0"] if before else [])
    WRITES[change][1](one.tree())
    if settles:
        one.settle()
    two.steady += 2.0
    assert content_of(pull) == WRITES[change][2]
    assert pull.names(TAGS) == (["1.0"] if WRITES[change][2] else [])


def test_a_pull_costs_one_request(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """Once the record is remembered and nobody writes; a look that is young enough costs none."""
    one.tree().write(KEY, ONE)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    for _ in range(2):
        assert content_of(pull) == ONE
        assert pull.names(TAGS) == ["1.0"]
        two.steady += 2.0
    before = bucket.calls.total()
    assert content_of(pull) == ONE
    assert pull.names(TAGS) == ["1.0"]
    assert bucket.calls.total() == before + 1


def test_132_what_is_read_while_a_change_is_noted_is_not_believed_afterwards(one: Machine, two: Machine) -> None:
    """By another process of that replica, whose look at the journal came before the change."""
    counter, journals = ChangeFiles(Layout(two.root)), two.journals()
    assert journals
    counts, pull = FollowedChanges(counter, journals), two.tree(Reads.LENIENT, two.another_memory())
    one.tree().write(KEY, ONE)
    one.settle()
    assert content_of(pull) == ONE
    one.tree().write(KEY, TWO)
    one.settle()
    read: list[tuple[int, bytes | None]] = []

    class Changed(list[Repo]):
        def append(self, repo: Repo) -> None:
            counter.note_change(repo)
            read.append((counts.changes(repo), content_of(pull)))

    two.changed = Changed()
    looking = two.journals()
    assert looking
    assert looking.sync(APP)
    assert [content for _, content in read] == [ONE]
    assert counts.changes(APP) != read[0][0]


def test_a_burst_of_writes_costs_two_writes_of_the_journal(one: Machine, bucket: SteppingBucket) -> None:
    """One at its beginning, one after its end; and one each twenty seconds in between."""
    tree = one.tree()
    for number in range(10):
        tree.write(f"{TAGS}/{number}", ONE)
    one.settle()
    assert sum(verb == "write" and keys == (JOURNAL,) for verb, keys in bucket.log) == 2


def _steps(bucket: SteppingBucket, work: Callable[[], object]) -> int:
    before = bucket.calls.total()
    work()
    return bucket.calls.total() - before


@pytest.mark.parametrize("step", range(1, 10))
@pytest.mark.parametrize("change", range(3))
@pytest.mark.parametrize("done", [False, True])
def test_a_writer_that_dies_leaves_no_two_truths(
    tmp_path: Path, bucket: SteppingBucket, change: int, step: int, *, done: bool
) -> None:
    """At every step of its write. What one of the others sees after that, all of them see; and a minute later no trace
    of the writer is left.
    """
    one, two, three = (replica(tmp_path, bucket, name) for name in ("one", "two", "three"))
    if change:
        one.tree().write(KEY, ONE)
        one.settle()
    for each in (two, three):
        content_of(each.tree(Reads.LENIENT))
        each.tree(Reads.LENIENT).names(TAGS)
    bucket.stop_at(step, Killed(), done=done)
    with suppress(Killed):
        WRITES[change][1](one.tree())
        one.settle()
    _ = bucket.reached
    seen = content_of(two.tree())
    for each in (two, three):
        for _ in range(4):
            each.steady += 30.0
            pull = each.tree(Reads.LENIENT)
            assert content_of(pull) == seen
            assert pull.names(TAGS) == (["1.0"] if seen else [])
    assert b'"writing":{}' in bucket.content().get(JOURNAL, b'"writing":{}')
    for each in (two, three):
        each.tree().write(KEY, THREE)
        each.settle()
        for other in (two, three):
            other.steady += 2.0
            assert content_of(other.tree(Reads.LENIENT)) == THREE


@pytest.mark.parametrize("step", range(1, 12))
@pytest.mark.parametrize("change", range(3))
def test_a_reader_between_any_two_steps_of_a_writer(
    tmp_path: Path, bucket: SteppingBucket, change: int, step: int
) -> None:
    """It reads what was there or what is there now; after the writer's return, what is there now."""
    one, two = (replica(tmp_path, bucket, name) for name in ("one", "two"))
    if change:
        one.tree().write(KEY, ONE)
        one.settle()
    content_of(two.tree(Reads.LENIENT))
    seen: list[bytes | None] = []

    def read() -> None:
        two.steady += 2.0
        seen.append(content_of(two.tree(Reads.LENIENT)))
        two.tree(Reads.LENIENT).names(TAGS)

    bucket.act_at(step, read)
    WRITES[change][1](one.tree())
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == WRITES[change][2]
    one.settle()
    _ = bucket.reached
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == WRITES[change][2]
    assert set(seen) <= {ONE if change else None, WRITES[change][2]}


@pytest.mark.parametrize("step", range(1, 8))
def test_a_writer_between_any_two_steps_of_a_reader(tmp_path: Path, bucket: SteppingBucket, step: int) -> None:
    """What it then believes is not what was there before."""
    one, two = (replica(tmp_path, bucket, name) for name in ("one", "two"))
    one.tree().write(KEY, ONE)
    one.settle()

    def write() -> None:
        one.tree().write(KEY, TWO)
        one.settle()

    bucket.act_at(step, write)
    content_of(two.tree(Reads.LENIENT))
    two.tree(Reads.LENIENT).names(TAGS)
    if bucket.reached:
        two.steady += 2.0
        assert content_of(two.tree(Reads.LENIENT)) == TWO


def test_row_124_a_writer_that_was_frozen(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """Its entry was taken away meanwhile, and others believe what they remember: the write that arrives late is seen by
    them before it is acknowledged.
    """
    one.tree().write(KEY, ONE)
    one.settle()
    assert content_of(two.tree(Reads.LENIENT)) == ONE

    def freeze() -> None:
        for _ in range(2):
            two.steady += 61.0
            assert content_of(two.tree(Reads.LENIENT)) == ONE
        assert b'"writing":{}' in bucket.content()[JOURNAL]
        one.steady += 122.0

    found = one.tree().read(KEY)
    assert found
    bucket.act_at(2, freeze)
    one.tree().write(KEY, TWO, expect=found.version)
    assert bucket.reached
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == TWO
    one.settle()
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == TWO


def test_a_write_whose_answer_is_lost_may_arrive_for_minutes(
    one: Machine, two: Machine, bucket: SteppingBucket
) -> None:
    """Until then nobody believes what is remembered."""
    one.tree().write(KEY, ONE)
    one.settle()
    assert content_of(two.tree(Reads.LENIENT)) == ONE
    found = one.tree().read(KEY)
    assert found
    bucket.stop_at(2, BucketUnavailable("no answer"))
    with pytest.raises(BucketUnavailable):
        one.tree().write(KEY, TWO, expect=found.version)
    assert bucket.reached
    for _ in range(9):
        one.steady += 15.0
        two.steady += 15.0
        journals = one.journals()
        assert journals
        assert journals.settle_all()
        assert content_of(two.tree(Reads.LENIENT)) == ONE
    # it arrives
    bucket.write(KEY, TWO, expect=found.version)
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == TWO
    one.steady += 301.0
    one.settle()
    two.steady += 2.0
    assert content_of(two.tree(Reads.LENIENT)) == TWO
    assert b'"writing":{}' in bucket.content()[JOURNAL]


def test_who_was_away_for_long_doubts_everything(one: Machine, two: Machine) -> None:
    """A journal names only so many changes; an earlier one says nothing of a later."""
    for number in range(450):
        one.tree().write(f"{TAGS}/{number}", ONE)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    assert len(pull.names(TAGS)) == 450
    assert content_of(pull, f"{TAGS}/7") == ONE
    one.tree().drop(f"{TAGS}/7")
    one.tree().write(f"{TAGS}/8", TWO)
    one.settle()
    for number in range(450):
        if number not in (7, 8):
            one.tree().write(f"{TAGS}/{number}", TWO)
    one.tree().write(f"{TAGS}/new", ONE)
    one.settle()
    two.steady += 2.0
    assert content_of(pull, f"{TAGS}/7") is None
    assert content_of(pull, f"{TAGS}/8") == TWO
    assert sorted(pull.names(TAGS)) == sorted([*(str(each) for each in range(450) if each != 7), "new"])


@pytest.mark.parametrize("spoil", ["lose", "damage"])
def test_a_journal_that_is_lost_or_damaged(one: Machine, two: Machine, bucket: SteppingBucket, spoil: str) -> None:
    """Is begun anew, and nobody believes what was remembered before it."""
    one.tree().write(KEY, ONE)
    one.settle()
    assert content_of(two.tree(Reads.LENIENT)) == ONE
    if spoil == "lose":
        bucket.lose(JOURNAL)
    else:
        bucket.write(JOURNAL, b"{")
    one.steady += 2.0
    one.tree().write(KEY, TWO)
    one.settle()
    for _ in range(3):
        two.steady += 61.0
        assert content_of(two.tree(Reads.LENIENT)) == TWO
    assert b'"writing":{}' in bucket.content()[JOURNAL]


def test_a_journal_of_a_later_version_is_left_alone(one: Machine, bucket: SteppingBucket) -> None:
    """What this version would write into it, the other one may not understand."""
    bucket.write(JOURNAL, b'{"format": 2}')
    with pytest.raises(BucketUnavailable, match="format 2"):
        one.tree().write(KEY, ONE)
    assert KEY not in bucket.content()


def test_what_a_later_version_writes_is_seen_by_the_next_pull(
    one: Machine, two: Machine, bucket: SteppingBucket
) -> None:
    """It may say anything in its journals. Those of other repositories are looked at as ever."""
    other = "repositories/corp/other/_tags/1.0"
    for key in (KEY, other):
        one.tree().write(key, ONE)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    assert [content_of(pull), content_of(pull, other)] == [ONE, ONE]
    for number in (TWO, THREE):
        bucket.write(JOURNAL, b'{"format": 2, "of": "%d"}' % len(bucket.log))
        bucket.write(KEY, number)
        one.tree().write(other, number)
        one.settle()
        two.steady += 100.0
        assert [content_of(pull), content_of(pull, other)] == [number, number]
    assert b'"format": 2' in bucket.content()[JOURNAL]


def test_tag_freshness_is_for_pulls_alone(one: Machine, two: Machine) -> None:
    """What decides about a change, such as a freeze, is what is there now."""
    key = "state/freezes/1.json"
    journals = two.journals(freshness=60.0)
    pull, change = (
        BucketTree(two.bucket, two.memory, reads, journals=journals) for reads in (Reads.LENIENT, Reads.OWN)
    )
    one.tree().write(key, ONE)
    one.settle()
    assert [content_of(pull, key), content_of(change, key)] == [ONE, ONE]
    one.tree().write(key, TWO)
    assert [content_of(pull, key), content_of(change, key)] == [ONE, TWO]


def test_pulls_go_on_while_the_bucket_is_down(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """With what was believed when the journal was last seen; after the first failure nobody waits for it."""
    one.tree().write(KEY, ONE)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    assert content_of(pull) == ONE
    assert pull.names(TAGS) == ["1.0"]
    two.steady += 2.0
    bucket.down = True
    assert content_of(pull) == ONE
    before = bucket.calls.total()
    assert content_of(pull) == ONE
    assert pull.names(TAGS) == ["1.0"]
    assert bucket.calls.total() == before
    for reads in (Reads.STRICT, Reads.OWN):
        with pytest.raises(BucketUnavailable):
            two.tree(reads).read(KEY)


def test_a_journal_that_is_throttled_says_nothing_of_the_others(
    one: Machine, two: Machine, bucket: SteppingBucket
) -> None:
    """Its own records are believed meanwhile; those of another repository are asked for."""
    other = "repositories/corp/other/_tags/1.0"
    for key in (KEY, other):
        one.tree().write(key, ONE)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    assert [content_of(pull), content_of(pull, other)] == [ONE, ONE]
    one.tree().write(other, TWO)
    one.settle()
    two.steady += 2.0
    bucket.stop_at(1, BucketThrottled("fewer requests"))
    assert content_of(pull) == ONE
    assert bucket.reached
    assert content_of(pull, other) == TWO


def test_a_robot_that_is_not_known_may_be_another_replicas(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """While the bucket is down nobody can say that there is none; that nothing is frozen is believed."""
    robot, freeze = f"state/robots/{'0' * 32}.json", f"state/freezes/{'0' * 32}.json"
    for key in (robot, freeze):
        one.tree().write(key, ONE)
        one.tree().drop(key)
    one.settle()
    pull = two.tree(Reads.LENIENT)
    assert [content_of(pull, robot), content_of(pull, freeze)] == [None, None]
    two.steady += 2.0
    bucket.down = True
    assert content_of(pull, freeze) is None
    with pytest.raises(BucketUnavailable):
        pull.read(robot)


@pytest.mark.parametrize("reads_again", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_127_what_was_read_again_is_believed_while_the_bucket_is_down(
    one: Machine, two: Machine, bucket: SteppingBucket, *, changes: bool, reads_again: bool
) -> None:
    """Also what was read while it was being written, and what another replica has changed since then. What a journal
    names and nobody has read again is not.
    """
    other = f"{TAGS}/2.0"
    one.tree().write(KEY, ONE)
    one.tree().write(other, ONE)
    pull = two.tree(Reads.LENIENT)
    assert [content_of(pull), content_of(pull, other)] == [ONE, ONE]
    one.settle()
    if changes:
        two.tree().catch_up()
        one.tree().write(KEY, TWO)
        one.settle()
    two.tree().catch_up()
    if reads_again:
        assert two.tree().read_doubted(100, 60.0) == 2
        assert two.tree().read_doubted(100, 60.0) == 0
    two.steady += 2.0
    bucket.down = True
    if reads_again:
        assert [content_of(pull), content_of(pull, other)] == [TWO if changes else ONE, ONE]
        return
    for key in (KEY, other):
        with pytest.raises(BucketUnavailable):
            pull.read(key)


def test_what_another_replica_still_writes_is_not_read_again(one: Machine, two: Machine) -> None:
    """It would be doubted once more; nor are more than may be."""
    keys = [f"{TAGS}/{number}" for number in range(5)]
    for key in keys:
        one.tree().write(key, ONE)
        assert content_of(two.tree(Reads.LENIENT), key) == ONE
    one.settle()
    one.tree().write(KEY, ONE)
    two.tree().catch_up()
    assert two.tree().read_doubted(100, 60.0) == 0
    one.settle()
    two.tree().catch_up()
    assert [two.tree().read_doubted(3, 60.0) for _ in range(3)] == [3, 2, 0]
    assert one.tree().read_doubted(100, 60.0) == 0


@pytest.mark.parametrize("before", [False, True], ids=["absent", "another"])
def test_a_pull_that_must_ask_does_not_believe_its_memory(
    one: Machine, two: Machine, bucket: SteppingBucket, *, before: bool
) -> None:
    """If the bucket fails between the look at the journal, in which another replica writes, and the record."""
    if before:
        one.tree().write(KEY, ONE)
        one.settle()
    pull = two.tree(Reads.LENIENT)
    assert content_of(pull) == (ONE if before else None)
    one.tree().write(KEY, TWO)
    two.steady += 2.0
    bucket.stop_at(2, BucketUnavailable("no answer"))
    with pytest.raises(BucketUnavailable):
        pull.read(KEY)
    assert bucket.reached
    assert content_of(pull) == TWO


def test_a_notice_lets_the_next_pull_ask(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """If the bucket is down by then, what was seen before the notice is still believed."""
    one.tree().write(KEY, ONE)
    one.settle()
    journals = two.journals(freshness=60.0)
    assert journals
    pull = BucketTree(two.bucket, two.memory, Reads.LENIENT, journals=journals)
    assert content_of(pull) == ONE
    one.tree().write(KEY, TWO)
    one.settle()
    assert content_of(pull) == ONE
    journals.doubt([APP], [])
    bucket.down = True
    assert content_of(pull) == ONE
    bucket.down = False
    two.steady += 6.0
    assert content_of(pull) == TWO


def test_a_name_that_was_released_is_taken_again(one: Machine, two: Machine, bucket: SteppingBucket) -> None:
    """By a push at a replica that still believes it is taken: otherwise an upstream would be asked for the name."""
    one.tree().write(KEY, ONE)
    one.tree().drop(KEY)
    one.settle()
    assert two.tree().name_taken(APP) is None
    two.tree().learn_name(APP)
    assert two.tree().name_taken(APP)
    assert one.tree().forget(APP, ("_tags",))
    two.tree().write(KEY, TWO)
    one.steady += 2.0
    assert list(one.tree().had(APP, ("_tags",)))


def _with_a_name_without_records(tmp_path: Path, bucket: SteppingBucket) -> tuple[Machine, Machine]:
    """Two replicas that know that the name is taken."""
    one, two = (replica(tmp_path, bucket, name) for name in ("one", "two"))
    one.tree().write(KEY, ONE)
    one.tree().drop(KEY)
    one.settle()
    two.tree().learn_name(APP)
    return one, two


@pytest.mark.parametrize("step", range(1, 14))
def test_a_push_between_any_two_steps_of_a_release(tmp_path: Path, bucket: SteppingBucket, step: int) -> None:
    """The name is taken in the end, whoever was first."""
    one, two = _with_a_name_without_records(tmp_path, bucket)

    def push() -> None:
        two.tree().write(KEY, TWO)

    bucket.act_at(step, push)
    one.tree().forget(APP, ("_tags",))
    if bucket.reached:
        for each in (one, two):
            each.steady += 2.0
            assert list(each.tree().had(APP, ("_tags",)))


@pytest.mark.parametrize("step", range(1, 14))
def test_a_release_between_any_two_steps_of_a_push(tmp_path: Path, bucket: SteppingBucket, step: int) -> None:
    """The same the other way round."""
    one, two = _with_a_name_without_records(tmp_path, bucket)

    def release() -> None:
        one.tree().forget(APP, ("_tags",))

    bucket.act_at(step, release)
    two.tree().write(KEY, TWO)
    _ = bucket.reached
    for each in (one, two):
        each.steady += 2.0
        assert list(each.tree().had(APP, ("_tags",)))


def test_a_name_that_another_replica_takes_is_never_free(one: Machine, two: Machine) -> None:
    """Also if the memory is complete; only a look at the bucket says that it is free, and for a moment."""
    assert two.tree().name_taken(APP) is None
    assert two.tree().must_learn(APP)
    tree = two.tree()
    tree.learn_name(APP)
    assert tree.name_taken(APP) is False
    assert tree.must_learn(APP)
    one.tree().write(KEY, ONE)
    tree.learn_name(APP)
    assert tree.name_taken(APP)
