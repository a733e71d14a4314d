"""All settings, each with its default and its meaning. Large tables have files of their own in `tables`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.config import values
from mirror.config.section import Section
from mirror.config.tables.access_settings import AccessSettings
from mirror.config.tables.bucket_settings import BucketSettings
from mirror.config.tables.cluster_settings import ClusterSettings
from mirror.config.tables.copying_settings import ReplicationSettings, SyncSettings
from mirror.config.tables.event_settings import EventsSettings
from mirror.config.tables.hosting_settings import HostedSettings, HostingSettings
from mirror.config.tables.upstream_settings import PUBLIC, UpstreamSettings
from mirror.config.values import CapacityText, Listed, Rate, Seconds, Size


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
        description="Tags of upstreams whose image is evicted, and that nobody has asked for in this time, are "
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
