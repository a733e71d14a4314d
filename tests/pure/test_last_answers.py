"""Last answers in words, and what the next pull is said to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.content_rules import ContentRule
from mirror.policy.forecast import Facts, Unfinished, blob_forecast, forecast
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule, choose
from mirror.policy.last_answer import LastAnswer, explain, latest
from mirror.policy.records import Freeze, Sighting, TagRecord
from mirror.policy.rules import LazyRule, RouteRule
from mirror.repository.answers import Outcome

_DIGEST = Digest.of(b"one")
_OTHER = Digest.of(b"two")
_KIND = "application/vnd.oci.image.manifest.v1+json"
_NOW = 1_000_000.0
_HIT = LastAnswer(
    repository="docker.io/library/app",
    kind="manifest",
    reference="v1",
    at=_NOW,
    method="GET",
    status=200,
    outcome="hit",
    upstream="docker.io",
    digest=str(_DIGEST),
    tag_override="",
    error="",
    sent=10,
    seconds=0.1,
    request="1-a",
)
_RULE = RouteRule(FreshnessRule(tag_ttl=300, stale_while_down=3600))


def _record(age: float, digest: Digest = _DIGEST) -> TagRecord:
    return TagRecord("v1", digest, _KIND, 10, _NOW - age)


def _facts(age: float | None = 120, **more: Any) -> Facts:
    given = {"registry": "docker.io", "rule": _RULE, "tag": "v1", "here": True}
    return Facts(**{**given, "record": None if age is None else _record(age), **more})


# ------------------------------------------------------------------------------------------------- last answers


def test_written_and_read_back() -> None:
    """An answer comes back from its JSON as it was."""
    assert LastAnswer.from_json(_HIT.to_json()) == _HIT
    empty = replace(_HIT, reference="", digest="", error="a: b")
    assert LastAnswer.from_json(empty.to_json()) == empty


@pytest.mark.parametrize("written", [None, [], 1, {}, {"at": "x"}, {**_HIT.to_json(), "status": None}])
def test_what_makes_no_sense_is_none(written: object) -> None:
    """Foreign or damaged entries are passed over, whatever they are."""
    assert LastAnswer.from_json(written) is None


def test_the_latest_of_each_counts() -> None:
    """Of several workers' answers about one thing by one method the last one stands, newest first."""
    older, newer = replace(_HIT, at=1.0, outcome="miss"), replace(_HIT, at=2.0)
    head, blob = replace(_HIT, at=3.0, method="HEAD"), replace(_HIT, at=0.5, kind="blob")
    assert latest([newer, blob, older, head]) == [head, newer, blob]


@pytest.mark.parametrize("kind", ["manifest", "blob", "tags", "referrers"])
@pytest.mark.parametrize("reference", ["v1", str(_DIGEST), ""])
@pytest.mark.parametrize("outcome", [one.value for one in Outcome])
def test_every_outcome_has_words(kind: str, reference: str, outcome: str) -> None:
    """Whatever the combination, there is a sentence without a gap in it."""
    said = explain(replace(_HIT, kind=kind, reference=reference, outcome=outcome))
    assert len(said) > 20
    assert "{" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "fresh enough"),
        ({"outcome": "miss"}, "docker.io was asked"),
        ({"outcome": "revalidated"}, "docker.io was asked and confirmed"),
        ({"outcome": "stale"}, "docker.io gave none in time"),
        ({"kind": "blob", "outcome": "joined"}, "another client"),
        ({"kind": "blob", "outcome": "bypass"}, "store could not take"),
        ({"kind": "blob", "error": "client: left"}, "then: client: left"),
        ({"tag_override": "frozen"}, "frozen"),
        ({"tag_override": "minimum-age"}, "minimum_age"),
        ({"status": 403, "error": "Denied: no"}, "refused: Denied: no"),
        ({"status": 404, "error": "ManifestUnknown: none"}, "not found: ManifestUnknown"),
        ({"status": 502}, "an error: status 502"),
        ({"status": 499}, "client went away"),
    ],
)
def test_the_text_of_answers(changes: dict[str, Any], words: str) -> None:
    """The sentence says what decided."""
    assert words in explain(replace(_HIT, **changes))


def test_a_hosted_answer_while_the_bucket_is_down_names_the_bucket() -> None:
    """There is no upstream that could have answered."""
    said = explain(replace(_HIT, outcome="last-seen"), hosted=True)
    assert "the bucket did not answer" in said
    assert "upstream" not in said


# ---------------------------------------------------------------------------------------------------- the next pull


def test_a_hosted_image_while_the_bucket_is_down() -> None:
    """It is the one that was last seen, and not for ever."""
    said = forecast(replace(_facts(120), hosted=True, here=True, unsure="the bucket does not answer"), _NOW)
    assert "stale_while_bucket_down" in said[1]
    assert "the bucket does not answer" in said[2]


def test_a_fresh_tag() -> None:
    """No question, and until when."""
    said = forecast(_facts(120), _NOW)
    assert said[0].startswith("no question to docker.io: the tag's answer is 2m old, and is trusted for 5m, until ")
    assert said[1:] == ["if the tag has not moved: everything from here"]


def test_a_tag_that_is_too_old() -> None:
    """One question, with both numbers, and what happens without an answer."""
    said = forecast(_facts(420, missing=2, unpulled=1), _NOW)
    assert said[0] == "HEAD to docker.io, because the tag's answer is 7m old and the route says 5m"
    assert "marked stale, until" in said[1]
    assert "GET of 2 parts that are not here from docker.io" in said[2]
    assert "(1)" in said[3]
    assert "an error" in forecast(_facts(4000), _NOW)[1]


def test_an_unknown_tag_and_a_wrong_clock() -> None:
    """Both are asked about."""
    said = forecast(_facts(None, here=False), _NOW)
    assert said[0].startswith("HEAD to docker.io, because no answer")
    assert said[1].startswith("GET of the manifest from docker.io")
    assert "from the future" in forecast(_facts(-500), _NOW)[0]


def test_a_digest() -> None:
    """It is never asked about where it is here."""
    assert forecast(_facts(None, tag=""), _NOW) == ["everything from here"]


def test_a_frozen_tag() -> None:
    """Not asked about, however old."""
    freeze = Freeze(Repo("docker.io", "library/app"), "v1", _OTHER, _KIND, 10, "", _NOW)
    said = forecast(_facts(9999, freeze=freeze), _NOW)
    assert str(_OTHER) in said[0]
    assert said[1:] == ["everything from here"]


def test_a_sealed_repository() -> None:
    """Nothing goes out; what is missing is told."""
    rule = replace(_RULE, offline=True)
    assert "never asked" in forecast(_facts(9999, rule=rule), _NOW)[0]
    assert forecast(_facts(rule=rule, missing=3), _NOW)[1] == "404 for 3 parts that are not here"
    assert forecast(_facts(None, rule=rule, here=False), _NOW)[0].startswith("404")


def test_a_route_for_digests_only() -> None:
    """Tags are refused, digests are not."""
    rule = replace(_RULE, content=ContentRule(True, None, ()))
    assert forecast(_facts(rule=rule), _NOW) == ["refused (403): the route takes digests only (require_digest)"]
    assert forecast(_facts(None, rule=rule, tag=""), _NOW) == ["everything from here"]


def test_what_is_denied() -> None:
    """The list's own words, and nothing else."""
    assert forecast(_facts(denied="on no list"), _NOW) == ["refused (403): on no list"]


def test_the_minimum_age() -> None:
    """An older digest instead, or a refusal with its end."""
    age = AgeRule(1000.0)
    seen = [Sighting(_DIGEST, _KIND, 10, _NOW - 5000, _NOW - 50), Sighting(_OTHER, _KIND, 10, _NOW - 50, _NOW)]
    held = forecast(_facts(10, choice=choose(seen, age, _NOW)), _NOW)
    assert f"{_DIGEST} is answered, not {_OTHER}" in held[1]
    refused = forecast(_facts(10, choice=choose(seen[1:], age, _NOW)), _NOW)
    assert refused[-1].startswith("refused (403) until ")


def test_a_blob() -> None:
    """From here, from where its download stopped, from its beginning, or not at all."""
    sealed = replace(_RULE, offline=True)
    assert "is not asked" in blob_forecast("docker.io", _RULE, here=True, unfinished=Unfinished())
    assert blob_forecast("docker.io", _RULE, here=False, unfinished=Unfinished(7)) == (
        "GET from docker.io, from byte 7 on, stored on its way"
    )
    assert "from byte" not in blob_forecast("docker.io", _RULE, here=False, unfinished=Unfinished())
    begun = Unfinished(7, 65536)
    assert blob_forecast("docker.io", _RULE, here=False, unfinished=begun) == (
        "GET from docker.io, from byte 7 on, without the 65.5 kB of it that are here, stored on its way"
    )
    lazy = replace(_RULE, lazy=LazyRule())
    assert "small parts that are here" in blob_forecast("docker.io", lazy, here=False, unfinished=begun)
    assert "small parts" not in blob_forecast("docker.io", lazy, here=False, unfinished=Unfinished(7))
    assert blob_forecast("docker.io", sealed, here=False, unfinished=Unfinished()).startswith("404")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "hosted here, and was served from the disk"),
        ({"tag_override": "frozen"}, "hosted here"),
        ({"outcome": "miss", "kind": "blob"}, "came from the bucket"),
        ({"outcome": "redirected", "kind": "blob", "status": 307}, "was sent to the bucket"),
        ({"method": "PUT", "status": 201}, "a client has pushed it"),
        ({"method": "DELETE", "status": 202}, "a client has deleted it"),
        ({"status": 403, "error": "Denied: x"}, "refused: Denied: x"),
    ],
)
def test_answers_of_hosted_repositories(changes: dict[str, Any], words: str) -> None:
    """Neither freshness nor an upstream explains them."""
    assert words in explain(replace(_HIT, **changes), hosted=True)
