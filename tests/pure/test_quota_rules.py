"""Which quotas apply to a repository, and whether more content fits."""

from __future__ import annotations

from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun, QuotaRules, RegistryQuota, overrun

GB = 10**9

RULES = QuotaRules(
    {
        "corp": RegistryQuota(100 * GB, {"team-a/**": 50 * GB, "*/cache": GB}),
        "lab": RegistryQuota(),
    }
)


def test_which_scopes_a_repository_counts_in() -> None:
    """Its registry, with a quota or without, and every pattern that matches its whole name."""
    assert RULES.scopes.of(Repo("corp", "team-a/app")) == ("corp", "corp/team-a/**")
    assert RULES.scopes.of(Repo("corp", "team-a/cache")) == ("corp", "corp/*/cache", "corp/team-a/**")
    assert RULES.scopes.of(Repo("corp", "team-b/cache")) == ("corp", "corp/*/cache")
    assert RULES.scopes.of(Repo("corp", "team-b/team-a/app")) == ("corp",)
    assert RULES.scopes.of(Repo("lab", "team-a/app")) == ("lab",)
    assert RULES.scopes.all() == ["corp", "corp/*/cache", "corp/team-a/**", "lab"]


def test_which_limits_apply() -> None:
    """Only those of scopes with a limit."""
    assert RULES.limits(Repo("corp", "team-a/app")) == {"corp": 100 * GB, "corp/team-a/**": 50 * GB}
    assert RULES.limits(Repo("lab", "team-a/app")) == {}
    assert RULES.limit("lab") is None
    assert RULES.limit("corp/*/cache") == GB
    only_pattern = QuotaRules({"corp": RegistryQuota(None, {"a": 1})})
    assert only_pattern.limits(Repo("corp", "a")) == {"corp/a": 1}
    assert only_pattern.limits(Repo("corp", "b")) == {}


def test_what_fits() -> None:
    """Up to the limit and no byte more; an unknown scope is empty; nothing always fits."""
    limits = {"corp": 100, "corp/a": 50}
    assert overrun(limits, {"corp": 90, "corp/a": 10}, 10) is None
    assert overrun(limits, {"corp": 90, "corp/a": 10}, 11) == Overrun("corp", 90, 100, 11)
    assert overrun(limits, {}, 51) == Overrun("corp/a", 0, 50, 51)
    assert overrun(limits, {"corp": 500}, 0) is None
    assert overrun({}, {"corp": 500}, 1) is None
    assert overrun({"corp": 0}, {}, 1) == Overrun("corp", 0, 0, 1)


def test_the_fullest_scope_is_named() -> None:
    """A client that frees room there has not to try again to learn of the other."""
    assert overrun({"corp": 100, "corp/a": 50}, {"corp": 99, "corp/a": 49}, 10) == Overrun("corp/a", 49, 50, 10)
    assert overrun({"corp": 100, "corp/a": 50}, {"corp": 100, "corp/a": 41}, 10) == Overrun("corp", 100, 100, 10)


def test_the_message_has_the_figures() -> None:
    """As people read sizes."""
    assert str(Overrun("corp/team-a/**", 49_200_000_000, 50 * GB, 1_300_000_000)) == (
        "the quota of corp/team-a/** is 50 GB; 49.2 GB are used, and this needs 1.3 GB more"
    )
