"""Every setting, with its default and its meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.config import values
from mirror.config.bucket_settings import BucketSettings
from mirror.config.cluster_settings import ClusterSettings
from mirror.config.section import Section
from mirror.config.values import CapacityText, Listed, Rate, Seconds, Size
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import check_caller
from mirror.policy.events.changes import MOUNTED, PULLED, TYPES
from mirror.policy.hosted.immutability import ImmutableRule
from mirror.policy.hosted.retention_rules import DeleteRule, Happening, KeepRule, RetentionPolicy, TagChoice
from mirror.policy.image_names import parse_image
from mirror.policy.routing import RoutingTable
from mirror.policy.schedule import Cron, Every, Plan
from mirror.policy.upstream.ecr_names import ecr_region
from mirror.values.platforms import parse_platform
from mirror.values.tagsets import TagSet


class ServerSettings(Section):
    """`[server]`"""

    listen: Listed[Annotated[str, AfterValidator(values.listen)]] = Field(
        ["127.0.0.1:5000"],
        min_length=1,
        description="Addresses to listen on: host:port, [::1]:port or unix:/path. Port 0 takes a free port.",
    )
    workers: int = Field(1, ge=1, le=64, description="Number of serving processes; they share one store.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate and its chain; all listeners then speak TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key of the certificate.")
    drain_timeout: Seconds = Field(30.0, description="How long answers in progress may take to finish after SIGTERM.")
    client_stall_timeout: Seconds = Field(
        300.0, description="A client that takes no byte of an answer for this long is disconnected."
    )
    wait_for_upstream: Seconds = Field(
        30.0, description="How long downloads wait for an upstream that breaks off in the middle; 0: not at all."
    )
    idle_timeout: Seconds = Field(75.0, description="A connection without a request is closed after this time.")
    request_head_timeout: Seconds = Field(
        20.0,
        gt=0,
        description="How long the head of a request may take, from first byte to last; also for a TLS handshake.",
    )
    connections_per_client: int = Field(
        0, ge=0, description="Maximum number of open connections per client address and worker; 0: no limit."
    )
    connections_exempt: Listed[Annotated[str, AfterValidator(values.network)]] = Field(
        ["127.0.0.0/8", "::1"], description="Addresses and networks without that limit, such as proxies and ingresses."
    )
    trusted_proxies: Listed[Annotated[str, AfterValidator(values.peer)]] = Field(
        [],
        description="Addresses and networks of proxies whose X-Forwarded-For says who the client is; unix: whoever "
        "comes through a unix socket.",
    )
    blocked_timeout: Annotated[Seconds, AfterValidator(values.blocked_timeout)] = Field(
        30.0, description="A worker whose event loop stands still for this long is replaced; 0: never."
    )
    access_log: bool = Field(True, description="Write one log line per request.")
    max_concurrent_prefetches: int = Field(
        4, ge=1, le=100, description="How many blobs each worker downloads at the same time for routes with `prefetch`."
    )

    @model_validator(mode="after")
    def _pair(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self


class StoreSettings(Section):
    """`[store]`"""

    root: Path = Field(default_factory=values.default_root, description="Folder of the cache, on one local filesystem.")
    capacity: CapacityText = Field(
        "80%", description="How much space blobs may take: bytes (500GB, 2TiB) or a share of the disk (80%)."
    )
    high_water: float = Field(0.95, gt=0, le=1, description="Eviction starts above this fraction of the capacity.")
    low_water: float = Field(0.85, gt=0, le=1, description="Eviction stops below this fraction of the capacity.")
    partials_max_age: Seconds = Field(
        86400.0, description="An interrupted download that has not been resumed for this long is deleted."
    )
    quarantine_max_size: Size = Field(
        "1GB",
        description="Bytes of damaged blobs to keep for examination, at most a tenth of the capacity; 0: none.",
    )
    tag_lists_max_size: Size = Field(
        "256MB",
        description="How much space tag lists that the mirror sorts may take on disk, in addition to the capacity.",
    )
    quarantine_max_age: Seconds = Field(
        7 * 86400.0, description="How long damaged blobs are kept for examination; 0: they are not kept."
    )
    forget_after: Seconds = Field(
        90 * 86400.0,
        description="Tags and manifests of upstreams that are evicted and were not asked for in this time are "
        "forgotten; 0: never.",
    )
    bucket: Annotated[str, AfterValidator(values.bucket)] | None = Field(
        None,
        description="s3://name/prefix, gs://… or az://…: the bucket that keeps what is hosted; the disk is a cache.",
    )
    cache_in_bucket: bool = Field(False, description="Keep cached content in the bucket as well.")
    bucket_capacity: Rate | None = Field(
        None, description="How many bytes of cached content the bucket may have (2TB); not set: no limit."
    )

    @model_validator(mode="after")
    def _order(self) -> StoreSettings:
        if self.low_water > self.high_water:
            raise ValueError(f"low_water ({self.low_water:g}) is above high_water ({self.high_water:g})")
        return self


class IndexSettings(Section):
    """`[index]`"""

    url: SecretStr = Field(
        SecretStr(""),
        description="URL of a Redis: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; empty: an "
        "embedded index beside the blobs.",
    )
    url_file: Path | None = Field(None, description="File that contains the URL.")
    timeout: Seconds = Field(
        0.1, gt=0, description="How long to wait for an answer from Redis before going on without it."
    )


class ScrubSettings(Section):
    """`[scrub]`"""

    every: Seconds = Field(
        2592000.0,
        description="Time between the end of one scrub, which checks the digest of every blob, and the next; 0: never.",
    )
    rate: Rate = Field("20MB", description="How many bytes per second a scrub may read.")


class LogSettings(Section):
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe level that is logged."
    )


class TraceSettings(Section):
    """`[trace]`"""

    endpoint: Annotated[str, AfterValidator(values.collector)] = Field(
        "", description="URL of a collector that accepts OTLP over HTTP; empty: no traces."
    )
    sample_ratio: float = Field(
        0.01, ge=0, le=1, description="Fraction of the requests without a traceparent that are traced."
    )


class ReachSettings(Section):
    """How one address is reached, and with which credentials: the upstream's own, or that of one of its mirrors."""

    username: str | None = Field(None, description="User name at the registry.")
    password: SecretStr | None = Field(None, description="Password or access token.")
    password_file: Path | None = Field(
        None, description="File that contains the password; it is read again when it changes."
    )
    docker_config: Path | None = Field(
        None, description="Docker's config.json with the credentials; it is read again when it changes."
    )
    provider: Literal["google", "ecr", "ecr-public", "acr"] | None = Field(
        None, description="The cloud that issues credentials for this registry, instead of a password."
    )
    key_file: Path | None = Field(
        None, description="google: key of a service account; without it, application default credentials."
    )
    region: str | None = Field(None, description="ecr: the region, if the registry's name does not contain it.")
    role_arn: str | None = Field(None, description="ecr, ecr-public: a role to assume first.")
    tenant_id: str | None = Field(None, description="acr: the tenant of a service principal or workload identity.")
    client_id: str | None = Field(
        None, description="acr: the service principal or workload identity, or one of several managed identities."
    )
    client_secret: SecretStr | None = Field(None, description="acr: the secret of a service principal.")
    client_secret_file: Path | None = Field(None, description="File that contains the client secret.")
    token_file: Path | None = Field(None, description="acr: file with the token of a workload identity.")
    provider_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="ecr, ecr-public: another address of the cloud's API; acr: another authority."
    )
    sts_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="ecr, ecr-public: another address of STS, for role_arn."
    )
    metadata_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="Another address of the cloud's metadata server."
    )
    token_hosts: list[Annotated[str, AfterValidator(values.token_host)]] = Field(
        [], description="Hosts in other domains to which these credentials may be sent to get a token."
    )
    private_network: bool = Field(
        False,
        description="The name may resolve to private addresses; not needed if url contains one, or localhost.",
    )
    ca_file: Path | None = Field(
        None, description="PEM file of certificate authorities to trust instead of the system's."
    )
    verify_tls: bool = Field(True, description="Check the registry's certificate.")
    client_certificate: Path | None = Field(None, description="PEM file of a certificate to present to the registry.")
    client_key: Path | None = Field(None, description="PEM file with the private key of that certificate.")
    proxy: SecretStr | None = Field(
        None, description="http://host:port of a proxy; env: use HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
    )
    proxy_file: Path | None = Field(
        None, description="File that contains the URL of the proxy, with user and password."
    )

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file exclude each other")
        if (self.username is None) != (self.password is None and self.password_file is None):
            raise ValueError("username and password (or password_file) belong together")
        ways = {"username": self.username, "docker_config": self.docker_config, "provider": self.provider}
        present = [name for name, way in ways.items() if way is not None]
        if len(present) > 1:
            raise ValueError(f"{' and '.join(present)} exclude each other")
        return self

    @model_validator(mode="after")
    def _connection(self) -> Self:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together")
        if self.proxy is not None and self.proxy_file is not None:
            raise ValueError("proxy and proxy_file exclude each other")
        if self.proxy is not None:
            values.proxy(self.proxy.get_secret_value())
        return self

    @model_validator(mode="after")
    def _provider_options(self) -> Self:
        for option, providers in _PROVIDER_OPTIONS.items():
            if getattr(self, option) is not None and self.provider not in providers:
                raise ValueError(f"{option} is for provider {' or '.join(providers)} only")
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("client_secret and client_secret_file exclude each other")
        if (self.client_secret or self.client_secret_file) and not (self.tenant_id and self.client_id):
            raise ValueError("a client secret needs tenant_id and client_id")
        if (self.client_secret or self.client_secret_file) and self.token_file:
            raise ValueError("a client secret and token_file exclude each other")
        return self


class EndpointSettings(ReachSettings):
    """`[[upstream.endpoints]]`: a mirror of the upstream; written as a URL, or as a table."""

    url: Annotated[str, AfterValidator(values.url)] = Field(description="The URL of the mirror.")


def endpoint(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class UpstreamSettings(ReachSettings):
    """`[[upstream]]`: a registry that clients may pull from."""

    name: Annotated[str, AfterValidator(values.registry)] = Field(
        description="The registry's name as clients use it (ghcr.io), or *.suffix for all hosts below a domain."
    )
    url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="The registry's URL; https://<name> if not set."
    )
    aliases: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        [], description="Other names for the same registry."
    )
    host_headers: list[Annotated[str, AfterValidator(values.host)]] = Field(
        [], description="Requests with these Host headers are for this registry."
    )
    endpoints: list[Annotated[EndpointSettings, BeforeValidator(endpoint)]] = Field(
        [], description="Mirrors of the registry, tried in this order before the registry itself."
    )
    push: bool = Field(
        False, description="Whether `mirror copy` and replication may push to this registry, with these credentials."
    )
    access: Literal["shared", "verify"] = Field(
        "shared",
        description=(
            "shared: the mirror's credentials and rules decide. verify: each caller's own credentials "
            "must be accepted, too."
        ),
    )
    hedge_after: Seconds | None = Field(
        None,
        gt=0,
        description="If an endpoint has not answered after this time, the next one is asked as well; not set: never.",
    )
    max_concurrent_downloads: int = Field(
        32, ge=1, le=1000, description="Maximum number of simultaneous downloads, per worker."
    )
    connections_per_blob: int = Field(
        4,
        ge=1,
        le=16,
        description=(
            "Maximum number of connections over which a large blob comes, while each makes it faster; each counts as a "
            "download."
        ),
    )
    connect_timeout: Seconds = Field(5.0, description="Time limit for opening a connection, including TLS.")
    read_timeout: Seconds = Field(
        30.0, description="A download that receives no byte for this long is resumed with a new request."
    )

    @model_validator(mode="after")
    def _wildcard(self) -> UpstreamSettings:
        if self.name.startswith("*."):
            present = [setting for setting in ("url", "aliases", "host_headers", "endpoints") if getattr(self, setting)]
            if present:
                raise ValueError(
                    f"{', '.join(present)}: not possible for a wildcard: each host is a registry of its own"
                )
        if self.provider == "ecr" and not self.name.startswith("*.") and not (self.region or ecr_region(self.name)):
            raise ValueError("region must be set: the registry's name does not contain it")
        return self

    @model_validator(mode="after")
    def _verified(self) -> UpstreamSettings:
        if self.access == "verify" and self.push:
            raise ValueError("push: not possible with access = verify: the mirror pushes with credentials of its own")
        if self.access == "verify" and self.endpoints:
            raise ValueError(
                "endpoints: not possible with access = verify: they would be asked with the mirror's credentials"
            )
        return self

    @property
    def has_credentials(self) -> bool:
        """True if the mirror has credentials for one of the addresses."""
        ways = ("username", "docker_config", "provider", "client_certificate")
        return any(getattr(reach, way) is not None for _, reach in self.addresses for way in ways)

    @property
    def addresses(self) -> list[tuple[str, ReachSettings]]:
        """The settings of each address, by the name of its place in this table; the upstream's own come first."""
        return [("", self), *((f".endpoints[{number}]", endpoint) for number, endpoint in enumerate(self.endpoints, 1))]


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


#: Seconds between two runs of what has no schedule of its own.
_A_DAY: Final = 86400.0


def _plan(every: float | None, cron: str | None, timezone: str) -> Plan:
    """When something is due: once a day if neither `every`, in seconds, nor `cron` is set. Raises `ValueError`."""
    if every is not None and cron is not None:
        raise ValueError("every and cron exclude each other")
    if cron is not None:
        return Cron(cron, timezone)
    if timezone != "UTC":
        raise ValueError("timezone is for cron only")
    return Every(_A_DAY if every is None else every)


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
        plan = _plan(self.every, self.cron, self.timezone)
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


class VirtualSettings(Section):
    """`[[virtual]]`: one name for several registries."""

    name: Annotated[str, AfterValidator(values.alias)] = Field(
        description="The virtual registry's name in paths: all, or images.example.com."
    )
    aliases: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        [], description="Other names for the same virtual registry."
    )
    host_headers: list[Annotated[str, AfterValidator(values.host)]] = Field(
        [], description="Requests with these Host headers are for this virtual registry."
    )
    members: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        min_length=1,
        description="Upstreams and hosted registries, in order. A name that a hosted one has is never asked upstream.",
    )
    writable: Annotated[str, AfterValidator(values.alias)] | None = Field(
        None, description="The hosted member that takes pushes and deletions; not set: there are none."
    )
    reserved: list[Annotated[str, AfterValidator(values.name_pattern)]] = Field(
        [], description="Patterns of names that are never asked upstream, also if no hosted member has them."
    )
    refusal_means_absent: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        [],
        description="Upstream members whose refusals (401, 403) mean that a name does not exist, although the mirror "
        "has credentials there: the next member is then asked.",
    )


#: The providers that each option is for.
_PROVIDER_OPTIONS: Final = {
    "key_file": ("google",),
    "region": ("ecr",),
    "role_arn": ("ecr", "ecr-public"),
    "tenant_id": ("acr",),
    "client_id": ("acr",),
    "client_secret": ("acr",),
    "client_secret_file": ("acr",),
    "token_file": ("acr",),
    "provider_url": ("ecr", "ecr-public", "acr"),
    "sts_url": ("ecr", "ecr-public"),
    "metadata_url": ("google", "ecr", "ecr-public", "acr"),
}


class TokenSettings(Section):
    """`[[access.token]]`: a token that lets its bearer in."""

    name: str = Field(min_length=1, max_length=200, description="The token's name in rules and logs.")
    token: SecretStr | None = Field(None, description="The token itself.")
    token_file: Path | None = Field(None, description="File that contains the token.")
    groups: list[str] = Field([], description="Groups of the token's bearer, for rules.")

    @model_validator(mode="after")
    def _one(self) -> TokenSettings:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("needs either token or token_file")
        return self


class IssuerSettings(Section):
    """`[[access.issuer]]`: an OpenID Connect issuer, whose JSON web tokens let their bearers in."""

    issuer: Annotated[str, AfterValidator(values.url)] = Field(description="The `iss` of its tokens.")
    name: Annotated[str, AfterValidator(values.issuer_name)] = Field(
        "", description="The issuer's name in rules; the host in `issuer` if not set."
    )
    audience: str = Field(min_length=1, description="The `aud` of tokens for this mirror.")
    keys_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the issuer's keys (JWKS); from its discovery document if not set."
    )
    keys_file: Path | None = Field(None, description="File with the issuer's keys, instead of a URL.")
    issuer_ca_file: Path | None = Field(
        None, description="PEM file of the authorities to trust for connections to the issuer."
    )
    bearer_file: Path | None = Field(None, description="File with a token that is sent when the keys are fetched.")
    name_claim: str = Field("sub", description="The claim that contains the name.")
    groups_claim: str = Field("groups", description="The claim that contains the groups.")
    prefix: str = Field("", description="Put before names and groups, to keep issuers apart.")

    @property
    def title(self) -> str:
        """The issuer's name in rules."""
        return self.name or (urlsplit(self.issuer).hostname or "")


class RuleSettings(Section):
    """`[[access.rule]]`: who may do what; a rule that denies takes precedence over all that allow."""

    effect: Literal["allow", "deny"] = Field(description="Whether the rule allows or denies.")
    callers: list[Annotated[str, AfterValidator(check_caller)]] = Field(
        min_length=1,
        description="*, anonymous, authenticated, user:…, token:…, robot:…, subject:…, certificate:…, upstream:…, "
        "issuer:…, group:…, claim:NAME=VALUE,…",
    )
    actions: list[Literal["pull", "push", "overwrite", "write", "delete", "admin"]] = Field(
        ["pull"],
        min_length=1,
        description="The actions that the rule allows or denies: pull, push (new tags), overwrite (move a tag), "
        "write (both), delete, admin.",
    )
    repositories: list[Annotated[str, AfterValidator(values.route_pattern)]] = Field(
        [], description="Patterns as in routes; none: all repositories."
    )


class AccessSettings(Section):
    """`[access]`: who may use the mirror."""

    anonymous: bool = Field(True, description="Whether clients that do not log in are let in.")
    htpasswd: Path | None = Field(None, description="Accounts: an htpasswd file with bcrypt hashes.")
    groups: dict[str, Listed[str]] = Field({}, description='Groups of accounts, for rules: ops = ["alice"].')
    client_ca: Path | None = Field(
        None, description="PEM file; client certificates issued by these authorities let their holders in."
    )
    realm: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the token endpoint as clients reach it; derived from the Host header if not set."
    )
    token_lifetime: Seconds = Field(300.0, ge=60, description="How long a token that the mirror issues is valid.")
    token_key_file: Path | None = Field(
        None,
        description=(
            "File with the key of the mirror's own tokens, to be shared by replicas; created beside the "
            "store if not set."
        ),
    )
    verified_for: Seconds = Field(
        300.0,
        gt=0,
        description='How long an upstream\'s answer about a caller is valid, for upstreams with access = "verify".',
    )
    verified_while_down: Seconds = Field(3600.0, description="The same while the upstream is down.")
    audit_log: Path | None = Field(
        None, description="File to which a JSON line is written for each access and each refusal."
    )
    token: list[TokenSettings] = Field([])
    issuer: list[IssuerSettings] = Field([])
    rule: list[RuleSettings] = Field([])

    @property
    def has_no_login(self) -> bool:
        """True if there is no way to log in."""
        return self.htpasswd is None and self.client_ca is None and not self.token and not self.issuer

    @property
    def has_admins(self) -> bool:
        """True if a rule lets callers that have logged in administer the mirror."""
        return any(
            rule.effect == "allow"
            and "admin" in rule.actions
            and not rule.repositories
            and any(caller != "anonymous" for caller in rule.callers)
            for rule in self.rule
        )

    @property
    def is_open(self) -> bool:
        """True if everybody may pull everything from other registries than hosted ones, so that callers need not be
        identified there.
        """
        return self.has_no_login and self.anonymous and not self.rule


class EventEndpointSettings(Section):
    """`[[events.endpoint]]`: an HTTP endpoint that is sent events."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        description="The endpoint's name in commands, logs and metrics: small letters, digits and hyphens."
    )
    url: SecretStr | None = Field(None, description="Where events are sent to, by POST; http or https.")
    url_file: Path | None = Field(None, description="File that contains the URL, if it has a secret in it.")
    secret_file: Path | None = Field(
        None, description="File with the secrets that sign what is sent, one a line; a second one while you change it."
    )
    events: list[Annotated[str, AfterValidator(values.event_pattern)]] = Field(
        [kind for kind in TYPES if kind not in (MOUNTED, PULLED)],
        min_length=1,
        description="The types of events to send, with * for any part; all but mounted and pulled if not set.",
    )
    repositories: list[Annotated[str, AfterValidator(values.route_pattern)]] = Field(
        ["**"], min_length=1, description="Patterns as in routes; events about other repositories are not sent."
    )
    timeout: Seconds = Field(10.0, gt=0, le=300, description="Time limit for one attempt.")
    ca_file: Path | None = Field(None, description="PEM file of the authorities to trust, instead of the system's.")
    proxy: SecretStr | None = Field(None, description="Proxy for the endpoint: http://host:port, or env.")

    @model_validator(mode="after")
    def _one_url(self) -> EventEndpointSettings:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("needs either url or url_file")
        if self.url is not None:
            values.event_url(self.url.get_secret_value())
        if self.proxy is not None:
            values.proxy(self.proxy.get_secret_value())
        return self


class EventsSettings(Section):
    """`[events]`: reports of changes, sent to HTTP endpoints."""

    source: str = Field(
        "mirror", min_length=1, max_length=200, description="The `source` of events, to tell several mirrors apart."
    )
    keep: Seconds = Field(
        7 * 86400.0, ge=60, description="How long delivery of an event is tried; older ones become dead letters."
    )
    max_events: int = Field(
        100_000, ge=100, description="How many events may wait; beyond it, the oldest are given up and counted."
    )
    max_size: Size = Field("256MB", description="How many bytes they may take in the store.")
    sample_pulls: int = Field(100, ge=1, description="Of so many pulls of manifests, one is reported, if asked for.")
    endpoint: list[EventEndpointSettings] = Field([])


class RouteSettings(Section):
    """`[[route]]`: how repositories are treated; the first route whose pattern matches applies."""

    match: Annotated[str, AfterValidator(values.route_pattern)] = Field(
        description="registry/name; * matches within one part, ** matches anything: docker.io/library/*, ghcr.io/**"
    )
    tag_ttl: Seconds = Field(
        300.0, description="How long the mirror answers for a tag without asking the upstream again."
    )
    stale_while_down: Seconds = Field(
        604800.0, description="How old the answer for a tag may be while the upstream is down."
    )
    prefetch: bool = Field(
        False,
        description="When a manifest had to be fetched, fetch its config and layers before clients ask for them.",
    )
    ranges: Literal["verified", "lazy"] = Field(
        "verified",
        description=(
            "verified: the end of a part of a blob waits for the digest of the whole. lazy: small parts are fetched "
            "alone and sent at once, unverified."
        ),
    )
    lazy_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With ranges = lazy: the whole blob is fetched once this share of it is here; 1: only then.",
    )
    lazy_pause: Seconds = Field(
        10.0, description="With ranges = lazy: and once no part of it was asked for during this time."
    )
    offline: bool = Field(
        False, description="Sealed: the upstream is never contacted; cached content is served whatever its age."
    )
    minimum_age: Seconds = Field(
        0.0,
        description="For a tag, serve the newest digest that was first seen at least this long ago; 0: the newest.",
    )
    minimum_age_new_tags: Literal["refuse", "serve"] = Field(
        "refuse", description="What happens to a tag that was never seen before, until it is old enough."
    )
    require_digest: bool = Field(False, description="Refuse pulls by tag.")
    max_size: Size | None = Field(
        None, description="Refuse images whose config and layers together are larger than this (20GB)."
    )
    signed_by: list[Path] = Field(
        [], description="PEM files of public keys; refuse images that have no cosign signature by one of them."
    )


class ContentSettings(Section):
    """`[content]`: what may be pulled at all."""

    deny: Listed[Annotated[str, AfterValidator(values.image_pattern)]] = Field(
        [],
        description="registry/name, registry/name:tag (with * and **) or registry/name@digest; overrides allow.",
    )
    allow: Listed[Annotated[str, AfterValidator(values.image_pattern)]] = Field(
        [], description="The same forms; if there are any, nothing else may be pulled."
    )


class PinSettings(Section):
    """`[[pin]]`: images that are never evicted."""

    match: Annotated[str, AfterValidator(values.pin_pattern)] = Field(
        description="registry/name:tag, each with * and ? (** in names): docker.io/library/*:3.1*"
    )
    reason: str = Field("", description="Shown by `mirror pins`.")


class AdminSettings(Section):
    """`[admin]`"""

    listen: Annotated[str, AfterValidator(values.admin_listen)] | None = Field(
        None,
        description=(
            "Where the admin API and the web page listen: unix:/path, or host:port in addition to "
            "admin.sock in the store's root. Not set: that socket only; empty: nowhere."
        ),
    )


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
        return _plan(self.every, self.cron, self.timezone)

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
        return _plan(self.every, self.cron, self.timezone)

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

#: The registries that are served if the configuration has no `[[upstream]]`; no others are contacted then.
PUBLIC: Final = (
    {
        "name": "docker.io",
        "url": "https://registry-1.docker.io",
        "aliases": ["index.docker.io", "registry-1.docker.io"],
    },
    {"name": "ghcr.io"},
    {"name": "quay.io"},
    {"name": "registry.k8s.io"},
    {"name": "gcr.io"},
    {"name": "*.gcr.io"},
    {"name": "*.pkg.dev"},
    {"name": "public.ecr.aws"},
    {"name": "mcr.microsoft.com"},
)


class Config(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="MIRROR__", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    default_registry: Annotated[str, AfterValidator(lambda name: values.registry(name) if name else name)] = Field(
        "docker.io",
        description="The registry of a request without Host, ns or prefix; empty: such requests are refused.",
    )
    offline: bool = Field(
        False,
        description="The whole mirror is sealed: no upstream is contacted; cached content is served whatever its age.",
    )
    server: ServerSettings = ServerSettings.model_validate({})
    store: StoreSettings = Field(default_factory=lambda: StoreSettings.model_validate({}))
    bucket: BucketSettings = BucketSettings.model_validate({})
    index: IndexSettings = IndexSettings.model_validate({})
    cluster: ClusterSettings = ClusterSettings.model_validate({})
    scrub: ScrubSettings = ScrubSettings.model_validate({})
    log: LogSettings = LogSettings.model_validate({})
    trace: TraceSettings = TraceSettings.model_validate({})
    access: AccessSettings = AccessSettings.model_validate({})
    content: ContentSettings = ContentSettings.model_validate({})
    upstream: list[UpstreamSettings] = Field(
        default_factory=lambda: [UpstreamSettings.model_validate(entry) for entry in PUBLIC]
    )
    hosted: list[HostedSettings] = []
    hosting: HostingSettings = HostingSettings.model_validate({})
    virtual: list[VirtualSettings] = []
    events: EventsSettings = EventsSettings.model_validate({})
    route: list[RouteSettings] = []
    pin: list[PinSettings] = []
    admin: AdminSettings = AdminSettings.model_validate({})
    sync: list[SyncSettings] = []
    replication: list[ReplicationSettings] = []

    @property
    def admin_address(self) -> str:
        """The admin socket that commands use (`unix:/path`); empty if there is none."""
        listen = self.admin.listen
        own_socket = f"unix:{self.store.root.absolute()}/admin.sock"
        return listen if listen is not None and (not listen or listen.startswith("unix:")) else own_socket

    @property
    def admin_tcp(self) -> str | None:
        """The `host:port` of the admin API and the web page; None if they are not on TCP."""
        listen = self.admin.listen
        return None if not listen or listen.startswith("unix:") else listen

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments: `load` merges the environment into them, so that a mistake in either can be left out."""
        return (init_settings,)
