"""A process that deletes by rules of retention is killed, again and again, at any of its steps on the disk."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mirror.ports import Catalog
from mirror.store.local.local_records import local_catalog, local_repository_records
from tests.support.breaking_steps import Steps
from tests.support.command import CommandSite
from tests.support.hosted_here import CORP, HostedHere

_CONFIG: Final = """
offline = true
[store]
root = "{root}"
[hosting]
grace = "1d"
[[hosted]]
name = "corp"
[[hosted.retention]]
repositories = ["**"]
keep = [{{ tags = ["v*"] }}]
delete = [{{ tags = ["*"] }}]
"""
#: Runs the command in a process of its own, whose steps are counted.
_PROGRAM: Final = """
import sys
from pathlib import Path
from tests.support.breaking_steps import install
from mirror.cli import main

install(Path(sys.argv[1]), Path(sys.argv[2]))
sys.argv = ["mirror", "retention", "--config", sys.argv[3]]
main()
"""
_ROOT: Final = Path(__file__).resolve().parents[2]


class _Site(CommandSite):
    """An index with a signature and a second tag, images that share a platform with one that stays, and releases."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONFIG)

    def fill(self) -> None:
        """Pushes the images."""
        here = HostedHere(self.root)
        shared = here.image([b"shared"])
        here.index({"linux/amd64": here.image([b"one"]), "linux/arm64": here.image([b"two"])}, tag="nightly")
        here.index({"linux/amd64": shared, "linux/arm64": here.image([b"three"])}, tag="ci-1")
        here.index({"linux/amd64": shared}, tag="v1")
        here.image([b"four"], tag="ci-2")
        here.image([b"five"], tag="v2")
        # a second tag of an image that stays
        here.image([b"five"], tag="latest")

    @property
    def catalog(self) -> Catalog:
        """The records on the disk."""
        return local_catalog(self.layout)

    @property
    def manifests(self) -> set[str]:
        """The digests of all manifests."""
        return {str(digest) for digest in self.catalog.manifest_digests(CORP)}

    @property
    def tags(self) -> set[str]:
        """The tags that can be pulled."""
        catalog = self.catalog
        records = (catalog.get_tag(CORP, name) for name in catalog.tags(CORP))
        return {record.tag for record in records if record and str(record.digest) in self.manifests}

    @property
    def deletions(self) -> list[str]:
        """What can be undeleted."""
        records = local_repository_records(self.layout)
        return sorted([*map(str, records.deleted_manifests(CORP)), *records.deleted_tags(CORP)])

    def killed(self, steps: Steps) -> int:
        """The status of a command that may be killed."""
        words = [sys.executable, "-c", _PROGRAM, str(steps.file), str(self.root), str(self.config)]
        return subprocess.run(words, cwd=_ROOT, check=False, capture_output=True).returncode

    def finish(self) -> None:
        """A further round, and one of collection, which finishes what was interrupted."""
        assert self.run("gc", "--run").status == 0
        done = self.run("retention")
        assert done.status == 0, done
        assert self.run("gc", "--run").status == 0


def test_112_killed_again_and_again(tmp_path: Path, times: Callable[[str, int], int]) -> None:
    """However often: what a keep rule names is never missing; the next round goes on; nothing goes twice; and all that
    went can be undeleted.
    """
    (tmp_path / "template").mkdir()
    template = _Site(tmp_path / "template")
    template.fill()
    whole = template.manifests
    assert template.run("retention").status == 0
    kept, deleted = template.manifests, template.deletions
    assert template.tags == {"v1", "v2"}
    assert len(whole - kept) == 6
    kills = times("KILLS", 5)
    number, stride = 1, max(1, 64 // kills)
    for round_ in range(1000):
        folder = tmp_path / f"{round_}"
        folder.mkdir()
        site, steps = _Site(folder), Steps(folder / "steps")
        site.fill()
        steps.kill_before(number)
        status = site.killed(steps)
        if not steps.hit:
            assert status == 0
            break
        assert status == -signal.SIGKILL
        assert site.tags >= {"v1", "v2"}
        assert site.manifests >= kept
        site.finish()
        assert (site.tags, site.manifests, site.deletions) == ({"v1", "v2"}, kept, deleted), number
        assert site.run("undelete", "corp/team/app:nightly").status == 0
        assert "nightly" in site.tags
        number += stride
        shutil.rmtree(folder)
    assert number > kills
