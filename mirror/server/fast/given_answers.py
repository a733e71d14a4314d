"""What is noted of answers from the table: the same metrics, lines of log and audit log, and notes of use as of all
others.

    requests that have arrived at the same time ──> their answers are noted together ──> and then sent

So whoever reads metrics or log sees every answer that a client has got. For all answers of a turn of the event loop,
each counter is raised once and the log is written once: what costs time is each such call, not what it adds or writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

from prometheus_client import Counter, Histogram

from mirror import telemetry
from mirror.inspect.recent_answers import Answered, RecentAnswers

#: The fields of a line in the access log that differ from one answer to the next, in the order of the line.
VARYING: Final = ("id", "client", "duration")


@dataclass(frozen=True, slots=True, eq=False)
class AnswerFacts:
    """What is noted each time that an answer is given. All such answers have status 200.

    `line` and `audited` are the fields of the two logs, with any values in `VARYING` fields; None: nothing is logged.
    `used` notes the use of the content.
    """

    kind: str
    method: str
    record: Answered
    used: Callable[[], None]
    line: Mapping[str, Any] | None
    audited: Mapping[str, Any] | None
    notices: Sequence[tuple[telemetry.Notice, Mapping[str, Any]]] = ()
    #: The labels of its metrics: the kind of resource, and the outcome.
    labels: tuple[str, str] = field(init=False)
    _pieces: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", (self.kind, self.record.outcome.value))

    @property
    def pieces(self) -> Sequence[str]:
        """The line around its varying fields; made when it is first needed: most answers are never given again."""
        if not self._pieces and self.line is not None:
            self._pieces.extend(telemetry.LinePattern("request", self.line, VARYING).pieces)
        return self._pieces


#: An answer that is given: its facts, the client, and the seconds that it took.
Given: TypeAlias = tuple[AnswerFacts, str, float]


class GivenAnswers:
    """Notes the answers of one process. `number` makes the identifier of the next request; `audit` writes one line of
    the audit log.
    """

    def __init__(
        self,
        number: Callable[[], str],
        recent: RecentAnswers | None = None,
        audit: Callable[..., None] | None = None,
    ) -> None:
        self._number = number
        self._recent = recent
        self._audit = audit

    def __repr__(self) -> str:
        return f"<GivenAnswers {self._recent!r}>"

    def note(self, given: Sequence[Given]) -> None:
        """Note these answers, in the order in which they were given."""
        number, directly = self._number, telemetry.takes_lines()
        lines: list[str] = []
        counts: dict[tuple[str, str], _Counts] = {}
        latest: dict[AnswerFacts, _Latest] = {}
        for facts, client, seconds in given:
            identifier = number()
            if facts.line is not None:
                if directly:
                    before, then, after, end = facts.pieces
                    lines.append(f'{before}"{identifier}"{then}{_text(client)}{after}{round(seconds, 6)!r}{end}')
                else:
                    varying = {"id": identifier, "client": client, "duration": round(seconds, 6)}
                    telemetry.log.info("request", **{**facts.line, **varying})
            if facts.audited is not None and self._audit is not None:
                self._audit(**{**facts.audited, "id": identifier, "client": client})
            count = counts.get(facts.labels)
            if count is None:
                count = counts[facts.labels] = _Counts()
            count.answers += 1
            count.sent += facts.record.sent
            if seconds <= telemetry.SHORTEST:
                count.short += 1
                count.seconds += seconds
            else:
                seconds_of(*facts.labels).observe(seconds)
            last = latest.get(facts)
            if last is None:
                last = latest[facts] = _Latest()
            last.answers += 1
            last.seconds, last.identifier = seconds, identifier
        if lines:
            telemetry.write_lines(lines)
        for labels, count in counts.items():
            _add(labels, count)
        for facts, last in latest.items():
            self._note_use(facts, last)

    def _note_use(self, facts: AnswerFacts, last: _Latest) -> None:
        facts.used()
        if self._recent is not None:
            # of equal requests only the last one is remembered
            self._recent.note(facts.kind, facts.method, 200, facts.record, last.seconds, last.identifier)
        if telemetry.is_listened_to():
            for _ in range(last.answers):
                for what, fields in facts.notices:
                    telemetry.notice(what, **fields)


class _Counts:
    """Answers with the same labels: how many, the bytes of their bodies, and how many took a short time, and how long
    together.
    """

    __slots__ = ("answers", "seconds", "sent", "short")

    def __init__(self) -> None:
        self.answers = self.sent = self.short = 0
        self.seconds = 0.0


class _Latest:
    """Answers with the same facts: how many, and the time and identifier of the last one."""

    __slots__ = ("answers", "identifier", "seconds")

    def __init__(self) -> None:
        self.answers = 0
        self.seconds = 0.0
        self.identifier = ""


def _add(labels: tuple[str, str], counts: _Counts) -> None:
    kind, outcome = labels
    requests_of(kind, 200, outcome).inc(counts.answers)
    if counts.short:
        telemetry.observe_short(seconds_of(kind, outcome), counts.short, counts.seconds)
    if counts.sent:
        sent_of(outcome).inc(counts.sent)


@lru_cache(4096)
def _text(client: str) -> str:
    return json.dumps(client)


# Metrics with their labels, cached: `labels()` takes a lock and builds strings, which is too slow for every request.


@cache
def requests_of(kind: str, status: int, outcome: str) -> Counter:
    """The counter of answered requests."""
    return telemetry.REQUESTS.labels(kind, status, outcome)


@cache
def seconds_of(kind: str, outcome: str) -> Histogram:
    """The histogram of their times."""
    return telemetry.REQUEST_SECONDS.labels(kind, outcome)


@cache
def sent_of(outcome: str) -> Counter:
    """The counter of the bytes of their bodies."""
    return telemetry.SENT_BYTES.labels(outcome)
