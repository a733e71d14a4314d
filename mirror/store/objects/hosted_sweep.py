"""The sweep of the hosted blobs in a bucket: it lists the objects, and compares them with the states that it remembers.

    as remembered ──> nothing is asked
    anything else ──> the state is read in the bucket ──┬─ it names another object, or the blob is gone ──> deleted
                                                        ├─ there is none ──────> it names the object now, and waits
                                                        ├─ its object is not as it says ── HEAD ──> lost
                                                        └─ damaged ────────────> marked; a push writes it anew
    as lost, without a mark ──> marked: of two that met, one has dropped the mark of the other

A listing may be late and is only a proposal. What is deleted has a key that no state will name any more; all else is a
compare-and-set of a state that was just read. Ages are those that the clock of the store gives. Where clients are sent
to the bucket, the object of a state that has just changed stays until the last URL of it is no longer valid.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.errors import BucketDenied, BucketUnavailable, RecordChanged, RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, Condition, no_blob
from mirror.policy.hosted.sweep_steps import UNNAMED, SweepStep, sweep_step
from mirror.ports import ABSENT, PROBES, BlobObject, Bucket, Leftovers, ObjectInfo, SweptPage
from mirror.store.objects.object_keys import HOSTED, hosted_key, parse_hosted_key
from mirror.store.objects.state_records import FoundState, StateViews

#: Blobs in one page.
_PAGE: Final = 1000

#: The objects of one blob, by attempt.
_Objects = dict[str, ObjectInfo]


class HostedSweep:
    """`BucketSweep`. May be used from any thread, by several processes at once."""

    def __init__(
        self,
        bucket: Bucket,
        states: StateViews,
        lost: Callable[[BlobObject, str], bool],
        *,
        now: Callable[[], float],
        page: int = _PAGE,
        life: float = 0.0,
    ) -> None:
        """`lost` takes an object out of service (see `BlobObjects`). `now` is the time that states record, in epoch
        seconds. A page has `page` blobs. `life` is how many seconds URLs are valid by which clients read objects.
        """
        self._life = life
        self._bucket = bucket
        self._states = states.asked
        self._remembered = states.remembered
        self._lost = lost
        self._now = now
        self._page = page

    def __repr__(self) -> str:
        return f"<HostedSweep of {self._bucket!r}>"

    def pages(self, after: str) -> Generator[SweptPage]:
        before = self._store_time() - UNNAMED
        last = parse_hosted_key(after)
        listed = _by_blob(self._bucket.list(HOSTED, after=after))
        states, marked = self._remembered.after(last[0] if last else None), set(self._remembered.marked())
        page, old = SweptPage(after), list[str]()
        for number, (digest, objects, state) in enumerate(_side_by_side(listed, states), 1):
            page.objects += len(objects)
            page.bytes += sum(info.size for info in objects.values())
            if state is not None and state.condition is Condition.LOST and digest not in marked:
                self._states.mark_lost(digest)
            if not _is_as_remembered(objects, state):
                self._look(digest, objects, before, page, old)
            # behind all keys of the blob
            page.after = max((info.key for info in objects.values()), default=hosted_key(digest, "0" * 16))
            if number % self._page == 0:
                self._delete(old)
                yield page
                page, old = SweptPage(page.after), []
        self._delete(old)
        yield page

    def _store_time(self) -> float:
        """The time by the clock of the store, in epoch seconds."""
        key = f"{PROBES}{secrets.token_hex(16)}"
        self._bucket.write(key, b"the time", expect=ABSENT)
        found = self._bucket.head(key)
        self._bucket.delete([key])
        if found is None:
            raise BucketUnavailable("the bucket does not have what was just written")
        return found.changed_at

    def _delete(self, keys: Sequence[str]) -> None:
        if keys:
            self._bucket.delete(keys)

    def _look(self, digest: Digest, objects: _Objects, before: float, page: SweptPage, old: list[str]) -> None:
        try:
            found = self._states.find(digest)
        except RecordDamaged as error:
            # which of the objects counts is unknown: none of them goes
            telemetry.log.error("state of a hosted blob damaged", digest=str(digest), reason=str(error))
            self._states.mark_lost(digest)
            page.lost += 1
            return
        # clients may still follow a URL of the object that the state named before
        changed_lately = self._now() - found.state.since < self._life
        # the newest first: of several objects without a state, it counts
        for attempt, info in sorted(objects.items(), key=lambda item: item[1].changed_at, reverse=True):
            state = None if found.expect is ABSENT else found.state
            step = sweep_step(state, attempt, is_old=info.changed_at < before, changed_lately=changed_lately)
            if step is SweepStep.DELETE:
                old.append(info.key)
                page.deleted += 1
                page.deleted_bytes += info.size
            elif step is SweepStep.QUEUE:
                page.queued += self._queue(found, attempt, info)
                # the others stay until the next sweep
                return
        if found.state.is_present:
            named = objects.get(found.state.attempt)
            if named is None or named.size != found.state.size:
                page.lost += self._is_lost(found.state)

    def _queue(self, found: FoundState, attempt: str, info: ObjectInfo) -> bool:
        """Write the state of a blob that has none. False if there is one by now."""
        now = self._now()
        state = no_blob(found.state.digest).stored(attempt, info.size, now).queued(now)
        with suppress(RecordChanged):
            self._states.write(state, ABSENT)
            telemetry.log.warning("hosted object without a state", digest=str(state.digest), bytes=info.size)
            return True
        return False

    def _is_lost(self, state: BlobState) -> bool:
        """Look at the object itself, and note that the blob is lost if the object is not as the state says."""
        key = hosted_key(state.digest, state.attempt)
        there = self._bucket.head(key)
        if there is not None and there.size == state.size:
            return False
        reason = "the object is gone" if there is None else f"it has {there.size} bytes, not {state.size}"
        return self._lost(BlobObject(state.digest, key, state.size), reason)

    def leftovers(self) -> Leftovers:
        before = self._store_time() - UNNAMED
        try:
            aborted = self._bucket.abort_uploads("", before)
        except BucketDenied as error:
            telemetry.log.warning("unfinished uploads not listed", reason=str(error))
            aborted = None
        probes = [info.key for info in self._bucket.list(PROBES) if info.changed_at < before]
        self._delete(probes)
        self._drop_marks()
        return Leftovers(aborted.uploads if aborted else None, len(probes))

    def _drop_marks(self) -> None:
        for digest in self._remembered.marked():
            with suppress(RecordDamaged):
                if self._states.find(digest).state.condition is not Condition.LOST:
                    self._states.drop_mark(digest)


def _is_as_remembered(objects: _Objects, state: BlobState | None) -> bool:
    if state is None:
        return False
    if not state.is_present:
        return not objects
    named = objects.get(state.attempt) if len(objects) == 1 else None
    return named is not None and named.size == state.size


def _by_blob(listing: Iterator[ObjectInfo]) -> Iterator[tuple[Digest, _Objects]]:
    """The objects of each blob. Their keys follow each other in a listing; foreign ones are left out."""
    digest: Digest | None = None
    objects: _Objects = {}
    for info in listing:
        parsed = parse_hosted_key(info.key)
        if parsed is None:
            continue
        if digest is not None and parsed[0] != digest:
            yield digest, objects
            objects = {}
        digest = parsed[0]
        objects[parsed[1]] = info
    if digest is not None:
        yield digest, objects


def _side_by_side(
    listed: Iterator[tuple[Digest, _Objects]], states: Iterator[BlobState]
) -> Iterator[tuple[Digest, _Objects, BlobState | None]]:
    """Two sequences in the order of digests: each blob with its objects and its state, if there are any."""
    there, state = next(listed, None), next(states, None)
    while there or state:
        if there and state and there[0] == state.digest:
            yield *there, state
            there, state = next(listed, None), next(states, None)
        elif there and (state is None or there[0] < state.digest):
            yield *there, None
            there = next(listed, None)
        elif state:
            yield state.digest, {}, state
            state = next(states, None)
