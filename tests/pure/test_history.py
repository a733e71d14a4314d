"""What a tag has pointed to, and what of it is old enough to be served."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.policy.history import AgeRule, choose, has_moved, learned, pointed_to, recalled, trimmed
from mirror.policy.records import Sighting, TagRecord, read_history, write_history

_DIGESTS = {name: Digest.of(name.encode()) for name in "ABCDE"}
_NAMES = {digest: name for name, digest in _DIGESTS.items()}
_DAY = 86400.0
#: Now, and the rule: three days.
_T = 1_700_000_000.0
_RULE = AgeRule(3 * _DAY)
_SERVING = AgeRule(3 * _DAY, serve_new=True)


def _seen(name: str, first: float, last: float | None = None) -> Sighting:
    """Times in days before now."""
    return Sighting(
        _DIGESTS[name], "application/m", 7, _T - first * _DAY, _T - (first if last is None else last) * _DAY
    )


def _said(name: str, at: float) -> TagRecord:
    return TagRecord("t", _DIGESTS[name], "application/m", 7, _T - at * _DAY)


def _story(text: str) -> tuple[Sighting, ...]:
    """`A9 B2`: A was first seen nine days ago, then B, two days ago."""
    return tuple(_seen(word[0], float(word[1:])) for word in text.split())


def _names(history: tuple[Sighting, ...]) -> str:
    return "".join(_NAMES[one.digest] for one in history)


# ------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("history", "said", "then"),
    [
        ("", "A", "A"),
        ("A9", "A", "A"),
        ("A9", "B", "AB"),
        ("A9 B5", "A", "ABA"),
        ("A9 B5 A2", "A", "ABA"),
        ("A9 B5 A2", "C", "ABAC"),
    ],
)
def test_learning(history: str, said: str, then: str) -> None:
    """Another digest is a sighting more, also one that was there before; learnt twice it is there once."""
    before = _story(history)
    once = learned(before, _said(said, 0))
    assert _names(once) == then
    assert learned(once, _said(said, 0)) == once
    assert has_moved(before, once) is (once != before)
    assert once[-1].first_seen == (_T if has_moved(before, once) else before[-1].first_seen)


@pytest.mark.parametrize(
    ("history", "record", "then", "last"),
    [
        ("", None, "", None),
        ("A9", None, "A", 9),
        ("", ("A", 4), "A", 4),
        ("A9", ("A", 4), "A", 4),
        ("A9", ("A", 10), "A", 9),
        ("A9", ("B", 4), "AB", 4),
        # a crash between the history and the record: the record is the older one
        ("A9 B4", ("A", 5), "AB", 4),
        ("A9 B4", ("A", 4), "AB", 4),
        # written under a clock that was ahead
        ("A9", ("A", -1), "A", 9),
    ],
)
def test_what_the_record_knows(history: str, record: tuple[str, float] | None, then: str, last: float | None) -> None:
    """Up to when the newest was confirmed, and what could not be written; an outdated record adds nothing."""
    found = recalled(_story(history), _said(*record) if record else None, _T)
    assert _names(found) == then
    assert (found[-1].last_seen if found else None) == (None if last is None else _T - last * _DAY)


def test_nothing_is_older_than_what_came_before() -> None:
    """A clock that was put back a year makes no digest a year older."""
    before = (_seen("A", 9, 1),)
    after = learned(before, _said("B", 365))
    assert after[-1].first_seen == before[-1].last_seen


@pytest.mark.parametrize(
    ("history", "keep", "most", "then"),
    [
        ("A9 B8 C7 D6", "", 10, "ABCD"),
        ("A9 B8 C7 D6", "", 2, "CD"),
        ("A9 B8 C7 D6", "A", 2, "ACD"),
        ("A9 B8 C7 D6", "DB", 2, "BCD"),
        ("A9 B8 A7 C6 D5", "A", 2, "ACD"),
        # its first sighting tells its age
        ("A9 B8 C7 A6", "A", 2, "ACA"),
        ("A9 B8 C7 D6", "E", 2, "CD"),
    ],
)
def test_trimming(history: str, keep: str, most: int, then: str) -> None:
    """The newest stay, and what must stay, with the time when it was first seen."""
    kept = trimmed(_story(history), {_DIGESTS[name] for name in keep}, most)
    assert _names(kept) == then
    assert kept[0] in _story(history)


def test_there_and_back() -> None:
    """A history is read as it was written; what is not whole is none."""
    history = _story("A9 B8 A7")
    text = write_history(history)
    assert read_history(text) == history
    assert read_history(write_history([])) == ()
    for bad in (b"", b"null", b"[]", b"{}", text[:-4], text.replace(b"sha256", b"md5"), b"[" * 100_000):
        assert read_history(bad) == ()


# ------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("history", "served", "served_if_new"),
    [
        # old enough, to the second
        ("A3", "A", "A"),
        ("A2.9999", None, "A"),
        ("A9 B3", "B", "B"),
        ("A9 B2.9999", "A", "A"),
        ("A9 B8 C1", "B", "B"),
        ("A9 B2 C1", "A", "A"),
        # each waits for its own time
        ("A9 B4 C1", "B", "B"),
        # taken back: what it went back to was seen long ago
        ("A9 B2 A1", "A", "A"),
        ("A9 B2 A1 C0", "A", "A"),
        # nothing is old enough: a tag that is served when new goes on with its first digest
        ("A2 B1", None, "A"),
        ("A2 B1 A0", None, "A"),
        ("A2 B1 C0", None, "A"),
        # seen in the future: the clock was set, and means nothing
        ("A-1", None, "A"),
        ("A-3650", None, "A"),
        ("A9 B-3650", "A", "A"),
        ("A-3650 B9", "B", "B"),
    ],
)
def test_choosing(history: str, served: str | None, served_if_new: str | None) -> None:
    """The newest that was first seen three days ago or earlier."""
    for rule, wanted in ((_RULE, served), (_SERVING, served_if_new)):
        choice = choose(_story(history), rule, _T)
        assert (choice.serve and _NAMES[choice.serve.digest]) == wanted
        assert choice.newest == _story(history)[-1]
        assert choice.held_back is (choice.serve is not choice.newest)
        if choice.serve is choice.newest and rule is _RULE:
            assert choice.newest_from <= _T


def test_without_a_rule_the_newest() -> None:
    """Whatever its time."""
    for history in ("A9 B0", "A9 B-5"):
        choice = choose(_story(history), AgeRule(), _T)
        assert choice.serve is choice.newest
        assert not choice.held_back


@pytest.mark.parametrize(("here", "served"), [(10, "B"), (3, "B"), (2.9, "A"), (-10, "A")])
def test_a_manifest_that_is_here_for_long_is_no_news(here: float, served: str) -> None:
    """A tag that moves to what the repository has by another tag, or by digest: it is as old as that."""
    since = {_DIGESTS["B"]: _T - here * _DAY}
    choice = choose(_story("A9 B1"), _RULE, _T, since.get)
    assert choice.serve
    assert _NAMES[choice.serve.digest] == served


def test_when_it_will_be_served() -> None:
    """First seen, and the minimum age."""
    assert choose(_story("A9 B1"), _RULE, _T).newest_from == _T + 2 * _DAY
    choice = choose(_story("A2 B1"), _RULE, _T)
    assert (choice.any_from, choice.newest_from) == (_T + _DAY, _T + 2 * _DAY)


@given(
    st.lists(st.tuples(st.sampled_from("ABCDE"), st.floats(-30, 30)), min_size=1, max_size=8),
    st.floats(0, 20 * _DAY),
)
def test_nothing_too_young_is_ever_served(story: list[tuple[str, float]], minimum: float) -> None:
    """Whatever clocks have done to the times: what is served was first seen so long ago; if nothing is, no earlier
    sighting would have done.
    """
    history = tuple(_seen(name, first) for name, first in story)
    served = choose(history, AgeRule(minimum), _T).serve
    if served:
        first = next(one for one in history if one.digest == served.digest)
        assert minimum == 0 or first.first_seen + minimum <= _T
    else:
        firsts = {one.digest: one for one in reversed(history)}
        assert all(one.first_seen + minimum > _T for one in firsts.values())


# ----------------------------------------------------------------------------------------------- looking back


@pytest.mark.parametrize(("days", "name"), [(10, None), (9, "A"), (8.5, "A"), (8, "B"), (3, "B"), (2, "A"), (-5, "A")])
def test_what_it_pointed_to(days: float, name: str | None) -> None:
    """From the moment that it was seen until the next one was."""
    found = pointed_to(_story("A9 B8 A2"), _T - days * _DAY)
    assert (found and _NAMES[found.digest]) == name
