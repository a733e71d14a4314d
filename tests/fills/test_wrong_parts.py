"""Who was sent unverified parts of a wrong blob is reported, and no more of them than a report can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from mirror import telemetry
from mirror.fills.wrong_parts import report_wrong_parts
from mirror.oci.digest import Digest

_DIGEST = Digest.of(b"what it should have been")


def _report(count: int) -> tuple[list[Any], list[tuple[telemetry.Notice, Mapping[str, Any]]]]:
    noticed: list[tuple[telemetry.Notice, Mapping[str, Any]]] = []
    end = telemetry.listen(lambda what, fields: noticed.append((what, fields)))
    try:
        with structlog.testing.capture_logs() as lines:
            report_wrong_parts(_DIGEST, "ghcr.io", "ghcr.io", [{"by": f"user:{number}"} for number in range(count)])
    finally:
        end()
    return list(lines), noticed


def test_the_last_answers_are_named() -> None:
    lines, [(what, fields)] = _report(120)
    assert what is telemetry.Notice.PARTS_WRONG
    assert (fields["digest"], fields["upstream"], fields["answers"]) == (str(_DIGEST), "ghcr.io", 120)
    assert [line["by"] for line in fields["served"]] == [f"user:{number}" for number in range(70, 120)]
    [line] = lines
    assert (line["event"], line["log_level"], line["served"]) == (
        "unverified parts were wrong",
        "error",
        fields["served"],
    )


def test_a_blob_of_which_no_part_was_sent_is_not_reported() -> None:
    assert _report(0) == ([], [])
