"""`mirror retention`, on the disk of a mirror that does not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.store.local.locks import locked
from tests.support.command import CommandSite, Done
from tests.support.hosted_here import CORP, HostedHere

_CONFIG = """
offline = true
[store]
root = "{root}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
{rules}
"""
_RULES = """
[[hosted.retention]]
repositories = ["team/**"]
keep = [{ tags = ["v*"] }]
delete = [{ tags = ["v1", "ci-*"] }]
"""


class _Site(CommandSite):
    """Three images, one of which no rule names."""

    def __init__(self, folder: Path, rules: str = _RULES) -> None:
        super().__init__(folder, _CONFIG, rules=rules)
        self.here = HostedHere(self.root)
        for tag in ("v1", "ci-1", "main"):
            self.here.image([tag.encode()], tag=tag)

    def retention(self, *words: str) -> Done:
        return self.run("retention", *words)

    @property
    def tags(self) -> list[str]:
        return self.here.catalog.tags(CORP)


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """A store on the disk."""
    return _Site(tmp_path)


def test_a_dry_run_explains_and_deletes_nothing(site: _Site) -> None:
    """Each tag, with the rule that decides."""
    done = site.retention("--dry-run")
    assert done.status == 0
    assert "corp/team/app: would delete 1 of 3 tags and 1 of 3 manifests" in done.out
    for word in ("goes", "stays", "keep: tags v*", "delete: tags v1, ci-*", "no delete rule names it"):
        assert word in done.out
    assert site.tags == ["ci-1", "main", "v1"]
    [planned] = site.retention("--dry-run", "--json").json["repositories"]
    assert [(each["name"], each["goes"]) for each in planned["tags"]] == [
        ("ci-1", True),
        ("main", False),
        ("v1", False),
    ]
    assert "no repository here is like that" in site.retention("--dry-run", "corp/x/*").out
    assert not (site.root / "retention").exists()


def test_a_round_by_hand(site: _Site) -> None:
    """It is in the audit log, and what went can be undeleted."""
    done = site.retention()
    assert (done.status, done.err) == (0, "")
    assert "deleted 1 tag and 1 manifest from 1 repository" in done.out
    assert site.tags == ["main", "v1"]
    [line] = site.audit()
    assert (line["action"], line["status"], line["tags"], line["manifests"]) == ("retention", 200, 1, 1)
    assert "retention" in site.run("undelete").out
    assert site.run("undelete", "corp/team/app:ci-1").status == 0
    again = site.retention("corp/team/*", "--json")
    assert (again.json["tags"], site.tags) == (0, ["ci-1", "main", "v1"])


def test_what_cannot_be_read_is_status_1(site: _Site) -> None:
    """With the reason; nothing of that repository goes."""
    [tag] = site.root.glob("repositories/corp/team/app/_tags/main*")
    tag.write_text("{")
    done = site.retention()
    assert done.status == 1
    assert "left alone, cannot be read: corp/team/app: " in done.err
    assert "ci-1" in site.tags
    assert "nothing goes, because something cannot be read" in site.retention("--dry-run").out


def test_another_round_is_running(site: _Site) -> None:
    """It says whose it may be."""
    with locked(site.layout, "retention"):
        done = site.retention()
    assert done.status == 1
    assert "a round of retention is running already" in done.err


def test_mistakes(tmp_path: Path) -> None:
    """Without rules there is nothing to do; rules are about repositories, not tags."""
    site = _Site(tmp_path)
    assert "name these without a tag" in site.retention("corp/team/app:v1").err
    (tmp_path / "none").mkdir()
    none = _Site(tmp_path / "none", rules="")
    done = none.retention()
    assert done.status == 2
    assert "there is no [[hosted.retention]]" in done.err
