"""What there is of one blob on the disk while parts of it are asked for: the spans, the growing file, the whole blob.

    open() ──> the spans beside the growing file ──┬── use_no_more() ──> open ── close() ──> closed ── open() …
      │                                            └── dropped by anyone ── open() ──> other spans
      └── NotInParts: the blob is in the store, or cannot have spans

Bytes come to the spans by claims. From there they go to the growing file, and with it to the store. So a look asks the
spans first and the growing file last; and whoever has a claim looks at the growing file once more.

Spans that were dropped stay open until nobody uses the blob: a thread may be looking at them, and the descriptors of
closed files become those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirror.errors import BlobUnknown, StoreError, UpstreamInvalid
from mirror.fills.looks import LOOK_LAST
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.lazy_ranges import fetch_from
from mirror.policy.fills.span_blocks import BLOCK
from mirror.ports import BlobReader, BlobStore, Claim, Prefix, Spans

#: Seconds without a new block after which somebody else's fetch is not waited for.
STUCK: Final = 10.0
#: Seconds for which an upstream that ignores ranges, and a blob of which parts were wrong, are not asked for parts.
AVOIDED: Final = 600.0
#: Bytes around a position in which a new block is a sign that somebody else's fetch moves.
_AROUND: Final = 64 << 20


class NotInParts(UpstreamInvalid):
    """The blob cannot be had in parts: the ordinary way has to answer."""


@dataclass(frozen=True, slots=True)
class ReadableNow:
    """Bytes up to `stop` that can be read now. The caller closes the reader."""

    reader: BlobReader
    stop: int


@dataclass(frozen=True, slots=True)
class Awaited:
    """Bytes that are not here. `comes`: somebody else brings them; `seen` differs once anything has come."""

    comes: bool
    seen: tuple[int, int]


class PartFiles:
    """See the head of this file. Every method blocks, for a short time. For any threads, but one at a time may `open`,
    and `close` is for when nobody uses the blob.
    """

    def __init__(self, digest: Digest, upstream: str, size: int, store: BlobStore, clock: Callable[[], float]) -> None:
        """`size` is that of the whole blob in bytes, as a manifest says it; `upstream` the registry's name. `clock`
        counts seconds.
        """
        self.digest: Final = digest
        self.upstream: Final = upstream
        self.size: Final = size
        self._store = store
        self._clock = clock
        self._spans: Spans | None = None
        #: Those before them, which were dropped.
        self._left_open: list[Spans] = []
        #: What upstream says about the size, if that is not the manifest's.
        self._disputed = ""
        #: When the prefix was looked at, how long it was, and its rate in bytes per second.
        self._prefix_seen: tuple[float, int] | None = None
        self._rate = 0.0

    def __repr__(self) -> str:
        return f"<PartFiles {str(self.digest)[:19]}… {'closed' if self._spans is None else 'open'}>"

    # ------------------------------------------------------------------------------------------------ open and closed

    def open(self) -> None:
        """Opens the files for who reads parts. Repeatable. Raises `NotInParts` if the blob is in the store meanwhile,
        or cannot have spans; `StoreError`.
        """
        if self._spans is not None and self._spans.in_place:
            self._spans.use(used=True)
            return
        self._let_go()
        self._refuse_avoided()
        there = self._store.spans(self.digest, self.upstream, None)
        if there is not None and there.size != self.size:
            # two manifests disagree: the digest of the whole decides, and nothing of the other is dropped for this one
            there.close()
            raise NotInParts(f"parts of {self.digest} are here for {there.size} bytes", upstream=self.upstream)
        spans = there or self._store.spans(self.digest, self.upstream, self.size)
        if spans is None:
            raise NotInParts(f"no parts of {self.digest} can be stored", upstream=self.upstream)
        self._spans = spans
        # again: another process may have found out, and dropped the spans before these were made
        self._refuse_avoided()
        # in this order: a commit drops the spans after the blob has its final name
        with suppress(BlobUnknown, StoreError):
            self._store.stat(self.digest)
            # what was sent of them is compared with the blob first, by the sweep
            if not spans.served():
                spans.drop()
            self._let_go()
            raise NotInParts(f"{self.digest} was published meanwhile", upstream=self.upstream)
        spans.use(used=True)

    def _refuse_avoided(self) -> None:
        """Raises `NotInParts` if any process of this store has found that parts of the blob must not be asked for."""
        if self._store.avoids_parts(self.upstream, self.digest, AVOIDED):
            self._let_go()
            raise NotInParts(f"{self.digest} is not had in parts now", upstream=self.upstream)

    def use_no_more(self) -> None:
        """Nobody reads parts any more: they may be dropped to make room."""
        if self._spans is not None:
            with suppress(StoreError):
                self._spans.use(used=False)

    def _let_go(self) -> None:
        """Nobody begins to use these spans any more."""
        if self._spans is not None:
            self._left_open.append(self._spans)
        self._spans = None

    def close(self) -> None:
        """Closes the files of a blob that nobody uses. Repeatable; `open` opens them again."""
        self._let_go()
        left_open, self._left_open = self._left_open, []
        for spans in left_open:
            spans.close()

    def opened(self) -> Spans:
        """The spans. Raises `StoreError` if they are not open."""
        if self._spans is None:
            raise StoreError(f"the parts of {self.digest} are not open")
        return self._spans

    # --------------------------------------------------------------------------------------------------- what is here

    def look(self, position: int, stop: int) -> ReadableNow | Awaited:
        """What there is at this position. Raises `NotInParts` if the blob cannot be had in parts, as was found since,
        and `StoreError`.
        """
        # the map first, the prefix last: bytes go from one to the other
        spans = self.opened()
        taken: Sequence[Span] = ()
        here: Sequence[Span] = ()
        if spans.in_place:
            taken = spans.taken(Span(position, position + 1))
            here = spans.here(Span(position, stop))
        if here and here[0].start == position and (reader := spans.open(here[0])) is not None:
            return ReadableNow(reader, here[0].stop)
        prefix = self._prefix()
        if prefix is not None:
            if prefix.offset > position:
                return ReadableNow(prefix.reader, min(stop, prefix.offset))
            prefix.reader.close()
        if not spans.in_place or prefix is None:
            with suppress(BlobUnknown):
                info, stored = self._store.open(self.digest)
                if info.size == self.size:
                    return ReadableNow(stored, stop)
                stored.close()
        if not spans.in_place:
            if self._disputed:
                raise NotInParts(self._disputed, upstream=self.upstream)
            self._refuse_avoided()
            # by a purge, or because nothing else made room: nothing is known against these bytes
            raise StoreError(f"{self.digest} was dropped while parts of it were sent")
        offset = 0 if prefix is None else prefix.offset
        comes = bool(taken) or fetch_from(position, offset, self._rate_of(prefix), BLOCK) > position
        around = Span(max(0, position - _AROUND), min(self.size, position + _AROUND))
        return Awaited(comes, (offset, sum(run.length for run in spans.here(around))))

    def missing(self, places: Sequence[Span]) -> list[Span]:
        """The places of which some bytes are not here. Raises `NotInParts`, `StoreError`."""
        spans = self.opened()
        missing = []
        for place in places:
            here = spans.here(place)
            if not here or here[0] != place:
                missing.append(place)
        prefix = self._prefix() if missing else None
        if prefix is not None:
            prefix.reader.close()
            missing = [place for place in missing if place.stop > prefix.offset]
        return missing

    def here(self) -> int:
        """How many bytes of the blob are here. Raises `NotInParts`, `StoreError`."""
        spans = self.opened()
        prefix = self._prefix()
        offset = 0
        if prefix is not None:
            prefix.reader.close()
            offset = prefix.offset
        return offset + sum(run.length for run in spans.here(Span(offset, self.size)))

    def _prefix(self) -> Prefix | None:
        """The beginning of the growing file. Raises `NotInParts` if upstream has said another size for the blob."""
        prefix = self._store.prefix(self.digest, self.upstream)
        if prefix is not None and prefix.size not in (None, self.size):
            prefix.reader.close()
            raise NotInParts(f"upstream says that {self.digest} has {prefix.size} bytes", upstream=self.upstream)
        return prefix

    def _rate_of(self, prefix: Prefix | None) -> float | None:
        """The bytes per second of the blob's fill since it was looked at last; None if it has no fill."""
        if prefix is None or not prefix.filled:
            self._prefix_seen = None
            return None
        now, before = self._clock(), self._prefix_seen
        if before is None or now - before[0] > STUCK:
            self._rate = 0.0
        elif now - before[0] < LOOK_LAST:
            return self._rate
        else:
            self._rate = (prefix.offset - before[1]) / (now - before[0])
        self._prefix_seen = now, prefix.offset
        return self._rate

    # ---------------------------------------------------------------------------------------------------- what is not

    def claim(self, place: Span) -> Claim | None:
        """Claims the first bytes of the place that nobody else brings; None if there are none left. Raises
        `NotInParts`, `StoreError`.
        """
        while place.start < place.stop:
            claim = self.opened().claim(place)
            if claim is None:
                return None
            try:
                # after the claim: bytes that were in the spans a moment ago may be in the prefix now
                prefix = self._prefix()
                if prefix is not None:
                    prefix.reader.close()
                elif self._is_stored():
                    # published a moment ago: the spans are dropped after that
                    claim.release()
                    return None
                offset = 0 if prefix is None else prefix.offset
                first = fetch_from(claim.span.start, offset, self._rate_of(prefix), BLOCK)
            except BaseException:
                claim.release()
                raise
            if first <= claim.span.start:
                return claim
            claim.release()
            place = Span(first, place.stop)
        return None

    def _is_stored(self) -> bool:
        with suppress(BlobUnknown, StoreError):
            return self._store.stat(self.digest).size == self.size
        return False

    def dispute(self, said: str) -> None:
        """Upstream has said another size than the manifest: nothing of these parts is right. Raises `StoreError`."""
        self._disputed = said
        self.opened().drop()
