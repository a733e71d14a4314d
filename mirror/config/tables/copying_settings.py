"""The settings of what the mirror copies on a schedule: tags from upstreams, and hosted repositories to others."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from mirror.config import values
from mirror.config.plans import planned
from mirror.config.section import Section
from mirror.config.values import Rate, Seconds
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import check_caller
from mirror.policy.image_names import parse_image
from mirror.policy.routing import RoutingTable
from mirror.policy.schedule import Plan
from mirror.values.platforms import parse_platform
from mirror.values.tagsets import TagSet


class SyncSettings(Section):
    """`[[sync]]`: tags of a repository that the mirror fetches on a schedule."""

    name: str = Field("", description="The rule's name in commands, logs and metrics; the value of `from` if not set.")
    from_: str = Field(alias="from", description="The repository: docker.io/library/python.")
    tags: str | None = Field(None, description="Which tags, as a glob: 3.1*; all tags if none of the three is set.")
    tags_regex: str | None = Field(None, description="Which tags, as a regular expression that matches the whole tag.")
    tags_semver: str | None = Field(None, description="Which tags, as a version range in npm's notation: >=1.2 <2.")
    prereleases: bool = Field(False, description="Whether a version range includes prereleases.")
    newest: int | None = Field(
        None, ge=1, description="How many of the matching tags to fetch, the newest first; not set: all."
    )
    platforms: list[str] = Field([], description="Platforms to fetch, such as linux/amd64; empty: all.")
    referrers: bool = Field(False, description="Also fetch signatures, SBOMs and other referrers.")
    every: Seconds | None = Field(None, ge=60, description="How often, from start to start; at least a minute.")
    cron: str | None = Field(None, description="When, as a cron expression: 0 3 * * *.")
    timezone: str = Field("UTC", description="The time zone of the cron expression.")
    every_replica: bool = Field(
        False,
        description="Each replica with its own disk runs the rule; otherwise one runs it for all that share a Redis.",
    )

    @property
    def title(self) -> str:
        """The rule's name; its repository if it has none."""
        return self.name or self.from_

    @property
    def tag_set(self) -> TagSet:
        """The tags to fetch. Raises `ValueError`."""
        return TagSet(self.tags, self.tags_regex, self.tags_semver, self.prereleases, self.newest)

    @property
    def plan(self) -> Plan:
        """The schedule. Raises `ValueError`."""
        if (self.every is None) == (self.cron is None):
            raise ValueError("needs either every or cron")
        return planned(self.every, self.cron, self.timezone)

    @model_validator(mode="after")
    def _check(self) -> SyncSettings:
        mistakes = []
        if self.name and not _RULE_NAME.fullmatch(self.name):
            mistakes.append("name has 1 to 100 letters, digits and . _ - / :")
        checks = (lambda: self.tag_set, lambda: self.plan, lambda: list(map(parse_platform, self.platforms)))
        for check in checks:
            try:
                check()
            except ValueError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def repository(self, table: RoutingTable) -> Repo:
        """The repository that `from` means. Raises `RequestError`."""
        last = self.from_.rpartition("/")[2]
        if "@" in last or ":" in last:
            raise RequestError(f"must be a repository, without tag or digest: {self.from_!r}")
        return parse_image(self.from_, table).repo


class ReplicationSettings(Section):
    """`[[replication]]`: hosted repositories that are copied to another registry, and kept the same there."""

    name: str = Field(description="The rule's name in commands, logs and metrics.")
    from_: Annotated[str, AfterValidator(values.route_pattern)] = Field(
        alias="from", description="Pattern of the hosted repositories: corp/team-a/**."
    )
    to: Annotated[str, AfterValidator(values.registry)] = Field(
        description="The other registry: the name of an upstream with `push = true`."
    )
    rename: dict[str, str] = Field(
        {}, description='How names begin there: "team-a/" = "site-a/team-a/"; the longest beginning counts.'
    )
    tags: list[Annotated[str, AfterValidator(values.tag_pattern)]] = Field(
        ["*"], min_length=1, description="Patterns of the tags; signatures go with their images."
    )
    on: Literal["push", "schedule"] = Field(
        "push", description="push: within seconds of each change, and by schedule; schedule: by schedule alone."
    )
    every: Seconds | None = Field(
        None, ge=60, description="How often everything is compared; a day if cron is not set either."
    )
    cron: str | None = Field(None, description="When everything is compared, as a cron expression: 0 3 * * *.")
    timezone: str = Field("UTC", description="The time zone of the cron expression.")
    referrers: bool = Field(True, description="Also copy signatures, SBOMs and other referrers.")
    overwrite: bool = Field(
        False, description="Move tags there that point to something which this rule has not put there."
    )
    deletes: Literal["never", "callers", "all"] = Field(
        "never", description="Which deletions are repeated there: none; those by callers; those by retention as well."
    )
    not_moved_by: list[Annotated[str, AfterValidator(check_caller)]] = Field(
        [],
        description="Tags that these callers moved last are not sent on: the logins of sites that replicate to here.",
    )
    rate: Rate | None = Field(None, description="How many bytes per second the rule may send; not set: no limit.")

    @property
    def plan(self) -> Plan:
        """When everything is compared. Raises `ValueError`."""
        return planned(self.every, self.cron, self.timezone)

    @model_validator(mode="after")
    def _check(self) -> ReplicationSettings:
        mistakes = [] if _RULE_NAME.fullmatch(self.name) else ["name has 1 to 100 letters, digits and . _ - / :"]
        try:
            _ = self.plan
        except ValueError as error:
            mistakes.append(str(error))
        if self.to.startswith("*."):
            mistakes.append("to: name one registry, and not all below a domain")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


_RULE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,99}")
