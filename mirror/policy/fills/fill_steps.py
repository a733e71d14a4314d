"""What the filler of a growing blob does next, if bytes of the blob may have come out of turn. Pure.

prefix ──────>|== here ==|          |== claimed: somebody fetches it ==|        size
              take it    fetch up to                wait for it, then take it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import joined

#: Each run that is here ahead costs one more request. If there are more runs than this, only those of at least so many
#: bytes are worth one, and the bytes of the others are fetched again.
_MOST_RUNS: Final = 64
_WORTH_A_REQUEST: Final = 1 << 20
#: A run that grows is taken in pieces of at least so many bytes: each is one call of the store.
_WORTH_TAKING: Final = 1 << 20
#: Bytes of one request where others may want parts of the rest meanwhile, and the seconds that it should take.
_LEAST_PIECE: Final = 8 << 20
_MOST_PIECE: Final = 64 << 20
_PIECE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Take:
    """These bytes are here: they are next."""

    span: Span


@dataclass(frozen=True, slots=True)
class Await:
    """Somebody fetches the next bytes. Those before `reach` are here."""

    reach: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask a source for the bytes from the offset up to `stop` (None: up to the end of the blob). If it `skips`, some of
    them are here.
    """

    stop: int | None
    skips: bool = False


Step: TypeAlias = Take | Await | Fetch


def next_step(
    offset: int,
    size: int,
    here: Sequence[Span],
    taken: Sequence[Span],
    *,
    answered: bool = True,
    patient: bool = True,
) -> Step:
    """The next step of a fill that has the bytes before `offset`, of `size` in all.

    `here` and `taken` are runs of the bytes from `offset` on, ascending. Until upstream has `answered`, it is asked
    even for bytes that are here: its answer gives the right to them, and the size. If not `patient`, nobody is waited
    for.
    """
    at_once = here[0] if here and here[0].start <= offset else None
    reach = at_once.stop if at_once else offset
    is_coming = patient and any(span.start <= reach < span.stop for span in taken)
    if not answered and (at_once or is_coming):
        return Fetch(offset + 1 if offset + 1 < size else None)
    if at_once and not (is_coming and at_once.stop - offset < _WORTH_TAKING):
        return Take(Span(offset, at_once.stop))
    if is_coming:
        return Await(reach)
    ahead = [run for run in joined([*here, *(taken if patient else ())]) if run.start > offset]
    worth = ahead
    if len(ahead) > _MOST_RUNS:
        worth = [run for run in ahead if run.length >= _WORTH_A_REQUEST or run.stop >= size]
    return Fetch(worth[0].start if worth else None, skips=worth[:1] != ahead[:1])


def piece_of(received: int, seconds: float) -> int:
    """The bytes of the next request, if the last one brought `received` bytes in `seconds`."""
    rate = received / seconds if seconds > 0 else 0.0
    return int(min(_MOST_PIECE, max(_LEAST_PIECE, rate * _PIECE_SECONDS)))
