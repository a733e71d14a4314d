"""The sweep of the hosted blobs in a bucket: it lists the objects, and compares them with the states that it remembers.

    as remembered ──> nothing is asked
    anything else ──> the state is read in the bucket ──┬─ the generation is over ───────────> deleted, with others
                                                        ├─ no state names the object ────────> the state names it now,
                                                        │                                      and waits, or is repaired
                                                        └─ the object is not as it says ─ HEAD ─> lost

A listing may be late and is only a proposal. What is deleted has a key that no state will name again; all else is a
compare-and-set of a state that was just read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.errors import BucketDenied, RecordChanged, RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, Condition, no_blob, stored
from mirror.policy.hosted.sweep_steps import SweepStep, sweep_step
from mirror.ports import BlobObject, Bucket, Leftovers, ObjectInfo, SweptPage, Version
from mirror.store.objects.object_keys import HOSTED, hosted_key, parse_hosted_key
from mirror.store.objects.state_records import FoundState, StateViews

#: Blobs in one page.
_PAGE: Final = 1000
PROBES: Final = "probe/"

#: The objects of one blob, by generation.
_Objects = dict[int, ObjectInfo]


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
    ) -> None:
        """`lost` takes an object out of service (see `BlobObjects`). `now` is the time that states record, in epoch
        seconds. A page has `page` blobs.
        """
        self._bucket = bucket
        self._states = states.asked
        self._remembered = states.remembered
        self._lost = lost
        self._now = now
        self._page = page

    def __repr__(self) -> str:
        return f"<HostedSweep {self._bucket!r}>"

    def pages(self, after: str, before: float) -> Generator[SweptPage]:
        last = parse_hosted_key(after)
        listed = _by_blob(self._bucket.list(HOSTED, after=after))
        states = self._remembered.after(last[0] if last else None)
        page, old = SweptPage(after), list[str]()
        for number, (digest, objects, state) in enumerate(_side_by_side(listed, states), 1):
            self._look(digest, objects, state, before, page, old)
            page.after = max((info.key for info in objects.values()), default=hosted_key(digest, 1))
            if number % self._page == 0:
                self._bucket.delete(old)
                yield page
                page, old = SweptPage(page.after), []
        self._bucket.delete(old)
        yield page

    def _look(
        self,
        digest: Digest,
        objects: _Objects,
        state: BlobState | None,
        before: float,
        page: SweptPage,
        old: list[str],
    ) -> None:
        page.objects += len(objects)
        page.bytes += sum(info.size for info in objects.values())
        if _is_as_remembered(objects, state):
            return
        found = self._find(digest)
        # the newest first: of several that no state names, that one counts
        for generation, info in sorted(objects.items(), reverse=True):
            # an upload may be under way
            if info.changed_at < before:
                self._judge(found, generation, info, page, old)
        now = found.state
        if now.is_present and now.since < before and now.generation not in objects:
            page.lost += self._is_lost(now)

    def _judge(self, found: FoundState, generation: int, info: ObjectInfo, page: SweptPage, old: list[str]) -> None:
        step = sweep_step(found.state, generation, info.size)
        if step is SweepStep.DELETE:
            old.append(info.key)
            page.deleted += 1
            page.deleted_bytes += info.size
        elif step is SweepStep.DOUBT:
            page.lost += self._is_lost(found.state)
        elif step is SweepStep.UNEXPLAINED:
            page.unexplained += 1
            telemetry.log.warning("hosted object unexplained", key=info.key)
        elif step is not SweepStep.KEEP and self._name(found, generation, info, step):
            page.queued += step is SweepStep.QUEUE
            page.repaired += step is SweepStep.REPAIR

    def _name(self, found: FoundState, generation: int, info: ObjectInfo, step: SweepStep) -> bool:
        """Let the state name an object that it does not name. False if the state has changed meanwhile."""
        now = self._now()
        state = stored(found.state, generation, info.size, now)
        if step is SweepStep.QUEUE:
            state = state.queued(now)
        with suppress(RecordChanged):
            self._states.write(state, found.expect)
            telemetry.log.warning("hosted object found again", key=info.key, step=step.value)
            return True
        return False

    def _is_lost(self, state: BlobState) -> bool:
        """Look at the object itself, and note that the blob is lost if it is not as its state says."""
        key = hosted_key(state.digest, state.generation)
        there = self._bucket.head(key)
        if there is not None and there.size == state.size:
            return False
        reason = "the object is gone" if there is None else f"it has {there.size} bytes, not {state.size}"
        return self._lost(BlobObject(state.digest, key, state.size), reason)

    def _find(self, digest: Digest) -> FoundState:
        try:
            return self._states.find(digest)
        except RecordDamaged as damaged:
            # the objects say which generations there were
            return FoundState(no_blob(digest), Version(damaged.version), is_damaged=True)

    def leftovers(self, before: float) -> Leftovers:
        try:
            aborted = self._bucket.abort_uploads("", before)
        except BucketDenied as error:
            telemetry.log.warning("unfinished uploads not listed", reason=str(error))
            aborted = None
        probes = [info.key for info in self._bucket.list(PROBES) if info.changed_at < before]
        self._bucket.delete(probes)
        for digest in self._remembered.marked():
            if self._find(digest).state.condition is not Condition.LOST:
                self._states.drop_mark(digest)
        return Leftovers(aborted.uploads if aborted else None, len(probes))


def _is_as_remembered(objects: _Objects, state: BlobState | None) -> bool:
    if state is None:
        return False
    if not state.is_present:
        return not objects
    only = objects.get(state.generation) if len(objects) == 1 else None
    return only is not None and only.size == state.size


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
