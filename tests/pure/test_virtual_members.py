"""Who answers for a name of a virtual registry, and what the lists of several members become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import (
    BlobUnknown,
    CredentialsRefused,
    Denied,
    ManifestUnknown,
    MirrorError,
    StoreError,
    TagTooNew,
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.policy.virtual.members import VirtualMember, VirtualRules
from mirror.policy.virtual.merging import ReferrersPart, TagPart, merge_referrers, merge_tags

_CORP, _BASE = VirtualMember("corp", hosted=True), VirtualMember("base", hosted=True)
_HUB, _QUAY = VirtualMember("docker.io", library=True), VirtualMember("quay.io")
_ALL = VirtualRules("all", (_QUAY, _CORP, _HUB, _BASE), "base", ("team-*/**",))

_PARTS = st.lists(st.sampled_from(["library", "nginx", "team-a", "app", "a"]), min_size=1, max_size=3)
_NAMES = st.builds("/".join, _PARTS)


#: The patterns again, without patterns.
_RESERVED: Final[dict[str, Callable[[str], bool]]] = {
    "team-*/**": lambda name: name.startswith("team-a/"),
    "nginx": lambda name: name == "nginx",
    "**": lambda name: True,
}


@given(
    members=st.lists(st.sampled_from([_CORP, _BASE, _HUB, _QUAY]), unique=True),
    name=_NAMES,
    taken=st.sets(st.builds(Repo, st.sampled_from(["corp", "base"]), _NAMES)),
    reserved=st.sampled_from([(), ("team-*/**",), ("nginx",), ("**",)]),
)
def test_a_name_that_a_hosted_member_has_leads_to_no_upstream(
    members: list[VirtualMember], name: str, taken: set[Repo], reserved: tuple[str, ...]
) -> None:
    """Whatever the order and the spelling; and hosted members answer only for what they have."""
    rules = VirtualRules("all", tuple(members), None, reserved)
    spelled = {name}
    if any(member.library for member in members) and "/" not in name:
        spelled.add(f"library/{name}")
    if any(member.library for member in members) and name.count("/") == 1:
        spelled.add(name.removeprefix("library/"))
    has = [Repo(one.registry, each) for one in members if one.hosted for each in spelled]
    answering = rules.answering(name, taken.__contains__)
    assert answering.owned == (not taken.isdisjoint(has))
    if answering.owned:
        ours = [Repo(member.registry, name) for member in members if member.hosted]
        assert answering.repos == tuple(repo for repo in ours if repo in taken)
    elif any(_RESERVED[pattern](each) for pattern in reserved for each in spelled):
        assert answering.repos == ()
    else:
        assert [repo.registry for repo in answering.repos] == [one.registry for one in members if not one.hosted]


def test_what_cannot_be_read_answers_nothing() -> None:
    """An error of one look is no "no"."""

    def unreadable(repo: Repo) -> bool:
        if repo.registry == "base":
            raise StoreError("unreadable")
        return False

    with pytest.raises(StoreError):
        _ALL.answering("some/name", unreadable)


@pytest.mark.parametrize(
    ("name", "hub"),
    [("alpine", "library/alpine"), ("library/alpine", "library/alpine"), ("org/app", "org/app")],
)
def test_what_a_name_means_at_each_member(name: str, hub: str) -> None:
    """One part means `library/` at Docker Hub alone; writes go to one member."""
    assert _ALL.candidates(name, Action.PULL) == (
        Repo("quay.io", name),
        Repo("corp", name),
        Repo("docker.io", hub),
        Repo("base", name),
    )
    for action in (Action.PUSH, Action.OVERWRITE, Action.DELETE):
        assert _ALL.candidates(name, action) == (Repo("base", name),)
    assert VirtualRules("all", (_QUAY,)).candidates(name, Action.PUSH) == ()


def test_a_push_is_not_written_where_nobody_reads() -> None:
    """A hosted member that comes before the writable one has the name."""
    assert _ALL.in_the_way("app", {Repo("corp", "app")}.__contains__) == Repo("corp", "app")
    assert _ALL.in_the_way("app", {Repo("base", "app")}.__contains__) is None
    assert _ALL.in_the_way("app", {Repo("corp", "other")}.__contains__) is None


def test_what_operators_mean() -> None:
    """The member that answers and has anything here."""
    assert _ALL.meant("app", {Repo("base", "app"), Repo("quay.io", "app")}.__contains__) == Repo("base", "app")
    assert _ALL.meant("app", {Repo("docker.io", "library/app")}.__contains__) == Repo("docker.io", "library/app")
    assert _ALL.meant("app", {Repo("corp", "library/app")}.__contains__) is None
    assert _ALL.meant("app", set[Repo]().__contains__) is None


def _of(kind: type[MirrorError], **more: float) -> MirrorError:
    return kind("no", upstream="docker.io", **more)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "anonymous", "with_credentials"),
    [
        (ManifestUnknown("no"), True, True),
        (BlobUnknown("no"), True, True),
        (_of(UpstreamDenied), True, False),
        (_of(CredentialsRefused), False, False),
        (_of(UpstreamUnavailable), False, False),
        (_of(UpstreamTimeout), False, False),
        (_of(UpstreamInvalid), False, False),
        (_of(UpstreamThrottled, retry_after=1.0), False, False),
        (_of(UpstreamCircuitOpen, retry_after=1.0), False, False),
        (StoreError("no"), False, False),
        (Denied("no"), False, False),
        (TagTooNew("no"), False, False),
    ],
)
def test_only_not_found_leads_to_the_next_member(error: MirrorError, anonymous: bool, with_credentials: bool) -> None:
    """A refusal says that there is no such name only where the mirror has no rights to lose."""
    assert _ALL.is_absent("docker.io", error) == anonymous
    hiding = VirtualRules("all", (VirtualMember("docker.io", hides=True), _QUAY))
    assert hiding.is_absent("docker.io", error) == with_credentials


_TAGS = st.text("ab", min_size=1, max_size=3)


@given(
    lists=st.lists(st.sets(_TAGS), min_size=1, max_size=3), sizes=st.lists(st.integers(1, 4), min_size=3, max_size=3)
)
def test_pages_of_merged_tags_are_the_merged_list(lists: list[set[str]], sizes: list[int]) -> None:
    """Whatever the pages of the members, which may be shorter than asked: every tag once, in order."""
    count = sizes[0]
    seen: list[str] = []
    last = ""
    for _ in range(50):
        parts = []
        for tags, size in zip(lists, sizes, strict=False):
            rest = sorted(tag for tag in tags if tag > last)
            part = rest[: min(size, count)]
            parts.append(TagPart(part, len(rest) > len(part)))
        page = merge_tags(parts, count)
        assert len(page.tags) <= count
        seen += page.tags
        if not page.more:
            break
        assert page.tags, "more follow a page without tags"
        last = page.tags[-1]
    assert seen == sorted(set().union(*lists))


def test_merged_referrers() -> None:
    """Each digest once, in the order of digests; the first member's descriptor counts."""
    one, two = (Descriptor(OCI_MANIFEST, Digest.of(text), 1, "of the first") for text in (b"1", b"2"))
    again = Descriptor(OCI_MANIFEST, one.digest, 1, "of the second")
    page = merge_referrers([ReferrersPart([one]), ReferrersPart([again, two])])
    assert page.items == tuple(sorted([one, two], key=lambda each: each.digest))
    assert not page.more
    assert merge_referrers([]).items == ()


def test_merged_pages_of_referrers() -> None:
    """A page ends where that of one member ends: what this member has behind it is not known yet."""
    each = sorted(
        (Descriptor(OCI_MANIFEST, Digest.of(b"%d" % number), 1) for number in range(6)), key=lambda each: each.digest
    )
    first, second = ReferrersPart(each[:2], more=True), ReferrersPart(each[1:])
    page = merge_referrers([first, second])
    assert (page.items, page.more) == (tuple(each[:2]), True)
    rest = merge_referrers([ReferrersPart(each[2:3]), ReferrersPart(each[2:])])
    assert (rest.items, rest.more) == (tuple(each[2:]), False)
