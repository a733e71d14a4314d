"""What is noted of answers that are given from the table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry, Histogram

from mirror import telemetry
from mirror.inspect.recent_answers import RecentAnswers
from mirror.oci.digest import Digest
from mirror.repository.answers import Outcome
from mirror.server.fast.given_answers import AnswerFacts, GivenAnswers
from mirror.server.registry.pull import RequestRecord
from tests.support.live_mirror import _logging_to

_DIGEST = Digest.of(b"x")
_RECORD = RequestRecord(Outcome.HIT, "docker.io", 7, repository="docker.io/library/app", reference="v1", digest=_DIGEST)
_LINE: dict[str, Any] = {
    "id": "",
    "client": "",
    "method": "GET",
    "path": '/v2/"é\x01?x=https://a:secret@b/?c',
    "status": 200,
    "upstream": None,
    "duration": 0.0,
    "tag": "frozen",
}


def _facts(**more: Any) -> AnswerFacts:
    used: list[int] = []
    fields: dict[str, Any] = {
        "kind": "manifest",
        "method": "GET",
        "record": _RECORD,
        "used": lambda: used.append(1),
        "line": _LINE,
        "audited": None,
        **more,
    }
    return AnswerFacts(**fields)


def _numbers() -> Any:
    count = iter(range(1, 1000))
    return lambda: f"a-{next(count):x}"


def test_lines_are_those_of_the_log() -> None:
    """Rendered at once, a line differs in nothing from one that passes through all steps, whatever a path has in it."""
    output = io.StringIO()
    given = [(_facts(), "192.0.2.1", 0.0000123), (_facts(), "2001:db8::1", 1.5)]
    with _logging_to(output):
        GivenAnswers(_numbers()).note(given)
        for number, (_, client, seconds) in enumerate(given, 1):
            fields = {**_LINE, "id": f"a-{number:x}", "client": client, "duration": round(seconds, 6)}
            telemetry.log.info("request", **fields)
    lines = output.getvalue().splitlines()
    assert "secret" not in lines[0]
    read = [json.loads(line) for line in lines]
    for line in read:
        assert line.pop("time").endswith("Z")
    assert [[*line] for line in read[:2]] == [[*line] for line in read[2:]]
    assert read[:2] == read[2:]
    cut = [line.partition('"time":')[0] for line in lines]
    assert cut[:2] == cut[2:]


def test_a_log_that_is_configured_in_another_way() -> None:
    """Then every line takes the ordinary way; and one whose level leaves such lines out gets none."""
    with structlog.testing.capture_logs() as captured:
        GivenAnswers(_numbers()).note([(_facts(), "192.0.2.1", 0.1)])
    assert [(line["event"], line["id"], line["duration"]) for line in captured] == [("request", "a-1", 0.1)]
    output = io.StringIO()
    with _logging_to(output):
        telemetry.set_up_logging("warning", output)
        GivenAnswers(_numbers()).note([(_facts(), "192.0.2.1", 0.1)])
    assert not output.getvalue()


def test_counts_are_exact() -> None:
    """Each answer is counted once, in the bucket of its own time; the use and the last answer are noted once."""
    uses: list[int] = []
    recent = RecentAnswers()
    record = replace(_RECORD, outcome=Outcome.JOINED)
    facts = _facts(record=record, used=lambda: uses.append(1), line=None)
    times = [0.0001, 0.001, 0.0011, 0.3]
    before = _samples()
    GivenAnswers(_numbers(), recent).note([(facts, "192.0.2.1", seconds) for seconds in times])
    between = _samples()
    for seconds in times:
        telemetry.REQUESTS.labels("manifest", 200, "joined").inc()
        telemetry.REQUEST_SECONDS.labels("manifest", "joined").observe(seconds)
        telemetry.SENT_BYTES.labels("joined").inc(7)
    after = _samples()
    changed = {name for name in after if after[name] != before.get(name, 0.0)}
    assert len(changed) > 5
    for name in changed:
        assert between[name] - before.get(name, 0.0) == pytest.approx(after[name] - between[name])
    assert uses == [1]
    [last] = recent.answers()
    assert (last.request, last.seconds, last.digest) == ("a-4", 0.3, str(_DIGEST))


def _samples() -> dict[str, float]:
    families = (telemetry.REQUESTS, telemetry.REQUEST_SECONDS, telemetry.SENT_BYTES)
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families
        for metric in family.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_many_observations_at_once() -> None:
    """The library's histogram has the parts that are used."""
    registries = CollectorRegistry(), CollectorRegistry()
    one, other = (Histogram("t", "t", buckets=(telemetry.SHORTEST, 1.0), registry=registry) for registry in registries)
    telemetry.observe_short(one, 3, 0.0015)
    for _ in range(3):
        other.observe(0.0005)
    first, second = (
        {f"{s.name}{s.labels}": s.value for m in registry.collect() for s in m.samples if "created" not in s.name}
        for registry in registries
    )
    assert first == pytest.approx(second)


def test_notices_and_audit_lines_are_made_for_each_answer(tmp_path: Path) -> None:
    """Nothing is summed up there: each is an event of its own."""
    lines: list[dict[str, Any]] = []
    noticed: list[Any] = []
    fields = {"repository": "docker.io/library/app"}
    facts = _facts(
        line=None,
        audited={"id": "", "caller": None, "client": "", "kind": "manifest"},
        notices=[(telemetry.Notice.MANIFEST_ANSWERED, fields)],
    )
    stop = telemetry.listen(lambda what, said: noticed.append((what, said)))
    try:
        notes = GivenAnswers(_numbers(), None, lambda **line: lines.append(line))
        notes.note([(facts, "192.0.2.1", 0.1), (facts, "192.0.2.2", 0.1)])
    finally:
        stop()
    assert [[*line.items()] for line in lines] == [
        [("id", f"a-{number}"), ("caller", None), ("client", f"192.0.2.{number}"), ("kind", "manifest")]
        for number in (1, 2)
    ]
    assert noticed == [(telemetry.Notice.MANIFEST_ANSWERED, fields)] * 2
