"""Reports about clients that were sent unverified parts: of a blob that was wrong, or that nobody fetched whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mirror import telemetry
from mirror.oci.digest import Digest

#: Answers that the report names, at most. The notes beside the blob are bounded as well.
_MOST_NAMED: Final = 50


def report_wrong_parts(digest: Digest, upstream: str, label: str, served: Sequence[Mapping[str, object]]) -> None:
    """Says in the log, the metrics and the events who was sent parts. `served` has the notes of these answers, the
    oldest first; nothing is reported if there are none. `label` is the configured upstream that the registry `upstream`
    belongs to.
    """
    if not served:
        return
    # those that were served last are the likeliest to have taken wrong bytes for right ones
    named = [dict(line) for line in served[-_MOST_NAMED:]]
    telemetry.LAZY_WRONG.labels(label).inc()
    telemetry.log.error(
        "unverified parts were wrong", digest=str(digest), upstream=upstream, answers=len(served), served=named
    )
    telemetry.notice(
        telemetry.Notice.PARTS_WRONG, digest=str(digest), upstream=upstream, answers=len(served), served=named
    )


def report_unchecked_parts(digest: Digest, served: Sequence[Mapping[str, object]]) -> None:
    """Says in the log who was sent parts of a blob that were dropped before the whole could be verified."""
    telemetry.log.info(
        "unverified parts never checked",
        digest=str(digest),
        upstream=str(served[-1].get("upstream", "")) if served else "",
        answers=len(served),
        served=[dict(line) for line in served[-_MOST_NAMED:]],
    )
