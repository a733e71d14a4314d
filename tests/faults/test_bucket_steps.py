"""Each request of a change of hosted content to the bucket, and of its collection, goes wrong once.

The process is killed before or after it, or the bucket does not answer before or after it, or the request arrives long
after its sender has given up. Then the machine starts again, with its disk, with what a power cut has left of it, or
with an empty one. What was acknowledged is there, whole; what was not can be made again; a pull believes nothing wrong;
and what nothing needs goes in the end. The numbers are those of the rows of faults in docs/operations.md.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import structlog

from mirror.errors import BucketUnavailable, MirrorError, StoreError
from mirror.oci.digest import Digest
from tests.support.hosting_process import HostingProcess, Image, SiteTime
from tests.support.stepping_bucket import Killed, SteppingBucket

_BASE, _OLD, _NEW = b"the base", b"the old layer", b"the new layer"
_FIRST: Final = Image((_BASE, _OLD))
_SECOND: Final = Image((_BASE, _NEW))
_IMAGES: Final = (_FIRST, _SECOND)
#: More requests than any of the changes takes.
_MANY: Final = 400


def _first_is_here(process: HostingProcess) -> None:
    process.push_image(_FIRST, "v1")
    process.put(_FIRST, "stable")


def _layers_are_here(process: HostingProcess) -> None:
    _first_is_here(process)
    process.upload(_NEW)


def _was_deleted(process: HostingProcess) -> None:
    _first_is_here(process)
    process.delete(_FIRST)


def _waits_to_be_collected(process: HostingProcess) -> None:
    """The second image was deleted long ago, and a round has been. The first one stays."""
    _first_is_here(process)
    process.push_image(_SECOND, "v2")
    process.delete(_SECOND, keep=False)
    for _ in range(2):
        process.time.passes(150.0)
        process.collect()


def _was_collected(process: HostingProcess) -> None:
    _waits_to_be_collected(process)
    for _ in range(3):
        process.time.passes(150.0)
        process.collect()


def _is_left_behind(process: HostingProcess) -> None:
    """Objects that no state names, one of them without any state."""
    _first_is_here(process)
    process.bucket.stop_at(3, BucketUnavailable("on purpose"))
    with suppress(StoreError):
        process.upload(_NEW)
    assert process.bucket.reached
    process.time.passes(200_000.0)


def _is_lost(process: HostingProcess) -> None:
    """The object of a layer has gone, and that was found."""
    _layers_are_here(process)
    found = process.blobs.source(Digest.of(_NEW))
    assert found
    process.bucket.lose(found.key)
    process.blobs.lost(found, "on purpose")


def _rounds(process: HostingProcess) -> None:
    for _ in range(4):
        process.time.passes(150.0)
        process.collect()


def _stays(process: HostingProcess) -> bool:
    """What is collected is not the first image."""
    assert process.pulled("v1") == process.pulled("stable") == _FIRST.digest
    assert process.has_image(_FIRST)
    return True


def _tag_has_moved(process: HostingProcess) -> bool:
    assert process.pulled("stable") == _FIRST.digest
    assert process.has_image(_FIRST)
    now = process.pulled("v1")
    assert now in (_FIRST.digest, _SECOND.digest)
    assert now == _FIRST.digest or process.has_image(_SECOND)
    return now == _SECOND.digest


def _tag_is_gone(process: HostingProcess) -> bool:
    assert process.pulled("stable") == _FIRST.digest
    assert process.has_image(_FIRST)
    now = process.pulled("v1")
    assert now in (_FIRST.digest, None)
    return now is None


def _manifest_is_gone(process: HostingProcess) -> bool:
    is_gone = not process.has_image(_FIRST)
    expected = None if is_gone else _FIRST.digest
    assert process.pulled("v1") == process.pulled("stable") == expected
    return is_gone


def _manifest_is_back(process: HostingProcess) -> bool:
    """With its tags, as soon as that was acknowledged."""
    return process.has_image(_FIRST) and process.pulled("v1") == process.pulled("stable") == _FIRST.digest


@dataclass(frozen=True, slots=True)
class _Change:
    """`seen` says whether a client sees the change, and fails if it sees neither the old nor the new state."""

    prepare: Callable[[HostingProcess], object]
    make: Callable[[HostingProcess], object]
    seen: Callable[[HostingProcess], bool]


CHANGES: Final = {
    "upload": _Change(_first_is_here, lambda process: process.upload(_NEW), lambda process: process.has_blob(_NEW)),
    "upload again": _Change(
        _was_collected, lambda process: process.upload(_NEW), lambda process: process.has_blob(_NEW)
    ),
    "upload of what waits": _Change(
        _waits_to_be_collected, lambda process: process.upload(_NEW), lambda process: process.has_blob(_NEW)
    ),
    "repair": _Change(
        _is_lost,
        lambda process: process.upload(_NEW),
        lambda process: process.blobs.source(Digest.of(_NEW)) is not None,
    ),
    "push of a manifest": _Change(_layers_are_here, lambda process: process.put(_SECOND, "v1"), _tag_has_moved),
    "deletion of a tag": _Change(_first_is_here, lambda process: process.delete_tag("v1"), _tag_is_gone),
    "deletion of a manifest": _Change(_first_is_here, lambda process: process.delete(_FIRST), _manifest_is_gone),
    "deletion at once": _Change(_first_is_here, lambda process: process.delete(_FIRST, keep=False), _manifest_is_gone),
    "undeletion": _Change(_was_deleted, lambda process: process.undelete(_FIRST), _manifest_is_back),
    "deletion of a blob": _Change(
        _layers_are_here, lambda process: process.delete_blob(_NEW), lambda process: not process.has_blob(_NEW)
    ),
    "collection": _Change(_waits_to_be_collected, _rounds, _stays),
    "sweep": _Change(_is_left_behind, HostingProcess.sweep, _stays),
}


@dataclass(frozen=True, slots=True)
class _Fault:
    """What becomes of the request, and of its sender."""

    error: Callable[[], BaseException]
    done: bool = False
    late: bool = False
    #: Of other faults, those of reads are the same as those of the change before.
    counts_changes: bool = True


FAULTS: Final = {
    "killed before": _Fault(Killed),
    "killed after": _Fault(Killed, done=True),
    "no answer before": _Fault(lambda: BucketUnavailable("on purpose"), counts_changes=False),
    "no answer after": _Fault(lambda: BucketUnavailable("on purpose"), done=True),
    "killed, and it arrives late": _Fault(Killed, late=True),
    "no answer, and it arrives late": _Fault(lambda: BucketUnavailable("on purpose"), late=True),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, structlog.testing.capture_logs():
        yield Path(name)


class _Machine:
    """Starts one process after the other."""

    def __init__(self, root: Path, replica: str) -> None:
        self.root = root
        self.bucket = SteppingBucket()
        self.time = SiteTime(self.bucket)
        self._replica = replica
        self._boot = 0
        self.process = self._start()

    def _start(self) -> HostingProcess:
        process = HostingProcess(self.root, self.bucket, self.time, boot=f"boot {self._boot}", replica=self._replica)
        process.list_all()
        return process

    def note(self) -> None:
        """What is on the disk now survives a power cut."""
        self._saved = self.root.with_name(f"{self.root.name}-saved")
        shutil.copytree(self.root, self._saved)

    def restart(self, how: int) -> None:
        """With the disk as it is, as it was when it was noted, or empty."""
        self.process.close()
        if how:
            shutil.rmtree(self.root)
            self._boot += 1
        if how == 1:
            shutil.copytree(self._saved, self.root)
        self.process = self._start()


@pytest.mark.parametrize(
    ("fault", "replica"),
    [*((fault, "") for fault in FAULTS), ("killed after", "one"), ("no answer, and it arrives late", "one")],
)
@pytest.mark.parametrize("change", CHANGES)
def test_113_122_each_request_of_a_change_goes_wrong(folder: Path, change: str, fault: str, replica: str) -> None:
    """Rows 113 and 122: see above."""
    what, how = CHANGES[change], FAULTS[fault]
    for number in range(1, _MANY):
        machine = _Machine(folder / str(number), replica)
        what.prepare(machine.process)
        machine.note()
        machine.bucket.counts_changes = how.counts_changes
        machine.bucket.stop_at(number, how.error(), done=how.done, late=how.late)
        acknowledged = False
        with suppress(StoreError, Killed):
            what.make(machine.process)
            acknowledged = True
        if not machine.bucket.reached:
            assert acknowledged
            assert number > 2
            break
        if not isinstance(how.error(), Killed):
            _judge(machine.process, what, acknowledged)
        machine.restart(number % 3)
        _judge(machine.process, what, acknowledged)
        if number % 2:
            machine.bucket.arrive()
        _make_again(machine.process, what)
        machine.bucket.arrive()
        # after a power cut nobody knows any more that something is on its way
        _judge(machine.process, what, True, remembers=not (how.late and number % 3))
        machine.time.passes(400.0)
        machine.process.delete_everything(_IMAGES)
        machine.process.tidy()
        assert not machine.process.blobs_left(), machine.process.blobs_left()
        machine.process.close()
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        pytest.fail("it has no end")


def _judge(process: HostingProcess, what: _Change, acknowledged: bool, *, remembers: bool = True) -> None:
    if remembers:
        process.memory_is_right()
    if acknowledged:
        assert what.seen(process)
    else:
        with suppress(MirrorError):
            what.seen(process)


def _make_again(process: HostingProcess, what: _Change) -> None:
    """As a client does that got no answer: what is not there any more needs no deletion."""
    for _ in range(3):
        with suppress(MirrorError):
            what.make(process)
        if what.seen(process):
            return
    pytest.fail("it cannot be made any more")


@dataclass(frozen=True, slots=True)
class _Meanwhile:
    """What another worker or replica does meanwhile, and what is then seen as long as nobody changes it."""

    make: Callable[[HostingProcess], object]
    seen: Callable[[HostingProcess], bool]


MEANWHILE: Final = {
    "push": _Meanwhile(
        lambda process: process.push_image(_SECOND, "v2"),
        lambda process: process.pulled("v2") == _SECOND.digest and process.has_image(_SECOND),
    ),
    "push of a manifest": _Meanwhile(
        lambda process: process.put(_SECOND, "v2"),
        lambda process: process.pulled("v2") == _SECOND.digest and process.has_image(_SECOND),
    ),
}


@pytest.mark.parametrize(("where", "fault"), [("worker", "killed before"), ("replica", "killed, and it arrives late")])
@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("change", CHANGES)
def test_121_122_a_change_dies_after_another_one_came_between(
    folder: Path, change: str, meanwhile: str, fault: str, where: str
) -> None:
    """Rows 121 and 122: the other one is made whole before the n-th request of the first, which dies at a later one.
    What the other one was told stays so.
    """
    what, other, how = CHANGES[change], MEANWHILE[meanwhile], FAULTS[fault]
    number, later = 1, 0
    while True:
        machine = _Machine(folder / "one", "one" if where == "replica" else "")
        what.prepare(machine.process)
        root = folder / "two" if where == "replica" else machine.root
        second = HostingProcess(root, machine.bucket, machine.time, boot="boot 0", replica="two" * (where == "replica"))
        second.list_all()
        acknowledged: list[bool] = []

        def act(
            machine: _Machine = machine,
            second: HostingProcess = second,
            acknowledged: list[bool] = acknowledged,
            later: int = later,
        ) -> None:
            with suppress(MirrorError):
                other.make(second)
                acknowledged.append(True)
            machine.bucket.stop_at(later, how.error(), late=how.late)

        machine.bucket.counts_changes = True
        machine.bucket.act_at(number, act)
        with suppress(MirrorError, Killed):
            what.make(machine.process)
        died = machine.bucket.reached
        machine.restart(0)
        if acknowledged:
            assert other.seen(machine.process)
        machine.bucket.arrive()
        with suppress(MirrorError):
            what.seen(machine.process)
        if acknowledged:
            assert other.seen(machine.process)
            assert other.seen(second)
        for each in (machine.process, second):
            each.close()
        for path in folder.iterdir():
            shutil.rmtree(path)
        if died:
            later += 1
        elif later:
            number, later = number + 1, 0
        else:
            break
