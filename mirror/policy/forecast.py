"""Predicts in words what the next pull of an image will do. The decisions are those of `repository/proxied.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mirror.policy.freshness import is_fresh, may_serve_stale
from mirror.policy.history import Choice
from mirror.policy.records import Freeze, TagRecord
from mirror.policy.rules import RouteRule
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size
from mirror.values.timestamps import format_moment


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one image.

    `registry` is its upstream. `tag` is empty if the image is pulled by digest. `here` says whether the manifest that
    will be answered is on disk. `missing` is the number of its blobs and manifests that are not on disk. `unpulled` is
    the number of its platforms that no client has asked for. `denied` is the reason if the content lists deny it.
    `hosted`: the repository is hosted here, and has no upstream. `recorded`: the repository has a record of the
    manifest, whether its bytes are here or not. `unsure`: why it cannot be known now what of a hosted repository is not
    on the disk; empty: it is known.
    """

    registry: str
    rule: RouteRule
    tag: str = ""
    record: TagRecord | None = None
    freeze: Freeze | None = None
    choice: Choice | None = None
    here: bool = False
    missing: int = 0
    unpulled: int = 0
    denied: str = ""
    hosted: bool = False
    recorded: bool = False
    unsure: str = ""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an unfinished download has of a blob, in bytes: the first `beginning` bytes, and `parts` behind these, which
    came out of turn. None of them is verified.
    """

    beginning: int = 0
    parts: int = 0

    def __bool__(self) -> bool:
        return bool(self.beginning or self.parts)


def forecast(facts: Facts, now: float) -> list[str]:
    """A sentence for each step of the pull, in order. `now` is in epoch seconds."""
    if facts.tag and facts.rule.content.require_digest:
        return ["refused (403): the route takes digests only (require_digest)"]
    if facts.denied:
        return [f"refused (403): {facts.denied}"]
    if facts.hosted:
        return list(_hosted(facts))
    if facts.rule.offline:
        return list(_sealed(facts))
    steps = list(_of_tag(facts, now)) if facts.tag else []
    if _is_refused(facts):
        return steps
    return [*steps, *_of_content(facts)]


def blob_forecast(registry: str, rule: RouteRule, *, here: bool, unfinished: Unfinished) -> str:
    """What the next pull of a blob will do. `unfinished` is what is here of it."""
    if here:
        return f"served from here; {registry} is not asked"
    if rule.offline:
        return "404: the repository is sealed (offline), and it is not here"
    begun = f", from byte {unfinished.beginning} on" if unfinished.beginning else ""
    begun += f", without the {format_size(unfinished.parts)} of it that are here" if unfinished.parts else ""
    lazily = "; until then, small parts that are here are sent unverified" if rule.lazy and unfinished.parts else ""
    return f"GET from {registry}{begun}, stored on its way{lazily}"


def hosted_blob_forecast(*, here: bool, unsure: str = "") -> str:
    """What the next pull of a blob of a hosted repository will do. `unsure`: see `Facts`."""
    if not here and unsure:
        return _cannot_be_told(unsure)
    if here:
        return "served from here, if the blob was pushed to this repository or mounted there"
    return "404: the registry is hosted here, and the blob is not"


def _cannot_be_told(unsure: str) -> str:
    return f"503 as long as this lasts, unless the disk has it: {unsure}"


def _hosted(facts: Facts) -> Iterator[str]:
    if facts.unsure and not facts.here:
        yield _cannot_be_told(facts.unsure)
        return
    if not facts.here and facts.recorded:
        yield "fails, unless still in memory: its manifest is lost, or damaged and set aside; push the image again"
        return
    if not facts.here:
        yield "404: the registry is hosted here, and the image was not pushed, or was deleted (see `mirror undelete`)"
        return
    yield "served from here, to callers whom an access rule allows to pull"
    if facts.unsure:
        yield (
            "as it was last seen in the bucket; in a cluster with a Warning, and 503 once that is longer ago than"
            " stale_while_bucket_down"
        )
        yield f"for its blobs: {_cannot_be_told(facts.unsure)}"
    elif facts.missing:
        yield f"404 for {_parts(facts.missing)} not here: push the image again"


def _sealed(facts: Facts) -> Iterator[str]:
    if not facts.here:
        yield "404, recorded for `mirror misses`: the repository is sealed (offline), and the image is not here"
        return
    yield f"served from here whatever its age: the repository is sealed (offline), {facts.registry} is never asked"
    if facts.missing:
        yield f"404 for {_parts(facts.missing)} not here"


def _of_tag(facts: Facts, now: float) -> Iterator[str]:
    freeze, record, registry, rule = facts.freeze, facts.record, facts.registry, facts.rule.freshness
    if freeze:
        yield f"no question to {registry}: the tag is frozen at {freeze.digest} since {format_moment(freeze.since)}"
        return
    if record is None:
        yield f"HEAD to {registry}, because no answer about this tag is stored here"
        return
    age, ttl = now - record.fetched_at, format_duration(rule.tag_ttl)
    if is_fresh(record.fetched_at, now, rule):
        until = format_moment(record.fetched_at + rule.tag_ttl)
        old = format_duration(max(0.0, age))
        yield f"no question to {registry}: the tag's answer is {old} old, and is trusted for {ttl}, until {until}"
    elif age < 0:
        yield f"HEAD to {registry}, because the tag's answer is from the future: a clock was wrong"
    else:
        yield f"HEAD to {registry}, because the tag's answer is {format_duration(age)} old and the route says {ttl}"
        yield _when_down(facts, record, now)
    yield from _of_age(facts)


def _when_down(facts: Facts, record: TagRecord, now: float) -> str:
    rule = facts.rule.freshness
    longest = max(rule.tag_ttl, rule.stale_while_down)
    if may_serve_stale(record.fetched_at, now, rule):
        until = format_moment(record.fetched_at + longest)
        return f"should {facts.registry} not answer: the old answer, marked stale, until {until}"
    limit = format_duration(longest)
    return f"should {facts.registry} not answer: an error, for the old answer is older than {limit} (stale_while_down)"


def _of_age(facts: Facts) -> Iterator[str]:
    choice = facts.choice
    if choice is None or not choice.held_back:
        return
    if choice.serve is None:
        yield f"refused (403) until {format_moment(choice.any_from)}: too new (minimum_age)"
        return
    yield (
        f"unless the tag has moved: {choice.serve.digest} is answered, not {choice.newest.digest}, which is too new"
        f" until {format_moment(choice.newest_from)} (minimum_age)"
    )


def _is_refused(facts: Facts) -> bool:
    return not facts.freeze and facts.choice is not None and facts.choice.held_back and facts.choice.serve is None


def _of_content(facts: Facts) -> Iterator[str]:
    registry = facts.registry
    if not facts.here:
        yield f"GET of the manifest from {registry}, because it is not here; then of what it names and is not here"
        return
    same = "if the tag has not moved: " if facts.tag and not facts.freeze else ""
    if facts.missing:
        yield f"{same}the manifest from here, GET of {_parts(facts.missing)} not here from {registry}"
    else:
        yield f"{same}everything from here"
    if facts.unpulled:
        yield f"GET from {registry} of platforms that were not pulled yet ({facts.unpulled})"


def _parts(count: int) -> str:
    return "one part that is" if count == 1 else f"{count} parts that are"
