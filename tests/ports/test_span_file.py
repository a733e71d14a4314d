"""Bytes of a growing blob that came out of turn, on a disk: `Spans` and `Claim`."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.errors import BlobDamaged, StoreError, StoreFull, UpstreamInvalid, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK, MOST_BYTES, SYNCED
from mirror.ports import BlobInfo, Claim, SupportsFileno
from mirror.store.local import span_file
from mirror.store.local.beside.served_notes import FULL
from mirror.store.local.beside.span_recovery import SentParts
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout, earlier_of, map_of, served_of, spans_of
from mirror.store.local.recovery import sweep
from mirror.store.local.span_file import SpanFile
from tests.support.ranged_upstream import RangedBody, put_spans
from tests.support.store_suite import LATER, REGISTRY, Pieces, committed, filled

SIZE: Final = 10 * BLOCK + 777
CONTENT: Final = random.Random(57).randbytes(SIZE)
DIGEST: Final = Digest.of(CONTENT)
WHOLE: Final = Span(0, SIZE)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """On this disk."""
    return LocalStore(Layout(tmp_path))


@pytest.fixture
def ingest(store: LocalStore) -> Path:
    """The name beside which the files lie."""
    return store.layout.ingest(DIGEST, REGISTRY)


def _open(store: LocalStore, size: int | None = SIZE) -> SpanFile:
    spans = LocalStore(store.layout).spans(DIGEST, REGISTRY, size)
    assert spans is not None
    return spans


def _body(span: Span, content: bytes = CONTENT) -> RangedBody:
    return RangedBody(content, span, lambda _: None)


def _fill(claim: Claim | None, content: bytes = CONTENT) -> None:
    assert claim is not None
    claim.fill(_body(Span(claim.offset, SIZE), content), lambda _: None)
    claim.release()


def _blocks(first: int, count: int = 1) -> Span:
    return Span(first * BLOCK, min((first + count) * BLOCK, SIZE))


def _names(ingest: Path) -> set[str]:
    return {path.name.removeprefix(ingest.name) for path in ingest.parent.iterdir()}


# ---------------------------------------------------------------------------------------------------------- the life


def test_there_are_none_until_somebody_makes_them(store: LocalStore, ingest: Path) -> None:
    """Nothing is made by looking."""
    assert store.spans(DIGEST, REGISTRY, None) is None
    assert not list(ingest.parent.iterdir())
    spans = _open(store)
    assert _names(ingest) == {".spans", ".map"}
    assert (spans.size, spans.count(), spans.here(WHOLE), spans.taken(WHOLE)) == (SIZE, 0, [], [])
    assert _open(store, None).size == SIZE
    assert "of 656137 bytes" in repr(spans)


@pytest.mark.parametrize("size", [0, MOST_BYTES + 1, 1 << 62])
def test_sizes_that_no_blob_has(store: LocalStore, ingest: Path, size: int) -> None:
    """What an upstream or a manifest says costs nothing here."""
    assert store.spans(DIGEST, REGISTRY, size) is None
    assert not list(ingest.parent.iterdir())


def test_a_block_is_claimed_then_here(store: LocalStore) -> None:
    """Every process sees the same."""
    mine, theirs = _open(store), _open(store)
    claim = mine.claim(Span(2 * BLOCK + 5, 4 * BLOCK - 5))
    assert claim is not None
    assert (claim.span, claim.offset) == (_blocks(2, 2), 2 * BLOCK)
    assert theirs.taken(WHOLE) == [_blocks(2, 2)]
    assert theirs.claim(_blocks(2, 2)) is None
    grown: list[int] = []
    claim.fill(_body(Span(2 * BLOCK, 3 * BLOCK + BLOCK)), grown.append)
    assert grown[-1] == 4 * BLOCK
    assert theirs.taken(WHOLE) == []
    assert theirs.here(WHOLE) == [_blocks(2, 2)]
    assert theirs.here(Span(3 * BLOCK + 1, SIZE)) == [Span(3 * BLOCK + 1, 4 * BLOCK)]
    assert theirs.count() == 2 * BLOCK
    claim.release()
    claim.release()
    reader = theirs.open(Span(2 * BLOCK + 9, 4 * BLOCK))
    assert isinstance(reader, SupportsFileno)
    assert reader.pread(100, 3 * BLOCK) == CONTENT[3 * BLOCK : 3 * BLOCK + 100]
    reader.close()
    reader.close()


def test_the_last_block_is_shorter(store: LocalStore) -> None:
    """It is whole all the same."""
    spans = _open(store)
    claim = spans.claim(Span(SIZE - 1, SIZE))
    assert claim is not None
    assert claim.span == _blocks(10)
    _fill(claim)
    assert spans.here(WHOLE) == [Span(10 * BLOCK, SIZE)]
    assert spans.count() == 777


def test_claims_take_the_first_gap(store: LocalStore) -> None:
    """Between what is here and what others claim."""
    spans = _open(store)
    _fill(spans.claim(_blocks(1)))
    first = spans.claim(_blocks(4))
    found = []
    while claim := spans.claim(WHOLE):
        found.append(claim)
    assert [claim.span for claim in found] == [_blocks(0), _blocks(2, 2), _blocks(5, 6)]
    assert sum(span.length for span in spans.taken(WHOLE)) == SIZE - BLOCK
    assert first is not None
    for claim in [*found, first]:
        claim.release()
    assert spans.taken(WHOLE) == []


def test_threads_share_no_claim(store: LocalStore) -> None:
    """However many ask at once, each block is claimed by one of them."""
    spans = _open(store)
    got: list[Claim] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(30)
        got.extend(claim for number in range(11) if (claim := spans.claim(_blocks(number))))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claim.span.start for claim in got) == [number * BLOCK for number in range(11)]


# ---------------------------------------------------------------------------------------------------------- the bodies


def test_a_body_that_begins_before_and_goes_on(store: LocalStore) -> None:
    """Of an upstream that ignores the range, only the claimed bytes are kept."""
    spans = _open(store)
    claim = spans.claim(_blocks(3, 2))
    assert claim is not None
    claim.fill(_body(WHOLE), lambda _: None)
    assert spans.here(WHOLE) == [_blocks(3, 2)]


def test_a_body_that_breaks_off_is_gone_on_with(store: LocalStore) -> None:
    """Whole blocks stay; the claim knows how far it has come, in the middle of a block too."""
    spans = _open(store)
    claim = spans.claim(_blocks(3, 2))
    assert claim is not None
    with pytest.raises(UpstreamUnavailable):
        claim.fill(_body(Span(3 * BLOCK, 4 * BLOCK + 100)), lambda _: None)
    assert claim.offset == 4 * BLOCK + 100
    assert spans.here(WHOLE) == [_blocks(3)]
    claim.fill(_body(Span(4 * BLOCK + 100, SIZE)), lambda _: None)
    assert spans.here(WHOLE) == [_blocks(3, 2)]
    reader = spans.open(_blocks(3, 2))
    assert reader is not None
    assert reader.pread(2 * BLOCK, 3 * BLOCK) == CONTENT[3 * BLOCK : 5 * BLOCK]


def test_bodies_that_do_not_fit_are_refused(store: LocalStore) -> None:
    """Of another size, or from a later byte on: nothing is written."""
    claim = _open(store).claim(_blocks(3))
    assert claim is not None
    with pytest.raises(UpstreamInvalid):
        claim.fill(_body(Span(0, 1), CONTENT + b"x"), lambda _: None)
    with pytest.raises(BlobDamaged):
        claim.fill(_body(Span(3 * BLOCK + 1, SIZE)), lambda _: None)
    assert claim.offset == 3 * BLOCK


def test_a_claim_that_is_cut_gives_the_rest_back(store: LocalStore) -> None:
    """The block under way is finished, and no block behind it is marked."""
    spans = _open(store)
    claim = spans.claim(_blocks(2, 6))
    assert claim is not None

    def cut_at(offset: int) -> None:
        if offset > 4 * BLOCK:
            claim.cut()

    claim.fill(_body(Span(2 * BLOCK, SIZE)), cut_at)
    assert claim.span == _blocks(2, 3)
    assert spans.here(WHOLE) == [_blocks(2, 3)]
    other = spans.claim(_blocks(5, 3))
    assert other is not None
    assert other.span == _blocks(5, 3)
    untouched = spans.claim(_blocks(8))
    assert untouched is not None
    untouched.cut()
    assert untouched.span.length == 0


# --------------------------------------------------------------------------------------------------- a model of it all

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "fill", "break", "release", "punch", "sync", "read", "boot"]),
        st.integers(0, 10),
        st.integers(1, 5),
    ),
    max_size=25,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_STEPS)
def test_any_order(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]) -> None:
    """Whatever is done, in whatever order: what is here has the right bytes, and is what the model says."""
    store = LocalStore(Layout(tmp_path_factory.mktemp("spans")))
    spans = _open(store)
    here, synced = set[int](), set[int]()
    claims: list[tuple[Claim, set[int]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for number, (step, first, count) in enumerate(steps):
            wanted = set(range(first, min(first + count, 11)))
            if step == "claim":
                claim = spans.claim(_blocks(first, count))
                free = wanted - here - set().union(*(blocks for _, blocks in claims))
                assert (claim is None) == (not free)
                if claim:
                    mine = set(range(claim.span.start // BLOCK, -(-claim.span.stop // BLOCK)))
                    assert mine <= free
                    assert min(mine) == min(free)
                    claims.append((claim, mine))
            elif step == "fill" and claims:
                held, mine = claims.pop()
                _fill(held)
                here |= mine
            elif step == "break" and claims:
                held, mine = claims.pop()
                stop = min(held.span.stop - 1, held.span.start + first * BLOCK + count)
                with pytest.raises(UpstreamUnavailable):
                    held.fill(_body(Span(held.span.start, stop)), lambda _: None)
                held.release()
                here |= {block for block in mine if min((block + 1) * BLOCK, SIZE) <= stop}
            elif step == "release" and claims:
                claims.pop()[0].release()
            elif step == "punch" and not any(blocks & wanted for _, blocks in claims):
                spans.punch(_blocks(first, count))
                here -= wanted
                synced -= wanted
            elif step == "sync":
                spans.sync()
                synced = set(here)
            elif step == "boot":
                for held, _ in claims:
                    held.release()
                claims, here = [], set(synced)
                spans.close()
                patch.setattr(span_file, "boot_id", lambda number=number: bytes([number + 1]) * 16)
                spans = _open(store, None)
            found = {block for run in spans.here(WHOLE) for block in range(run.start // BLOCK, -(-run.stop // BLOCK))}
            assert found == here
            taken = {block for run in spans.taken(WHOLE) for block in range(run.start // BLOCK, -(-run.stop // BLOCK))}
            assert taken == set().union(*(blocks for _, blocks in claims))
            for run in spans.here(WHOLE):
                reader = spans.open(run)
                assert reader is not None
                assert reader.pread(run.length, run.start) == CONTENT[run.start : run.stop]
                reader.close()
        for held, _ in claims:
            held.release()
        spans.close()


# ------------------------------------------------------------------------------------------------------ what may happen

_CLAIMANT = """
import sys
from pathlib import Path
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout

content = sys.stdin.buffer.read()
spans = LocalStore(Layout(Path(sys.argv[1]))).spans(Digest.of(content), "docker.io", len(content))
claim = spans.claim(Span(2 * 65536, 6 * 65536))

class Hanging:
    start, size, position = claim.offset, len(content), claim.offset
    def readinto(self, buffer):
        stop = 4 * 65536 + 100
        if self.position == stop:
            print("in the middle of a block", flush=True)
            import time
            time.sleep(600)
        piece = content[self.position : min(stop, self.position + len(buffer))]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

claim.fill(Hanging(), lambda _: None)
"""


@pytest.fixture
def claimant(store: LocalStore) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, in the middle of a block that it has claimed."""
    command = [sys.executable, "-c", _CLAIMANT, str(store.layout.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(CONTENT)
        process.stdin.close()
        assert process.stdout.readline() == b"in the middle of a block\n"
        yield process
        process.kill()


def test_58_a_claimant_is_killed(store: LocalStore, claimant: subprocess.Popen[bytes]) -> None:
    """Its whole blocks are here, and the rest is free at once."""
    spans = _open(store)
    assert spans.here(WHOLE) == [_blocks(2, 2)]
    assert spans.taken(WHOLE) == [_blocks(4, 2)]
    assert spans.claim(_blocks(2, 4)) is None
    assert not spans.is_idle()
    os.kill(claimant.pid, signal.SIGKILL)
    claimant.wait()
    assert spans.taken(WHOLE) == []
    _fill(spans.claim(_blocks(2, 4)))
    reader = spans.open(_blocks(2, 4))
    assert reader is not None
    assert reader.pread(4 * BLOCK, 2 * BLOCK) == CONTENT[2 * BLOCK : 6 * BLOCK]


def test_who_reads_keeps_the_bytes(store: LocalStore) -> None:
    """What somebody sends is not punched under him, and goes once he has ended."""
    spans, other = _open(store), _open(store)
    _fill(spans.claim(_blocks(2, 3)))
    reader = other.open(_blocks(3))
    assert reader is not None
    spans.punch(_blocks(2, 3))
    assert spans.here(WHOLE) == [_blocks(2, 3)]
    assert reader.pread(BLOCK, 3 * BLOCK) == CONTENT[3 * BLOCK : 4 * BLOCK]
    reader.close()
    spans.punch(_blocks(2, 3))
    assert spans.here(WHOLE) == []
    assert other.open(_blocks(3)) is None


def test_punched_blocks_take_no_disk(store: LocalStore, ingest: Path) -> None:
    """The last one, which is shorter, neither."""
    spans = _open(store)
    _fill(spans.claim(WHOLE))
    spans.sync()
    assert os.stat(spans_of(ingest)).st_blocks * 512 >= SIZE
    spans.punch(WHOLE)
    assert os.stat(spans_of(ingest)).st_blocks == 0
    assert os.stat(spans_of(ingest)).st_size == SIZE


def _failing_after(number: int) -> Callable[[int], os.stat_result]:
    """An `fstat` that works so many times."""
    left, fstat = [None] * number, os.fstat

    def look(descriptor: int) -> os.stat_result:
        if not left:
            raise OSError(errno.EIO, "Input/output error")
        left.pop()
        return fstat(descriptor)

    return look


@pytest.mark.parametrize("opens", ["a blob", "an ingest", "spans", "a claim", "a reader"])
def test_no_descriptor_is_left_open_by_an_error(store: LocalStore, monkeypatch: pytest.MonkeyPatch, opens: str) -> None:
    """Whichever look at an open file fails."""
    put_spans(store, CONTENT, [Span(0, BLOCK)], registry=REGISTRY)
    store.put(DIGEST, CONTENT)
    with closing(_open(store)) as spans:
        open_it: Callable[[], Any] = {
            "a blob": lambda: store.open(DIGEST),
            "an ingest": lambda: store.ingest(DIGEST, REGISTRY),
            "spans": lambda: store.spans(DIGEST, REGISTRY, SIZE),
            "a claim": lambda: spans.claim(Span(BLOCK, 2 * BLOCK)),
            "a reader": lambda: spans.open(Span(0, BLOCK)),
        }[opens]
        before = os.listdir("/proc/self/fd")
        failed = 0
        for number in range(20):
            with monkeypatch.context() as patched, suppress(StoreError):
                patched.setattr(os, "fstat", _failing_after(number))
                made = open_it()
                break
            failed += 1
            assert os.listdir("/proc/self/fd") == before
        assert failed
        if opens == "a claim":
            made.release()
        else:
            (made[1] if opens == "a blob" else made).close()


def test_42_a_sync_that_fails_drops_the_bytes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have dropped them: the next sync would succeed, and nothing be on the disk."""
    put_spans(store, CONTENT, [Span(0, 3 * BLOCK)], registry=REGISTRY)
    spans = _open(store)

    def fail(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == SIZE:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreError):
        spans.sync()
    assert not spans.in_place
    spans.close()
    with closing(_open(store)) as again:
        assert not again.count()


def test_42_what_is_synced_and_in_which_order(store: LocalStore, ingest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes survive with the bytes, also if these were synced before; files without a name are none."""
    put_spans(store, CONTENT, [Span(0, 3 * BLOCK)], registry=REGISTRY)
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    with closing(_open(store)) as spans:
        spans.note_served({"client": "10.0.0.1"})
        os.rename(served_of(ingest), earlier_of(ingest))
        spans.note_served({"client": "10.0.0.2"})
        spans.sync()
        notes = [str(served_of(ingest)), str(earlier_of(ingest))]
        assert synced == [str(spans_of(ingest)), *notes, str(ingest.parent), str(map_of(ingest))]
        spans.note_served({"client": "10.0.0.3"})
        synced.clear()
        spans.sync()
        assert synced == [*notes, str(ingest.parent)]


def test_42_a_note_that_is_made_during_a_sync_survives_with_the_bytes(
    store: LocalStore, ingest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To write the bytes takes the longest: clients are sent some meanwhile."""
    put_spans(store, CONTENT, [Span(0, 3 * BLOCK)], registry=REGISTRY)
    noted: list[int] = []

    with closing(_open(store)) as spans:

        def sync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path == str(spans_of(ingest)):
                spans.note_served({"client": "10.0.0.1"})
            elif path == str(served_of(ingest)):
                noted.append(os.fstat(descriptor).st_size)

        monkeypatch.setattr(os, "fdatasync", sync)
        spans.sync()
    assert noted[-1:] == [served_of(ingest).stat().st_size]


def test_42_a_power_cut_keeps_what_was_synced(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another boot, only synced blocks count: the others may have their size without their bytes."""
    spans = _open(store)
    _fill(spans.claim(_blocks(2, 2)))
    spans.sync()
    _fill(spans.claim(_blocks(6, 2)))
    monkeypatch.setattr(span_file, "boot_id", lambda: b"another boot....")
    assert _open(store).here(WHOLE) == [_blocks(2, 2)]
    monkeypatch.undo()


def test_42_a_hole_is_never_here(store: LocalStore, ingest: Path) -> None:
    """A map that says more than the disk has, as after a power cut between the two: holes are not here."""
    spans = _open(store)
    _fill(spans.claim(_blocks(2, 4)))
    with spans_of(ingest).open("r+b") as file:
        span_file._punch(file.fileno(), 3 * BLOCK, BLOCK)
    assert _open(store).here(WHOLE) == [_blocks(2), _blocks(4, 2)]


_HEADER = 64


@pytest.mark.parametrize(
    "tear",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: os.truncate(path, 20),
        lambda path: os.truncate(path, _HEADER + 3),
        lambda path: os.truncate(path, _HEADER + 4000),
        lambda path: path.write_bytes(b"spans\0\0\x02" + path.read_bytes()[8:]),
        lambda path: path.write_bytes(path.read_bytes()[:8] + struct.pack("<q", 1 << 60) + path.read_bytes()[16:]),
        lambda path: path.write_bytes(path.read_bytes()[:16] + struct.pack("<Q", 1) + path.read_bytes()[24:]),
    ],
    ids=["empty", "garbage", "half a header", "half a map", "too long", "another version", "another size", "inode"],
)
def test_a_map_that_is_torn_is_not_believed(store: LocalStore, ingest: Path, tear: object) -> None:
    """All of it is begun anew."""
    spans = _open(store)
    _fill(spans.claim(_blocks(2, 2)))
    assert callable(tear)
    tear(map_of(ingest))
    again = _open(store)
    assert again.here(WHOLE) == []
    _fill(again.claim(WHOLE))
    assert again.count() == SIZE


@pytest.mark.parametrize("lost", [map_of, spans_of])
def test_one_of_the_two_files_is_lost(store: LocalStore, ingest: Path, lost: object) -> None:
    """The other is worth nothing, even if the kernel gives the inode of the lost one out again."""
    spans = _open(store)
    _fill(spans.claim(_blocks(2, 2)))
    spans.close()
    assert callable(lost)
    lost(ingest).unlink()
    again = _open(store)
    assert again.here(WHOLE) == []
    assert os.stat(spans_of(ingest)).st_blocks == 0


@pytest.mark.parametrize("which", [map_of, spans_of])
def test_links_are_not_followed(store: LocalStore, ingest: Path, tmp_path: Path, which: object) -> None:
    """A link that somebody has put there leads nowhere."""
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    assert callable(which)
    path: Path = which(ingest)
    path.symlink_to(target)
    if which is map_of:
        with pytest.raises(StoreError):
            store.spans(DIGEST, REGISTRY, SIZE)
    else:
        _fill(_open(store).claim(WHOLE))
    assert target.read_bytes() == b"precious"


def test_a_folder_in_the_way_is_an_error(store: LocalStore, ingest: Path) -> None:
    """It is foreign, and left alone; so is it by the sweep."""
    map_of(ingest).mkdir()
    with pytest.raises(StoreError):
        store.spans(DIGEST, REGISTRY, SIZE)
    sweep(store.layout, keep=0, now=lambda: LATER)
    assert map_of(ingest).is_dir()


def test_other_sizes_are_left_to_the_filler(store: LocalStore) -> None:
    """Two that do not agree on the size must not drop each other's bytes by turns."""
    spans = _open(store)
    _fill(spans.claim(_blocks(2)))
    assert store.spans(DIGEST, REGISTRY, SIZE + 1) is None
    assert spans.in_place
    assert spans.here(WHOLE) == [_blocks(2)]


def test_dropped_spans_are_nobodys(store: LocalStore, ingest: Path) -> None:
    """Who has them open writes where nobody looks, and can see that."""
    mine, theirs = _open(store), _open(store)
    claim = mine.claim(_blocks(2))
    theirs.note_served({"client": "10.0.0.1"})
    theirs.drop()
    theirs.drop()
    assert not list(ingest.parent.iterdir())
    assert not mine.in_place
    _fill(claim)
    with pytest.raises(StoreError):
        mine.claim(_blocks(5))
    fresh = _open(store)
    assert fresh.here(WHOLE) == []
    mine.drop()
    assert fresh.in_place


def test_a_process_that_hangs_with_the_lock_stops_nobody_for_ever(
    store: LocalStore, ingest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wants the spans gives up, and does without them."""
    _open(store).close()
    monkeypatch.setattr(span_file, "_PAUSE", 0.0)
    held = os.open(map_of(ingest), os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, _HEADER, 0))
    try:
        with pytest.raises(StoreError, match="lock"):
            store.spans(DIGEST, REGISTRY, None)
    finally:
        os.close(held)


# ---------------------------------------------------------------------------------------------------------- a full disk


def test_34_no_room_for_the_map(store: LocalStore, ingest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and nothing is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(span_file, "_pwrite", full)
        with pytest.raises(StoreFull):
            store.spans(DIGEST, REGISTRY, SIZE)
    assert not list(ingest.parent.iterdir())
    assert _open(store).count() == 0


def test_34_no_room_for_the_bytes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim says it; nothing is marked that did not get there."""
    spans = _open(store)
    claim = spans.claim(_blocks(2, 3))
    assert claim is not None

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mirror.store.local.pump.write_all", full)
        with pytest.raises(StoreFull):
            claim.fill(_body(Span(2 * BLOCK, SIZE)), lambda _: None)
    assert spans.here(WHOLE) == []
    claim.fill(_body(Span(claim.offset, SIZE)), lambda _: None)
    assert spans.here(WHOLE) == [_blocks(2, 3)]


def test_34_no_room_for_a_mark(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without a mark is fetched again."""
    spans = _open(store)
    claim = spans.claim(_blocks(2))
    assert claim is not None

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(span_file, "_pwrite", full)
        with pytest.raises(StoreFull):
            claim.fill(_body(Span(2 * BLOCK, SIZE)), lambda _: None)
    claim.release()
    assert spans.here(WHOLE) == []
    _fill(spans.claim(_blocks(2)))


# ------------------------------------------------------------------------------------------------------- who was served


def test_who_was_served(store: LocalStore, ingest: Path) -> None:
    """Notes in their order, with the registry; torn and foreign lines are skipped, and it does not grow for ever."""
    spans = _open(store)
    assert spans.served() == []
    spans.note_served({"client": "10.0.0.1", "start": 5})
    with served_of(ingest).open("ab") as file:
        file.write(b'{"torn": \n[1, 2]\n')
    spans.note_served({"client": "10.0.0.2"})
    assert _open(store).served() == [
        {"upstream": REGISTRY, "client": "10.0.0.1", "start": 5},
        {"upstream": REGISTRY, "client": "10.0.0.2"},
    ]
    spans.note_served({"client": "x" * 5000, "parts": ["0-9"] * 5000})
    assert spans.served()[2:] == [{"upstream": REGISTRY, "client": "x" * 256, "parts": []}]


def test_the_latest_notes_are_kept(store: LocalStore, ingest: Path) -> None:
    """Whoever was served last is the likeliest to still have wrong bytes. A note that a power cut has torn costs no
    other.
    """
    spans = _open(store)
    for number in range(5000):
        spans.note_served({"client": f"{number:0100}"})
        if number in (4000, 4990):
            with served_of(ingest).open("ab") as file:
                file.write(b'{"client": "to')
    kept = [int(str(note["client"])) for note in spans.served()]
    assert kept == list(range(5000 - len(kept), 5000))
    assert len(kept) > 50
    assert FULL <= served_of(ingest).stat().st_size + earlier_of(ingest).stat().st_size <= 2 * FULL
    spans.drop()
    assert not list(ingest.parent.iterdir())


def test_several_write_notes_at_once(store: LocalStore, ingest: Path) -> None:
    """Threads are to the files what processes are: each note has an open file of its own."""
    spans = _open(store)

    def note(number: int) -> None:
        while True:
            with suppress(StoreError):
                spans.note_served({"number": number, "by": "x" * 200})
                return
            # refused: on a busy machine the others fill the file while the one that is to rename it has no processor
            time.sleep(0.001)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(note, range(3000)))
    # what was put aside is never replaced by a file that is nearly empty
    numbers = [note["number"] for note in spans.served()]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) >= FULL // 300
    assert max(map(int, map(str, numbers))) == 2999


def test_full_notes_that_nobody_renames(store: LocalStore, ingest: Path) -> None:
    """A process stands still that has begun to: nobody waits for it, and the file does not grow for ever."""
    spans = _open(store)
    for number in range(600):
        spans.note_served({"number": number, "by": "x" * 150})
    with served_of(ingest).open("rb") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        with suppress(StoreError):
            for number in range(2000):
                spans.note_served({"number": number, "by": "x" * 150})
        with pytest.raises(StoreError, match="rename"):
            spans.note_served({"number": 0, "by": "x" * 150})
        assert served_of(ingest).stat().st_size <= 2 * FULL
    spans.note_served({"number": -1})
    assert spans.served()[-1]["number"] == -1


# ------------------------------------------------------------------------------------------- counted, swept and purged


def test_they_count_once(store: LocalStore) -> None:
    """With the bytes on the disk, and not beside the size that a fill expects, which contains them."""
    put_spans(store, CONTENT, [_blocks(5, 2)], registry=REGISTRY)
    _open(store).sync()
    # a file system may add blocks of its own
    taken = store.growing()[DIGEST]
    assert 2 * BLOCK <= taken < 4 * BLOCK
    ingest = store.ingest(DIGEST, REGISTRY)
    assert ingest.try_lock()
    ingest.resume()
    ingest.expect(SIZE)
    assert store.growing() == {DIGEST: SIZE}
    with pytest.raises(UpstreamUnavailable):
        ingest.fill(Pieces(CONTENT, breaks_at=BLOCK), lambda: None)
    assert store.growing() == {DIGEST: SIZE}
    ingest.close()
    assert store.growing() == {DIGEST: taken + BLOCK}


def test_the_sweep_leaves_what_is_of_use(store: LocalStore, ingest: Path) -> None:
    """Fresh ones, and claimed ones however old."""
    put_spans(store, CONTENT, [_blocks(5, 2)], registry=REGISTRY)
    assert sweep(store.layout, keep=3600, now=lambda: 0.0).partials == 0
    # and a power cut does not cost them any more
    assert set(_open(store).states(range(5, 7))) == {SYNCED}
    claim = _open(store).claim(_blocks(8))
    assert claim is not None
    assert sweep(store.layout, keep=3600, now=lambda: LATER).partials == 0
    assert _names(ingest) == {".spans", ".map"}
    claim.release()
    _open(store).sync()
    taken = store.growing()[DIGEST]
    swept = sweep(store.layout, keep=3600, now=lambda: LATER)
    assert swept.partials == 1
    assert swept.bytes == taken
    assert not list(ingest.parent.iterdir())


def test_after_a_restart_of_the_machine_the_sweep_takes_none_for_new(
    store: LocalStore, ingest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens them first in another boot writes to their map."""
    put_spans(store, CONTENT, [_blocks(5, 2)], registry=REGISTRY)
    with closing(_open(store)) as spans:
        spans.sync()
    for path in (map_of(ingest), spans_of(ingest)):
        os.utime(path, (1000.0, 1000.0))
    monkeypatch.setattr(span_file, "boot_id", lambda: b"another boot....")
    assert sweep(store.layout, keep=3600, now=lambda: 4000.0).partials == 0
    os.utime(map_of(ingest), (1000.0, 1000.0))
    monkeypatch.setattr(span_file, "boot_id", lambda: b"one more boot...")
    assert sweep(store.layout, keep=3600, now=lambda: 5000.0).partials == 1
    assert not list(ingest.parent.iterdir())


@pytest.mark.parametrize("has_spans", [True, False])
def test_the_sweep_says_who_was_sent_what_nobody_can_check(store: LocalStore, ingest: Path, has_spans: bool) -> None:
    """Notes do not end in silence if the whole never came."""
    spans = _open(store)
    _fill(spans.claim(_blocks(5)))
    spans.note_served({"client": "10.0.0.1"})
    if not has_spans:
        map_of(ingest).unlink()
        spans_of(ingest).unlink()
    assert not sweep(store.layout, keep=3600, now=lambda: 0.0).unchecked
    swept = sweep(store.layout, keep=3600, now=lambda: LATER)
    assert swept.unchecked == (SentParts(DIGEST, [{"upstream": REGISTRY, "client": "10.0.0.1"}]),)
    assert not swept.wrong
    assert not list(ingest.parent.iterdir())


@pytest.mark.parametrize("suffix", [".spans", ".map", ".served", ".earlier"])
def test_the_sweep_drops_single_files(store: LocalStore, ingest: Path, suffix: str) -> None:
    """Once they are old."""
    path = ingest.with_name(ingest.name + suffix)
    path.write_bytes(b"")
    sweep(store.layout, keep=3600, now=lambda: 0.0)
    assert path.exists() or suffix == ".map"
    sweep(store.layout, keep=3600, now=lambda: LATER)
    assert not list(ingest.parent.iterdir())


@pytest.mark.parametrize("is_right", [True, False])
def test_the_sweep_compares_with_the_blob(store: LocalStore, ingest: Path, is_right: bool) -> None:
    """Of a blob that came otherwise: if the parts that were sent differ from it, it is said to whom."""
    assert committed(store, CONTENT) == BlobInfo(DIGEST, SIZE)
    content = CONTENT if is_right else bytes(SIZE)
    _fill(_open(store).claim(_blocks(5)), content)
    assert not sweep(store.layout, keep=3600, now=lambda: 0.0).wrong
    assert not list(ingest.parent.iterdir())
    spans = _open(store)
    _fill(spans.claim(_blocks(5)), content)
    spans.note_served({"client": "10.0.0.1"})
    wrong = sweep(store.layout, keep=3600, now=lambda: 0.0).wrong
    told = SentParts(DIGEST, [{"upstream": REGISTRY, "client": "10.0.0.1"}])
    assert wrong == (() if is_right else (told,))
    assert not list(ingest.parent.iterdir())


def test_a_purge_leaves_nothing(store: LocalStore) -> None:
    """Of any registry; what is being filled stays, and so do other blobs."""
    other = b"other" * 100_000
    for registry in (REGISTRY, "ghcr.io"):
        put_spans(store, CONTENT, [_blocks(5, 2)], registry=registry)
        filled(store, CONTENT, upto=1000, registry=registry).close()
    filled(store, other, upto=1000).close()
    busy = filled(store, CONTENT, upto=1000, registry="quay.io")
    store.drop_growing({DIGEST})
    assert store.growing() == {DIGEST: SIZE, Digest.of(other): 1000}
    assert store.spans(DIGEST, REGISTRY, None) is None
    busy.close()
