"""Processes that write, read and list the same few records of a bucket at the same time, while the bucket fails and
processes die: whatever is known at the end is what the bucket has, and nobody was told something else meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import pytest

from mirror.errors import MirrorError, RecordChanged
from mirror.ports import ABSENT, Expected, NotChanged, RecordMemory, RecordState, StoredObject, Version
from mirror.store.objects.record_tree import DELETED_SIZE, BucketTree, Reads
from tests.support.bucket_records import Machine
from tests.support.hooked import Hooked
from tests.support.memory_bucket import MemoryBucket

_FOLDER: Final = "repositories/corp/app/_tags"
_NAMES: Final = ("1", "2", "3")
#: Rounds, after each of which everything is still, and steps of each process in one.
_ROUNDS: Final = 60
_STEPS: Final = 3


class Killed(BaseException):
    """A process that is not there any more."""


def _kill() -> None:
    raise Killed


class Far(MemoryBucket):
    """Other threads run before a call takes effect, and before it is answered."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.dice = random.Random(seed)

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        """After others, and before others."""
        self._let_others()
        found = super().read(key, limit, unless=unless)
        self._let_others()
        return found

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        """After others, and before others."""
        self._let_others()
        version = super().write(key, content, expect=expect)
        self._let_others()
        return version

    def _let_others(self) -> None:
        if self.dice.random() < 0.5:
            time.sleep(self.dice.random() * 0.002)


class Worker:
    """A process that does as its dice say. Each content is written once, so that a later one is known as such."""

    def __init__(self, machine: Machine, seed: int, number: int) -> None:
        self.dice = random.Random(seed * 100 + number)
        self.machine = machine
        self.number = number
        self.count = 0

    def run(self) -> None:
        """A few steps."""
        for _ in range(_STEPS):
            with suppress(MirrorError, Killed):
                self.step()

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
    machine = Machine(tmp_path, Far(seed))
    machine.list_all()
    workers = [Worker(machine, seed, number) for number in range(4)]
    with ThreadPoolExecutor(len(workers)) as pool:
        for _ in range(_ROUNDS):
            for done in [pool.submit(worker.run) for worker in workers]:
                done.result()
            _compare(machine)
            machine.steady += workers[0].dice.choice([1, 301])
    _heal(machine.bucket)
    machine.steady += 301
    for name in _NAMES:
        _check_reads(machine, name)
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
    """Nothing is known that is not so."""
    there = machine.bucket.content()
    for row in machine.memory.scan("", "~", 100):
        content = _live(there, row.key)
        if row.state is RecordState.LIVE:
            assert content is not None, row
            assert row.content in (None, content), row
        elif row.state is RecordState.DELETED:
            assert content is None, row


def _check_reads(machine: Machine, name: str) -> None:
    content = _live(machine.bucket.content(), f"{_FOLDER}/{name}")
    found = machine.tree().read(f"{_FOLDER}/{name}")
    assert (found.record if found else None) == content
    assert (name in machine.tree().names(_FOLDER)) is (content is not None)
    wrong: Expected = ABSENT if found else Version("that nothing has")
    with pytest.raises(RecordChanged):
        machine.tree().write(f"{_FOLDER}/{name}", b"{2}", expect=wrong)


def _live(there: Mapping[str, bytes], key: str) -> bytes | None:
    """The content of a record; None if it is absent or deleted."""
    content = there.get(key)
    return None if content is None or (len(content) == DELETED_SIZE and not content[0]) else content
