"""Processes that write, read and list the same few records of a bucket at the same time, while the bucket fails and
processes die: whatever is known at the end is what the bucket has, and nobody was told something else meanwhile.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Final, cast

import pytest

from mirror.errors import MirrorError, RecordChanged
from mirror.ports import ABSENT, Expected, RecordMemory, RecordState, Version
from mirror.store.objects.record_tree import DELETED_SIZE, BucketTree, Reads
from tests.support.bucket_records import Machine
from tests.support.hooked import Hooked
from tests.support.memory_bucket import MemoryBucket

_FOLDER: Final = "repositories/corp/app/_tags"
_NAMES: Final = ("1", "2", "3")
_STEPS: Final = 120


class Killed(BaseException):
    """A process that is not there any more."""


def _kill() -> None:
    raise Killed


class Worker:
    """A process that does as its dice say. Each content is written once, so that a later one is known as such."""

    def __init__(self, machine: Machine, seed: int, number: int) -> None:
        self.dice = random.Random(seed * 100 + number)
        self.machine = machine
        self.number = number
        self.count = 0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """Many steps."""
        for _ in range(_STEPS):
            try:
                self.step()
            except (MirrorError, Killed):
                continue
            except BaseException as error:
                self.errors.append(error)
                return

    def step(self) -> None:
        """One call of one process, which may die in it."""
        key, dice = f"{_FOLDER}/{dice_name(self.dice)}", self.dice
        memory: RecordMemory = self.machine.memory
        if dice.random() < 0.1:
            dying = Hooked(memory)
            dying.before(dice.choice(["begin", "end", "note"]), _kill)
            memory = cast(RecordMemory, dying)
        tree = BucketTree(self.machine.bucket, memory, dice.choice(list(Reads)))
        if dice.random() < 0.1:
            self.machine.bucket.fail(dice.choice(["read", "write"]), done=dice.random() < 0.5)
        what = dice.random()
        if what < 0.4:
            self.count += 1
            found = tree.read(key) if dice.random() < 0.5 else None
            expect = dice.choice([None, ABSENT, found.version if found else None])
            tree.write(key, b'{"by": %d, "n": %d}' % (self.number, self.count), expect=expect)
        elif what < 0.6:
            tree.drop(key)
        elif what < 0.9:
            tree.read(key)
        elif what < 0.95:
            tree.names(_FOLDER)
        else:
            self.machine.list_all()


def dice_name(dice: random.Random) -> str:
    """The name of a record."""
    return dice.choice(_NAMES)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_known_is_what_the_bucket_has(tmp_path: Path, seed: int) -> None:
    """Also what is not known is read right, and the next write makes it known."""
    machine = Machine(tmp_path)
    machine.list_all()
    workers = [Worker(machine, seed, number) for number in range(4)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [worker.errors for worker in workers] == [[]] * 4
    _heal(machine.bucket)
    for again in range(2):
        _compare(machine)
        machine.steady += 301
        if again:
            continue
        for name in _NAMES:
            machine.tree().read(f"{_FOLDER}/{name}")
    for name in _NAMES:
        machine.tree().write(f"{_FOLDER}/{name}", b"{}")
        machine.bucket.down = True
        found = machine.tree(Reads.LENIENT).read(f"{_FOLDER}/{name}")
        machine.bucket.down = False
        assert found
        assert found.record == b"{}"


def _heal(bucket: MemoryBucket) -> None:
    while bucket.pending:
        for verb in ("read", "write", "list"):
            try:
                bucket.write("x", b"x") if verb == "write" else bucket.read("x", 10)
            except MirrorError:
                continue
    bucket.delete(["x"])


def _compare(machine: Machine) -> None:
    there = machine.bucket.content()
    for row in machine.memory.scan("", "~", 100):
        content = there.get(row.key)
        is_deleted = content is None or (len(content) == DELETED_SIZE and not content[0])
        if row.state is RecordState.LIVE:
            assert not is_deleted, row
            assert row.content in (None, content), row
        elif row.state is RecordState.DELETED:
            assert is_deleted, row
    for name in _NAMES:
        content = there.get(f"{_FOLDER}/{name}")
        is_deleted = content is None or (len(content) == DELETED_SIZE and not content[0])
        found = machine.tree().read(f"{_FOLDER}/{name}")
        assert (found.record if found else None) == (None if is_deleted else content)
        assert (name in machine.tree().names(_FOLDER)) is not is_deleted
        with pytest.raises(RecordChanged):
            machine.tree().write(f"{_FOLDER}/{name}", b"{2}", expect=_other(found is not None))


def _other(is_there: bool) -> Expected:
    return ABSENT if is_there else Version("that nothing has")
