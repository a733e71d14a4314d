"""Hosted content in memory, with rules of retention, and what clients do to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirror.hosting.links import Links
from mirror.hosting.placing import Placing
from mirror.hosting.retiring import Retiring
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.retention_rules import RegistryRetention, RetentionPolicy, RetentionRules
from mirror.policy.pins import PinRule
from mirror.retention.protected_images import ProtectedImages
from mirror.retention.pull_notes import PullNotes, PullTimes
from mirror.retention.repository_retention import RetentionTools
from mirror.retention.retention_marks import RetentionMarks
from mirror.retention.retention_report import RetentionReport
from mirror.retention.retention_schedule import Retention, RoundWanted
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_pins
from mirror.store.local.locks import FileLocks
from tests.support.collecting import APP, GRACE, KEEP, CollectedWorld, image
from tests.support.hooked import Hooked

DAY = 86400.0


class RetainedWorld(CollectedWorld):
    """The registry `corp`: its content in memory, what retention remembers on the disk."""

    def __init__(self, root: Path, *policies: RetentionPolicy) -> None:
        super().__init__()
        self.layout = Layout(root)
        self.store_id = LocalStore(self.layout).id
        self.hooks = {name: Hooked(getattr(self, name)) for name in ("catalog", "records")}
        catalog: Any = self.hooks["catalog"]
        records: Any = self.hooks["records"]
        self.parts = replace(self.parts, catalog=catalog, records=records)
        self.pins = local_pins(self.layout)
        self.pin_rules: Sequence[PinRule] = ()
        #: Records on the disk, at which something else can happen.
        self.marks: Any = Hooked(JsonRecords(self.layout, "retention"))
        self.pulled: Any = Hooked(JsonRecords(self.layout, "pulls"))
        self.policies = policies
        self.reports: list[RetentionReport] = []

    @property
    def retention_rules(self) -> RetentionRules:
        """As they are configured."""
        return RetentionRules({"corp": RegistryRetention(self.policies, KEEP)}, GRACE)

    @property
    def freezes(self) -> Any:
        """The freezes of tags."""
        return self.parts.histories.freezes

    def retention(self, locks: Any = None, **more: Any) -> Retention:
        """Retention as one process has it."""
        protected = ProtectedImages(
            self.parts.catalog, self.pins, self.pin_rules, self.freezes, self.parts.immutable, self.clock
        )
        tools = RetentionTools(
            self.parts,
            self.retention_rules,
            Retiring(self.parts, Placing(self.parts, Links(self.parts))),
            protected,
            PullTimes(self.pulled),
            RetentionMarks(self.marks),
            self.grace_clock.read,
        )
        locks = locks or FileLocks(self.layout, secret=self.store_id)
        return Retention(tools, locks, self.marks, ended=self.reports.append, **more)

    def pull_notes(self) -> PullNotes:
        """Pulls as one worker sees them."""
        return PullNotes(self.pulled, self.retention_rules, self.clock)

    async def retain(self, has: Callable[[Repo], bool] | None = None) -> RetentionReport:
        """A round by hand."""
        report = await self.retention().run(RoundWanted("a test", has))
        assert report is not None
        return report

    def build(self, tag: str, repo: Repo = APP) -> Digest:
        """Pushes an image of its own under a tag. A second passes."""
        self.passes(1)
        return self.push(repo, image(self.upload(repo, f"{repo} {tag}".encode()), size=len(f"{repo} {tag}")), tag)

    def tags(self, repo: Repo = APP) -> str:
        """The tags that can be pulled."""
        here = set(self.catalog.manifest_digests(repo))
        return " ".join(tag for tag in self.catalog.tags(repo) if self.catalog.pointed(repo, tag) in here)
