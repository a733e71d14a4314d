"""What replication rules decide about tags."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import NameInvalid
from mirror.oci.attachments import signature_tag
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.replication_steps import (
    Deletes,
    Deletion,
    HereTag,
    LastSeen,
    Step,
    TagRules,
    decide,
    may_delete,
    target_name,
)
from mirror.policy.hosted.retention import RETENTION

_A, _B, _C = (Digest.of(content) for content in (b"a", b"b", b"c"))
_CAREFUL, _STRONG = TagRules(), TagRules(overwrite=True)


@pytest.mark.parametrize(
    ("here", "there", "last", "careful", "strong"),
    [
        (_A, _A, None, Step.SAME, Step.SAME),
        (_A, _A, LastSeen(_B, put=True), Step.SAME, Step.SAME),
        (_A, None, None, Step.PUT, Step.PUT),
        (_A, None, LastSeen(_B, put=True), Step.PUT, Step.PUT),
        (_A, None, LastSeen(_A, put=True), Step.DELETED_THERE, Step.DELETED_THERE),
        (_A, None, LastSeen(_A, put=False), Step.DELETED_THERE, Step.DELETED_THERE),
        (_A, _B, LastSeen(_B, put=True), Step.MOVE, Step.MOVE),
        (_A, _B, LastSeen(_B, put=False), Step.MOVE, Step.MOVE),
        (_A, _B, None, Step.CONFLICT, Step.MOVE),
        (_A, _B, LastSeen(_C, put=True), Step.CONFLICT, Step.MOVE),
        # moved there, and not here: whoever moved it there last has the word
        (_A, _B, LastSeen(_A, put=True), Step.CONFLICT, Step.CONFLICT),
    ],
)
def test_a_tag_that_is_here(
    here: Digest, there: Digest | None, last: LastSeen | None, careful: Step, strong: Step
) -> None:
    """Nothing there is overwritten that the rule has not put or seen there, unless it is said."""
    assert decide(_CAREFUL, HereTag(here), there, last) is careful
    assert decide(_STRONG, HereTag(here), there, last) is strong


def test_what_comes_from_elsewhere_is_not_sent_on() -> None:
    """Neither tags that another site's replication moved here, nor its deletions."""
    rules = TagRules(overwrite=True, deletes=Deletes.ALL, not_moved_by=("robot:site-*",))
    assert decide(rules, HereTag(_A, "robot:site-b"), _B, None) is Step.FROM_ELSEWHERE
    assert decide(rules, HereTag(_A, "robot:site-b"), None, None) is Step.FROM_ELSEWHERE
    assert decide(rules, HereTag(_A, "robot:site-b"), _A, None) is Step.SAME
    assert decide(rules, HereTag(_A, "user:robot:site-b"), None, None) is Step.PUT
    last = LastSeen(_A, put=True)
    assert decide(rules, None, _A, last, Deletion(_A, "robot:site-b")) is Step.LEAVE
    assert decide(rules, None, _A, last, Deletion(_A, "user:alice")) is Step.DELETE


@pytest.mark.parametrize(
    ("deletes", "there", "last", "deletion", "step"),
    [
        (Deletes.CALLERS, _A, LastSeen(_A, put=True), Deletion(_A, "user:alice"), Step.DELETE),
        (Deletes.NEVER, _A, LastSeen(_A, put=True), Deletion(_A, "user:alice"), Step.LEAVE),
        (Deletes.CALLERS, _A, LastSeen(_A, put=True), Deletion(_A, RETENTION), Step.LEAVE),
        (Deletes.ALL, _A, LastSeen(_A, put=True), Deletion(_A, RETENTION), Step.DELETE),
        # no record says that somebody deleted it: a lost disk deletes nothing elsewhere
        (Deletes.ALL, _A, LastSeen(_A, put=True), None, Step.LEAVE),
        (Deletes.ALL, _A, LastSeen(_A, put=True), Deletion(_B, "user:alice"), Step.LEAVE),
        (Deletes.ALL, _A, LastSeen(_A, put=False), Deletion(_A, "user:alice"), Step.LEAVE),
        (Deletes.ALL, _B, LastSeen(_A, put=True), Deletion(_A, "user:alice"), Step.LEAVE),
        (Deletes.ALL, None, LastSeen(_A, put=True), Deletion(_A, "user:alice"), Step.LEAVE),
        (Deletes.ALL, _A, None, Deletion(_A, "user:alice"), Step.LEAVE),
    ],
)
def test_a_tag_that_is_not_here(
    deletes: Deletes, there: Digest | None, last: LastSeen | None, deletion: Deletion | None, step: Step
) -> None:
    """It is deleted there only on evidence, if the rule put it there, and if it is still the same there."""
    assert decide(TagRules(deletes=deletes), None, there, last, deletion) is step


def test_many_deletions_are_held_back() -> None:
    """More than fifty, unless that is less than a fifth of all that was put."""
    assert may_delete(50, 50)
    assert not may_delete(51, 200)
    assert may_delete(200, 1000)
    assert not may_delete(201, 1000)


def test_names_there() -> None:
    """The longest beginning counts; a name that is not possible is a mistake."""
    rename = {"": "mirror/", "team-a/": "a/", "team-a/x": "b/x"}
    assert target_name(Repo("corp", "team-a/app"), rename) == "a/app"
    assert target_name(Repo("corp", "team-a/xy"), rename) == "b/xy"
    assert target_name(Repo("corp", "other"), rename) == "mirror/other"
    assert target_name(Repo("corp", "other"), {}) == "other"
    with pytest.raises(NameInvalid, match="would be called"):
        target_name(Repo("corp", "other"), {"": "UPPER/"})


def test_which_tags() -> None:
    """Patterns choose tags; signatures are never chosen by themselves."""
    rules = TagRules(("v*", "latest"))
    assert [tag for tag in ("v1", "latest", "dev") if rules.covers(tag)] == ["v1", "latest"]
    assert not TagRules().covers(signature_tag(_A))


class _Site:
    """A registry of one tag, and what its rule knows of the other one."""

    def __init__(self, name: str, rules: TagRules) -> None:
        self.name = name
        self.rules = rules
        self.tag: HereTag | None = None
        self.deletion: Deletion | None = None
        self.last: LastSeen | None = None

    def replicate(self, other: _Site) -> bool:
        """One run; true if it wrote something."""
        there = other.tag.digest if other.tag else None
        step = decide(self.rules, self.tag, there, self.last, self.deletion if self.tag is None else None)
        if step in (Step.PUT, Step.MOVE) and self.tag:
            other.tag = HereTag(self.tag.digest, f"robot:{self.name}")
            self.last = LastSeen(self.tag.digest, put=True)
            return True
        if step is Step.SAME and self.tag:
            put = self.last is not None and self.last.put and self.last.digest == self.tag.digest
            self.last = LastSeen(self.tag.digest, put=put)
        elif step is Step.DELETE and other.tag:
            other.deletion, other.tag, self.last = Deletion(other.tag.digest, f"robot:{self.name}"), None, None
            return True
        elif step is Step.LEAVE and (self.last is None or there != self.last.digest):
            self.last = None
        return False


_ACTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["move a", "move b", "move c", "delete", "run", "run"])), max_size=30
)


@given(_ACTS, st.booleans(), st.sampled_from(Deletes), st.integers(0, 1 << 30))
def test_two_sites_that_replicate_to_each_other_come_to_rest(
    acts: list[tuple[bool, str]], overwrite: bool, deletes: Deletes, seed: int
) -> None:
    """Whatever callers did at both, in whatever order the rules run: after a few runs nothing is written any more."""
    a, b = (
        _Site(name, TagRules(overwrite=overwrite, deletes=deletes, not_moved_by=(f"robot:{other}",)))
        for name, other in (("a", "b"), ("b", "a"))
    )
    for first, act in acts:
        site, other = (a, b) if first else (b, a)
        if act == "run":
            site.replicate(other)
        elif act == "delete":
            if site.tag:
                site.deletion, site.tag = Deletion(site.tag.digest, "user:alice"), None
        else:
            site.tag = HereTag({"move a": _A, "move b": _B, "move c": _C}[act], "user:alice")
    order = random.Random(seed)
    for _ in range(6):
        sites = [a, b]
        order.shuffle(sites)
        for site in sites:
            site.replicate(b if site is a else a)
    before = a.tag, b.tag
    assert not any([a.replicate(b), b.replicate(a), a.replicate(b)])
    assert (a.tag, b.tag) == before
