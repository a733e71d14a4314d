"""What every `LinkLedger` does. A test class inherits `LedgerSuite` and supplies the fixtures.

`ledger` is empty; `another` is a second one on the same data. Both count for `SCOPES`.
"""

from __future__ import annotations

import random
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import Overrun, ScopePatterns
from mirror.ports import LinkLedger
from tests.support.memory_ledger import MemoryLedger

SCOPES: Final = ScopePatterns({"corp": ("*/cache", "team-a/**"), "lab": ()})
APP = Repo("corp", "team-a/app")
CACHE = Repo("corp", "team-a/cache")
OTHER = Repo("corp", "team-b/app")
LAB = Repo("lab", "team-a/app")
REPOS = (APP, CACHE, OTHER, LAB)


def blob(number: int) -> Digest:
    """A digest of its own for each number."""
    return Digest.of(str(number).encode(), "sha512" if number % 2 else "sha256")


class LedgerSuite:
    """Fixtures to supply: `ledger`, empty, and `another`, a second one on the same data."""

    def test_the_unknown_is_empty(self, ledger: LinkLedger) -> None:
        """Nothing is used, nobody has anything, and removing it is no error."""
        assert ledger.usage("corp") == 0
        assert ledger.usage("nobody") == 0
        assert ledger.adds("corp", blob(1))
        assert list(ledger.holders(blob(1), 5)) == []
        assert list(ledger.repositories()) == []
        assert list(ledger.noted(APP)) == []
        assert ledger.size(APP) == 0
        ledger.remove(APP, blob(1))
        assert not ledger.is_complete()

    def test_content_counts_once_in_each_scope(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """However many repositories of the scope have it, and until the last of them has lost it."""
        for repo in (APP, CACHE, OTHER, LAB, APP):
            assert ledger.add(repo, blob(1), 100) is None
        assert ledger.add(OTHER, blob(2), 7) is None
        usage = {scope: another.usage(scope) for scope in ("corp", "corp/team-a/**", "corp/*/cache", "lab")}
        assert usage == {"corp": 107, "corp/team-a/**": 100, "corp/*/cache": 100, "lab": 100}
        assert not another.adds("corp", blob(2))
        assert another.adds("corp/team-a/**", blob(2))
        for _ in range(2):
            another.remove(APP, blob(1))
            assert ledger.usage("corp/team-a/**") == 100
        another.remove(CACHE, blob(1))
        usage = {scope: ledger.usage(scope) for scope in ("corp", "corp/team-a/**", "corp/*/cache", "lab")}
        assert usage == {"corp": 107, "corp/team-a/**": 0, "corp/*/cache": 0, "lab": 100}
        another.remove(OTHER, blob(1))
        assert ledger.usage("corp") == 7
        assert ledger.adds("corp", blob(1))

    def test_who_has_it(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """Of all registries, no more than asked for; a repository without content is none."""
        for repo in REPOS:
            ledger.add(repo, blob(1), 100)
        ledger.add(APP, blob(2), 100)
        assert sorted(another.holders(blob(1), 9)) == sorted(REPOS)
        assert len(another.holders(blob(1), 2)) == 2
        assert list(another.holders(blob(2), 9)) == [APP]
        assert sorted(another.noted(APP)) == sorted([blob(1), blob(2)])
        assert sorted(another.repositories()) == sorted(REPOS)
        ledger.remove(LAB, blob(1))
        assert LAB not in another.holders(blob(1), 9)
        assert LAB not in another.repositories()

    def test_a_limit_is_kept(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """What does not fit is not noted. What is noted, or counts in the scope already, always fits."""
        limits = {"corp": 100, "corp/team-a/**": 50}
        assert ledger.add(APP, blob(1), 50, limits) is None
        assert another.add(APP, blob(2), 1, limits) == Overrun("corp/team-a/**", 50, 50, 1)
        assert list(ledger.holders(blob(2), 1)) == []
        assert ledger.add(APP, blob(1), 50, limits) is None
        assert ledger.add(CACHE, blob(1), 50, limits) is None
        assert ledger.add(OTHER, blob(2), 50, {"corp": 100}) is None
        assert ledger.add(OTHER, blob(3), 1, {"corp": 100}) == Overrun("corp", 100, 100, 1)
        assert ledger.add(CACHE, blob(2), 50, {"corp": 100}) is None
        assert ledger.usage("corp") == 100
        assert ledger.usage("corp/team-a/**") == 100
        assert ledger.add(APP, blob(4), 0, limits) is None

    def test_corrections_come_together(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """What is there already, or is not there, is no error; other repositories keep what they have."""
        ledger.add(APP, blob(1), 100)
        ledger.add(APP, blob(2), 50)
        ledger.add(OTHER, blob(1), 100)
        another.correct(APP, {blob(1): None, blob(2): 50, blob(3): 7, blob(4): None})
        another.correct(LAB, {})
        assert sorted(ledger.noted(APP)) == sorted([blob(2), blob(3)])
        assert list(ledger.holders(blob(1), 9)) == [OTHER]
        assert (ledger.usage("corp"), ledger.usage("corp/team-a/**")) == (157, 57)

    def test_it_is_complete_when_somebody_says_so(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """For everyone, and not before."""
        assert not ledger.is_complete()
        another.completed(ledger.prepare())
        assert another.is_complete()
        assert ledger.is_complete()

    def test_any_order(self, ledger: LinkLedger, another: LinkLedger) -> None:
        """Totals stay right, whatever is added and removed."""
        dice, model = random.Random(7), MemoryLedger(SCOPES)
        for _ in range(300):
            repo, digest = dice.choice(REPOS), blob(dice.randrange(12))
            size, one = 10 ** (len(digest.hex) // 64) + digest.hex.count("a"), dice.choice((ledger, another))
            if dice.random() < 0.6:
                limits = dict.fromkeys(SCOPES.of(repo), 200) if dice.random() < 0.5 else None
                assert one.add(repo, digest, size, limits) == model.add(repo, digest, size, limits)
            else:
                one.remove(repo, digest)
                model.remove(repo, digest)
            assert {scope: one.usage(scope) for scope in SCOPES.all()} == {
                scope: model.usage(scope) for scope in SCOPES.all()
            }
            assert sorted(one.holders(digest, 9)) == sorted(model.holders(digest, 9))
            assert one.size(repo) == model.size(repo)
