"""Whether a blob comes faster by several connections, and which bytes each of them asks for. Pure.

    alone ── measured ── worth it? ──> one more on trial ──┬── the whole is faster ──> kept, and perhaps one more …
      ^                      └── no: it is here soon       └── it is not ────────────> given back, and no more are tried
      └── the filler's own connection: it always goes on at the prefix

    prefix ──────>|own request|-- left to the filler --|== further ==|== further ==|== further ==|      gap
                                 (as long as its next request)

What a link or an upstream gives in all is shared by its connections, and a further one then brings nothing but work.
What it gives to each connection is multiplied. Only a trial tells the two apart: nobody announces such limits. If bytes
wait in the kernel because this machine takes them too slowly, nothing is tried: bytes out of turn are written twice.

Without the bytes that are left to it, the filler would soon find everything that is next to be coming already, and its
own connection would have nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK

#: Bytes that a blob must have left for a further connection, and bytes of the first request: what a fast upstream sends
#: in a moment.
LEAST_REST: Final = 32 << 20
#: Seconds of its connection that a request should take, and the bounds of its bytes. Each request costs a round trip,
#: or several if the registry redirects; the bytes of several wait on the disk for those before them.
_PIECE_SECONDS: Final = 2.0
_LEAST_PIECE: Final = 8 << 20
_MOST_PIECE: Final = 128 << 20
#: Bytes of the last requests, which are smaller so that all connections end together.
_LAST_PIECE: Final = 4 << 20
#: Seconds: if the rest would be here sooner, nothing is changed any more.
_SOON: Final = 1.5
#: Bytes a second from which on no further connection is tried: hashing and writing are the limit then, or soon.
_FAST: Final = 200 << 20
#: Seconds over which a rate is measured, and that must have passed since the last change.
_WINDOW: Final = 0.3
#: By how much the whole must become faster in a trial, and its seconds: from which on it can succeed; for which a gain
#: must be enough, however soon it came; and after which it fails.
_GAIN: Final = 1.15
_TRIAL_AT_LEAST: Final = 0.2
_TRIAL_WHOLE: Final = 0.6
_TRIAL_AT_MOST: Final = 2.0
#: The weight of one sample in the average share of connections whose bytes wait for this machine; the share from which
#: on this machine is the narrow place, and below which a further connection may be tried.
_SHARE: Final = 0.1
_FULL: Final = 0.5
_FREE: Final = 0.25

#: Seconds that the filler waits for a connection without a first byte, and over which it judges one that sends.
_LATE: Final = 0.5
_SLOW: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """Of one more connection: since when it sends, how many bytes there were then, and the rate before."""

    began: float
    bytes: int
    rate: float


class RampUp:
    """How many connections a blob has, decided by how fast all of them together are.

    sample ── the rate is known ──> one more is wanted ── `is_sending` ──> trial ──> it stays, or `is_settled`
    """

    def __init__(self, most: int, known: int | None = None) -> None:
        """`most` connections are allowed. `known` is the number that was best for this upstream lately; None: not
        known.
        """
        self._most = most
        #: The connections that the blob should have, with the filler's own one.
        self.wanted = 1 if known is None else max(1, min(known, most))
        #: True if no further one will be tried.
        self.is_settled = known is not None or most <= 1
        #: True if trials with this blob have shown how many are best.
        self.has_learnt = False
        #: The bytes a second of all connections, over the last moment; 0 while not known.
        self.rate = 0.0
        self._samples: deque[tuple[float, int]] = deque()
        self._changed_at: float | None = None
        self._trial: _Trial | None = None
        self._rate_before = 0.0
        self._is_opening = False
        #: The share of the connections whose bytes have waited for this machine lately.
        self._behind = _FREE

    def __repr__(self) -> str:
        return f"<RampUp {self.wanted} of {self._most}{', settled' if self.is_settled else ''}, {self.rate:.0f} B/s>"

    def sample(self, now: float, received: int, rest: int, behind: float | None = 0.0) -> None:
        """All connections together have brought `received` bytes at `now` seconds, and `rest` bytes are missing.
        `behind` is the share of them whose bytes have arrived faster than they were taken; None: there are none.
        """
        if behind is not None:
            self._behind += (behind - self._behind) * _SHARE
        if self._changed_at is None:
            self._changed_at = now
        samples = self._samples
        samples.append((now, received))
        while len(samples) > 2 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        seconds = now - samples[0][0]
        if seconds >= _WINDOW:
            self.rate = (received - samples[0][1]) / seconds
        if self.is_settled:
            return
        if self._trial is not None:
            self._judge(self._trial, now, received)
        elif (
            not self._is_opening
            and self._behind < _FREE
            and now - self._changed_at >= _WINDOW <= seconds
            and not self.ends_soon(rest)
        ):
            # the connection that is tried has to be faster than the others were just before it
            self._rate_before = self.rate
            self._is_opening = True
            self.wanted += 1

    def _judge(self, trial: _Trial, now: float, received: int) -> None:
        seconds, gained = now - trial.began, received - trial.bytes
        if self.is_full and seconds >= _TRIAL_WHOLE:
            # further bytes would only wait for this machine; at another time it may be free
            self.wanted -= 1
            self._trial = None
            self.is_settled = True
        elif seconds >= _TRIAL_AT_LEAST and gained > 0 and gained >= _GAIN * trial.rate * max(seconds, _TRIAL_WHOLE):
            # the rate of the last moment is that of all of them by now
            self._trial, self._changed_at = None, trial.began
            self.is_settled = self.has_learnt = self.wanted >= self._most
        elif seconds >= _TRIAL_AT_MOST:
            self.wanted -= 1
            self._trial = None
            self.is_settled = self.has_learnt = True

    def is_sending(self, now: float, received: int) -> None:
        """The connection that was wanted last has its first byte: its trial begins."""
        if self._is_opening and not self.is_settled:
            self._is_opening = False
            self._trial = _Trial(now, received, self._rate_before)

    def lost(self) -> None:
        """A further connection has failed: it is not replaced, and no more are tried for this blob."""
        self.wanted = max(1, self.wanted - 1)
        self._settle()

    def alone(self) -> None:
        """The upstream wants one connection, or serves no parts."""
        self.wanted = 1
        self._settle()

    @property
    def is_full(self) -> bool:
        """True if this machine is the narrow place: bytes arrive faster than they are taken."""
        return self._behind >= _FULL

    def ends_soon(self, rest: int) -> bool:
        """True if the rest will be here before a change could make a difference, or comes as fast as it can be used."""
        return rest < LEAST_REST // 2 or rest <= self.rate * _SOON or self.rate >= _FAST

    def _settle(self) -> None:
        self.is_settled, self._is_opening, self._trial = True, False, None


def own_stop(ramp: RampUp, offset: int, size: int, seconds: float) -> int | None:
    """Where the filler's own request from `offset` on ends; None: with the blob. The blob has been received for
    `seconds`.
    """
    rest = size - offset
    if ramp.wanted == 1 and (ramp.is_settled or (seconds >= _WINDOW and (ramp.is_full or ramp.ends_soon(rest)))):
        return None
    if ramp.wanted == 1:
        # nothing is known yet, or there is nothing to gain but what a trial might show later
        piece = min(LEAST_REST, rest // 2) if not seconds else max(LEAST_REST, rest // 4)
    else:
        piece = _piece(ramp.rate / ramp.wanted, rest, ramp.wanted)
    return _up_to(offset + piece, size)


def further_span(ramp: RampUp, gaps: Sequence[Span], size: int) -> Span | None:
    """What a further connection asks for, of the `gaps` behind the filler's own request, ascending; None: nothing.

    As many bytes at the beginning of the gaps as the filler's own next request has are left to it.
    """
    rest = sum(gap.length for gap in gaps)
    piece = left = _piece(ramp.rate / ramp.wanted, rest, ramp.wanted)
    if not ramp.is_settled:
        # the connection may be given back after it
        piece = min(piece, LEAST_REST)
    short: Span | None = None
    for gap in gaps:
        start = _aligned(gap.start + left)
        left = max(0, left - gap.length)
        if start < gap.stop:
            span = Span(start, min(gap.stop, start + piece))
            if span.length >= _LAST_PIECE:
                return span
            short = short or span
    return short


def is_straggler(waited: float, brought: int, rate: float, *, has_begun: bool) -> bool:
    """True if the filler, which has `waited` seconds for bytes that a further connection fetches, should fetch them
    itself: the connection has brought nothing so far, or, in that time, nothing or much less than the filler's own,
    which had `rate` bytes a second.
    """
    if not has_begun:
        return waited >= _LATE
    return waited >= _SLOW and (not brought or brought < rate * waited / 2)


def _piece(rate: float, rest: int, connections: int) -> int:
    """The bytes of one request, in whole blocks, by a connection of this rate."""
    wanted = min(_MOST_PIECE, max(_LEAST_PIECE, rate * _PIECE_SECONDS))
    return _aligned(int(max(_LAST_PIECE, min(wanted, rest / connections))))


def _aligned(offset: int) -> int:
    return -(-offset // BLOCK) * BLOCK


def _up_to(offset: int, size: int) -> int | None:
    stop = _aligned(offset)
    # what would be left is not worth a request of its own
    return stop if stop + _LAST_PIECE < size else None
