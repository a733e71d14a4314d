"""The settings of hosted registries, of pushes to them, and of the retention of what was pushed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from mirror.config import values
from mirror.config.plans import planned
from mirror.config.section import Section
from mirror.config.values import Seconds, Size
from mirror.policy.hosted.immutability import ImmutableRule
from mirror.policy.hosted.retention_rules import DeleteRule, Happening, KeepRule, RetentionPolicy, TagChoice
from mirror.policy.schedule import Plan


class ImmutableSettings(Section):
    """`[[hosted.immutable]]`: tags that neither move nor go."""

    repositories: list[Annotated[str, AfterValidator(values.name_pattern)]] = Field(
        ["**"], min_length=1, description="Patterns of the repositories, within the registry."
    )
    tags: list[Annotated[str, AfterValidator(values.tag_pattern)]] = Field(
        ["*"], min_length=1, description="Patterns of the tags that neither move nor go: v*."
    )
    except_: list[Annotated[str, AfterValidator(values.tag_pattern)]] = Field(
        [], alias="except", description="Patterns of tags among them that may: latest, dev-*."
    )

    @property
    def rule(self) -> ImmutableRule:
        """The rule that this table makes."""
        return ImmutableRule(tuple(self.repositories), tuple(self.tags), tuple(self.except_))


class _TagChoiceSettings(Section):
    tags: list[Annotated[str, AfterValidator(values.tag_pattern)]] = Field(
        [], description="Which tags the rule is about, as patterns: v*."
    )
    tags_regex: str | None = Field(
        None, description="Which tags the rule is about, as a regular expression that matches the whole tag."
    )

    @property
    def choice(self) -> TagChoice:
        """The tags that the rule is about. Raises `ValueError`."""
        return TagChoice(tuple(self.tags), self.tags_regex)


class KeepSettings(_TagChoiceSettings):
    """`keep` of `[[hosted.retention]]`: tags that stay, because they fulfil all conditions."""

    newest: int | None = Field(None, ge=1, description="How many of the newest of these tags.")
    by: Literal["pushed", "tagged", "pulled"] = Field("pushed", description="What makes a tag newer, for newest.")
    newest_of_each_minor: int | None = Field(
        None, ge=1, description="How many of the newest versions of each minor version: 3 of 1.4, 3 of 1.5."
    )
    prereleases: bool = Field(False, description="Whether newest_of_each_minor counts prereleases, too.")
    pushed_within: Seconds | None = Field(None, gt=0, description="Pushed less than so long ago.")
    tagged_within: Seconds | None = Field(None, gt=0, description="Pointing to its image since less than so long.")
    pulled_within: Seconds | None = Field(None, gt=0, description="Pulled, or pushed, less than so long ago.")

    @property
    def rule(self) -> KeepRule:
        """The rule that this table makes. Raises `ValueError`."""
        if self.by != "pushed" and self.newest is None:
            raise ValueError("by belongs to newest")
        if self.prereleases and self.newest_of_each_minor is None:
            raise ValueError("prereleases belongs to newest_of_each_minor")
        within = _happenings(pushed=self.pushed_within, tagged=self.tagged_within, pulled=self.pulled_within)
        return KeepRule(
            self.choice, self.newest, Happening(self.by), self.newest_of_each_minor, self.prereleases, within
        )

    @model_validator(mode="after")
    def _check(self) -> KeepSettings:
        _ = self.rule
        return self


class DeleteSettings(_TagChoiceSettings):
    """`delete` of `[[hosted.retention]]`: tags that go, because they fulfil all conditions and no `keep` names them."""

    not_pushed_within: Seconds | None = Field(None, gt=0, description="Not pushed for so long.")
    not_tagged_within: Seconds | None = Field(None, gt=0, description="Pointing to its image for so long.")
    not_pulled_within: Seconds | None = Field(None, gt=0, description="Neither pulled nor pushed for so long.")

    @property
    def rule(self) -> DeleteRule:
        """The rule that this table makes. Raises `ValueError`."""
        return DeleteRule(
            self.choice,
            _happenings(pushed=self.not_pushed_within, tagged=self.not_tagged_within, pulled=self.not_pulled_within),
        )

    @model_validator(mode="before")
    @classmethod
    def _no_keep_conditions(cls, value: Any) -> Any:
        wrong = sorted(_KEEP_ONLY & value.keys()) if isinstance(value, dict) else ()
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: what is to stay; write it in keep, which beats delete")
        return value

    @model_validator(mode="after")
    def _check(self) -> DeleteSettings:
        if not self.tags and self.tags_regex is None:
            raise ValueError('needs tags or tags_regex; tags = ["*"] means all tags')
        _ = self.rule
        return self


_KEEP_ONLY: Final = frozenset(KeepSettings.model_fields) - frozenset(_TagChoiceSettings.model_fields)


def _happenings(**seconds: float | None) -> dict[Happening, float]:
    return {Happening(name): value for name, value in seconds.items() if value is not None}


class RetentionSettings(Section):
    """`[[hosted.retention]]`: which tags and images of some repositories are deleted, and which stay."""

    repositories: list[Annotated[str, AfterValidator(values.name_pattern)]] = Field(
        min_length=1, description="Patterns of the repositories, within the registry."
    )
    keep: list[KeepSettings] = Field([], description="Rules for tags that stay; one of them is enough.")
    delete: list[DeleteSettings] = Field([], description="Rules for tags that go, unless a keep rule names them.")
    delete_untagged_after: Seconds | None = Field(
        None, description="How long a manifest stays without a tag; not set: for ever."
    )

    @property
    def policy(self) -> RetentionPolicy:
        """The policy that this table makes."""
        return RetentionPolicy(
            tuple(self.repositories),
            tuple(each.rule for each in self.keep),
            tuple(each.rule for each in self.delete),
            self.delete_untagged_after,
        )


class HostedSettings(Section):
    """`[[hosted]]`: a registry whose images this mirror hosts."""

    name: Annotated[str, AfterValidator(values.alias)] = Field(
        description="The registry's name in paths, rules and commands: corp, or registry.example.com."
    )
    aliases: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        [], description="Other names for the same registry."
    )
    host_headers: list[Annotated[str, AfterValidator(values.host)]] = Field(
        [], description="Requests with these Host headers are for this registry."
    )
    repositories: list[Annotated[str, AfterValidator(values.name_pattern)]] = Field(
        ["**"], description="Patterns of the names, within the registry, that a push may create."
    )
    quota: Size | None = Field(
        None,
        description="How many bytes the registry's images may take, shared layers counted once; not set: no limit.",
    )
    quotas: dict[Annotated[str, AfterValidator(values.name_pattern)], Size] = Field(
        {}, description='Limits for repositories, by patterns within the registry: "team-a/**" = "50GB".'
    )
    keep_deleted: Seconds = Field(
        7 * 86400.0, description="How long deleted tags and manifests can be undeleted; 0: not at all."
    )
    read_only: bool = Field(False, description="Refuse pushes and deletions.")
    sparse_manifests: bool = Field(
        False, description="Accept manifests that name blobs or other manifests which the repository lacks."
    )
    dangling_referrers: Literal["keep", "collect"] = Field(
        "keep", description="What collection does with untagged referrers whose subject is gone."
    )
    immutable: list[ImmutableSettings] = Field([], description="Tags that neither move nor go.")
    retention: list[RetentionSettings] = Field([], description="Tags and images that are deleted by rules.")


class RetentionTimesSettings(Section):
    """`[hosting.retention]`: when retention deletes."""

    every: Seconds | None = Field(
        None, description="How often, from start to start; a day if neither this nor cron is set; 0: only by hand."
    )
    cron: str | None = Field(None, description="When, as a cron expression: 0 3 * * *.")
    timezone: str = Field("UTC", description="The time zone of the cron expression.")

    @property
    def plan(self) -> Plan | None:
        """The schedule; None: only by hand. Raises `ValueError`."""
        plan = planned(self.every, self.cron, self.timezone)
        if self.every is not None and 0 < self.every < 60:
            raise ValueError("every is at least a minute, or 0: only by hand")
        return None if self.every == 0 else plan

    @model_validator(mode="after")
    def _check(self) -> RetentionTimesSettings:
        _ = self.plan
        return self


class HostingSettings(Section):
    """`[hosting]`: pushes to hosted registries, and the collection of what they no longer need."""

    grace: Seconds = Field(
        86400.0,
        description="How long content that nothing names stays before it is collected; reservations last as long.",
    )
    collect_every: Seconds = Field(
        3600.0, description="Time between the end of one round of garbage collection and the next; 0: never."
    )
    sweep_every: Seconds = Field(
        86400.0, description="With a bucket: time between the end of one sweep of it and the next; 0: never."
    )
    sweep_rate: int = Field(1000, ge=1, description="How many objects a sweep looks at in a second, at most.")
    upload_timeout: Seconds = Field(
        86400.0, gt=0, description="An upload session that receives no byte for this long is deleted."
    )
    max_uploads: int = Field(1000, ge=1, description="How many upload sessions may be open.")
    max_uploads_per_caller: int = Field(100, ge=1, description="How many of them may belong to one caller.")
    min_upload_rate: Size = Field(
        "1KB",
        description="A request whose body arrives more slowly than this many bytes per second is ended; 0: never.",
    )
    tag_freshness: Seconds = Field(
        0.0,
        le=3600,
        description="In a cluster: how long ago a replica may have looked at the bucket, for pulls of hosted tags and "
        "manifests; 0: it looks each time.",
    )
    stale_while_bucket_down: Seconds = Field(
        3600.0,
        description="In a cluster, while the bucket does not answer: how long a replica answers pulls of hosted "
        "content with what it saw last.",
    )
    retention: RetentionTimesSettings = RetentionTimesSettings.model_validate({})
