"""Which events report a change, whole or interrupted; who is informed; and how they are sent."""

from __future__ import annotations

import hmac
import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.attempts import LONGEST_PAUSE, Reception, pause, reception
from mirror.policy.events.changes import (
    COLLECTED,
    DELETED,
    LOST,
    MOUNTED,
    PUSHED,
    RETAGGED,
    RETENTION_RAN,
    TAG_DELETED,
    TAG_MOVED,
    TAG_UNDELETED,
    TYPES,
    TYPES_OF,
    UNDELETED,
    UPSTREAM_DOWN,
    ChangeKind,
    Event,
    HostedChange,
    SeenChange,
    all_of,
    events_of,
    seen_tags,
)
from mirror.policy.events.cloud_events import cloud_event
from mirror.policy.events.noticed import event_of
from mirror.policy.events.signature import SIGNATURE, TIMESTAMP, signed_headers
from mirror.policy.events.subscriptions import Subscription, Subscriptions, matching_types

_REPO = Repo("corp", "team/app")
_OLD, _NEW, _OTHER = (Digest.of(text) for text in (b"old", b"new", b"other"))


def _push(*tags: str, had: bool = False, before: dict[str, Digest] | None = None) -> HostedChange:
    return HostedChange(ChangeKind.PUSH, _REPO, "user:ann", _NEW, tags, "type", 7, had=had, before=before or {})


def _types(events: tuple[Event, ...]) -> list[str]:
    return [event.type for event in events]


def test_a_whole_push_is_reported_with_its_tags() -> None:
    """And each tag that moved from another image."""
    push = _push("v1", "latest", before={"latest": _OLD})
    pushed, retagged = events_of(push, all_of(push))
    assert (pushed.type, pushed.subject, pushed.key, pushed.repo) == (PUSHED, "corp/team/app", "corp/team/app", _REPO)
    assert pushed.data == {
        "registry": "corp",
        "repository": "team/app",
        "digest": str(_NEW),
        "mediaType": "type",
        "size": 7,
        "tags": ["v1", "latest"],
        "by": "user:ann",
    }
    assert retagged.type == RETAGGED
    assert (retagged.data["tag"], retagged.data["from"], retagged.data["to"]) == ("latest", str(_OLD), str(_NEW))


def test_the_same_digest_again_moves_no_tag() -> None:
    """It is a push, and nothing was retagged."""
    push = _push("v1", had=True, before={"v1": _NEW})
    assert _types(events_of(push, all_of(push))) == [PUSHED]


def test_of_an_interrupted_push_only_what_is_there_is_reported() -> None:
    """The tags that point to it now; the manifest alone if it is new; nothing if nothing is new."""
    push = _push("a", "b")
    assert events_of(push, SeenChange(False)) == ()
    [event] = events_of(push, SeenChange(True, ("b",)))
    assert event.data["tags"] == ["b"]
    assert _types(events_of(push, SeenChange(True))) == [PUSHED]
    assert events_of(_push("a", had=True), SeenChange(True)) == ()


def test_a_tag_that_another_change_has_moved_is_uncertain() -> None:
    """It pointed to the digest in between, or it did not."""
    push = _push("a", "b", "c", "d", before={"b": _OLD, "c": _OLD, "d": _NEW})
    assert seen_tags(push, {"a": None, "b": _OLD, "c": _NEW, "d": _NEW}) == (("c", "d"), True)
    assert seen_tags(push, {"a": _OTHER, "b": _OLD, "c": _OLD, "d": _NEW}) == (("a", "d"), False)
    [event] = events_of(_push("a"), SeenChange(True, ("a",), certain=False))
    assert event.data["certain"] is False


@pytest.mark.parametrize(
    ("kind", "there", "gone", "expected"),
    [
        (ChangeKind.DELETE, SeenChange(False), SeenChange(True), DELETED),
        (ChangeKind.UNDELETE, SeenChange(True, ("v1",)), SeenChange(False), UNDELETED),
        (ChangeKind.DELETE_TAG, SeenChange(False), SeenChange(True, ("v1",)), TAG_DELETED),
        (ChangeKind.UNDELETE_TAG, SeenChange(True, ("v1",)), SeenChange(True), TAG_UNDELETED),
        (ChangeKind.MOUNT, SeenChange(True), SeenChange(False), MOUNTED),
    ],
)
def test_other_changes(kind: ChangeKind, there: SeenChange, gone: SeenChange, expected: str) -> None:
    """Each has one event if it was made, and none if it was not."""
    change = HostedChange(kind, _REPO, "user:ann", _NEW, ("v1",), "type", 7)
    assert _types(events_of(change, there)) == [expected]
    assert events_of(change, gone) == ()
    assert _types(events_of(change, all_of(change))) == [expected]


def test_every_kind_of_change_names_its_types() -> None:
    """The types that are looked up before a change are those that it may lead to."""
    for kind in ChangeKind:
        change = HostedChange(kind, _REPO, "x", _NEW, ("v1",), "type", 7, before={"v1": _OLD})
        assert set(_types(events_of(change, all_of(change)))) == set(TYPES_OF[kind])


def test_a_change_is_read_back_as_it_was_written() -> None:
    """By another process, after a crash."""
    change = _push("v1", had=True, before={"v1": _OLD})
    assert HostedChange.from_json(change.to_json()) == change
    damaged = HostedChange(ChangeKind.DELETE_TAG, _REPO, "x", None, ("v1",), version="12")
    assert HostedChange.from_json(damaged.to_json()) == damaged
    assert HostedChange.from_json("{}") is None
    assert HostedChange.from_json("[") is None


# ------------------------------------------------------------------------------------------------------ who is informed


def test_patterns_of_types() -> None:
    """`*` stands for anything; a mistake matches nothing."""
    assert matching_types("*") == TYPES
    assert set(matching_types("mirror.tag.*")) == {TAG_DELETED, TAG_UNDELETED, TAG_MOVED}
    assert matching_types(PUSHED) == (PUSHED,)
    assert matching_types("mirror.image") == ()
    assert matching_types("mirrorximage.pushed") == ()


def test_who_is_informed() -> None:
    """By type and repository; events about none are for everybody who wants the type, and gaps for everybody."""
    ci = Subscription("ci", ("mirror.image.*",), ("corp/team/**",))
    ops = Subscription("ops", ("mirror.upstream.*",))
    subscribed = Subscriptions((ci, ops))
    assert subscribed.endpoints(Event(PUSHED, "x", "x", repo=_REPO)) == ["ci"]
    assert subscribed.endpoints(Event(PUSHED, "x", "x", repo=Repo("corp", "other"))) == []
    assert subscribed.endpoints(Event(UPSTREAM_DOWN, "x", "x")) == ["ops"]
    assert subscribed.endpoints(Event(LOST, "x", "x")) == ["ci", "ops"]
    assert subscribed.anybody_wants(TYPES_OF[ChangeKind.PUSH], _REPO)
    assert not subscribed.anybody_wants(TYPES_OF[ChangeKind.DELETE_TAG], _REPO)
    assert not Subscriptions().anybody_wants(TYPES, _REPO)


def test_what_is_noticed_elsewhere() -> None:
    """Each notice has its event, ordered apart from the changes of hosted repositories."""
    moved = event_of("tag moved", {"repository": "docker.io/library/app", "tag": "1", "was": _OLD, "now": _NEW})
    assert moved is not None
    assert (moved.type, moved.data["from"], moved.data["to"]) == (TAG_MOVED, str(_OLD), str(_NEW))
    pulled = event_of("image pulled", {"repository": str(_REPO), "reference": "1", "digest": _NEW, "by": None})
    assert pulled is not None
    assert pulled.data == {"registry": "corp", "repository": "team/app", "reference": "1", "digest": str(_NEW)}
    assert pulled.key != str(_REPO)
    down = event_of("upstream down", {"upstream": "docker.io", "address": "registry-1.docker.io"})
    assert down is not None
    assert (down.type, down.repo) == (UPSTREAM_DOWN, None)
    damaged = event_of("blob damaged", {"digest": str(_OLD), "reason": "wrong"})
    assert damaged is not None
    assert damaged.data == {"digest": str(_OLD), "reason": "wrong"}
    served = [{"repository": "ghcr.io/org/app", "by": "user:alice", "parts": ["0-50"], "bytes": 51, "at": 1.0}]
    wrong = event_of("parts wrong", {"digest": _OLD, "upstream": "ghcr.io", "answers": 1, "served": served})
    assert wrong is not None
    assert wrong.data == {"digest": str(_OLD), "upstream": "ghcr.io", "answers": 1, "served": served}
    collected = event_of("content collected", {"links": 1, "blobs": 2, "bytes": 3})
    assert collected is not None
    assert (collected.type, collected.data) == (COLLECTED, {"links": 1, "blobs": 2, "bytes": 3})
    ran = event_of("retention ran", {"tags": 1, "manifests": 2, "complete": True})
    assert ran is not None
    assert (ran.type, ran.repo) == (RETENTION_RAN, None)
    assert event_of("image pulled", {"repository": None}) is None
    assert event_of("something else", {}) is None


# ---------------------------------------------------------------------------------------------------- how it is sent


def test_a_cloud_event() -> None:
    """It has the required attributes, and a time by RFC 3339."""
    event = Event(PUSHED, "corp/team/app", "corp/team/app", {"tags": ["ü"]})
    body = json.loads(cloud_event(event, id="7", source="here", at=1700000000.25, sequence="1.2"))
    assert body == {
        "specversion": "1.0",
        "id": "7",
        "source": "here",
        "type": PUSHED,
        "subject": "corp/team/app",
        "time": "2023-11-14T22:13:20.250Z",
        "sequence": "1.2",
        "datacontenttype": "application/json",
        "data": {"tags": ["ü"]},
    }
    assert datetime.fromisoformat(body["time"]).timestamp() == 1700000000.25
    assert "sequence" not in json.loads(cloud_event(event, id="7", source="here", at=0.0))


def test_the_signature() -> None:
    """One for each secret, over the time and the body; none without a secret."""
    headers = signed_headers([b"new", b"old"], 1700000000, b"{}")
    wanted = [hmac.new(secret, b"1700000000.{}", "sha256").hexdigest() for secret in (b"new", b"old")]
    assert headers == {TIMESTAMP: "1700000000", SIGNATURE: f"sha256={wanted[0]},sha256={wanted[1]}"}
    assert signed_headers([], 1, b"") == {TIMESTAMP: "1"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Reception.TAKEN),
        (204, Reception.TAKEN),
        (None, Reception.UNAVAILABLE),
        (302, Reception.UNAVAILABLE),
        (400, Reception.REFUSED),
        (422, Reception.REFUSED),
        (401, Reception.UNAVAILABLE),
        (404, Reception.UNAVAILABLE),
        (410, Reception.UNAVAILABLE),
        (429, Reception.UNAVAILABLE),
        (500, Reception.UNAVAILABLE),
    ],
)
def test_what_a_status_means(status: int | None, expected: Reception) -> None:
    """Only a few say that the event is at fault."""
    assert reception(status) is expected


@given(st.integers(0, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_pauses_are_bounded(failures: int, jitter: float, asked: float | None) -> None:
    """They grow up to five minutes; an endpoint may ask for up to an hour."""
    seconds = pause(failures, jitter, asked)
    assert 0.5 <= seconds <= max(LONGEST_PAUSE, 3600.0)
    assert seconds >= min(asked or 0.0, 3600.0)
    assert pause(failures + 1, jitter) >= pause(failures, jitter)
