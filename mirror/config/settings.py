"""Every setting, with its default and what it means. Reading this file is knowing them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.config import values
from mirror.config.values import Seconds
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import check_caller
from mirror.policy.image_names import parse_image
from mirror.policy.routing import RoutingTable
from mirror.policy.schedule import Cron, Every, Plan
from mirror.policy.upstream.ecr_names import ecr_region
from mirror.values.platforms import parse_platform
from mirror.values.tagsets import TagSet


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(_Section):
    """`[server]`"""

    listen: Annotated[list[Annotated[str, AfterValidator(values.listen)]], BeforeValidator(values.split)] = Field(
        ["127.0.0.1:5000"],
        min_length=1,
        description="Where to listen: host:port, [::1]:port, or unix:/path. Port 0 takes a free one.",
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that serve; they share one store.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with certificate and chain; then listeners speak TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    drain_timeout: Seconds = Field(30.0, description="How long answers under way may take to finish after SIGTERM.")
    client_stall_timeout: Seconds = Field(
        300.0, description="A client that takes no byte of an answer for so long is dropped."
    )
    wait_for_upstream: Seconds = Field(
        30.0, description="How long downloads wait for an upstream that goes away in mid-download; 0: not at all."
    )
    idle_timeout: Seconds = Field(75.0, description="A connection without a request is closed after this time.")
    request_head_timeout: Seconds = Field(
        20.0,
        gt=0,
        description="So long the head of a request may take, from its first byte to its last, and a TLS handshake.",
    )
    connections_per_client: int = Field(
        0, ge=0, description="Open connections of one client address at most, per worker; 0: as many as it likes."
    )
    connections_exempt: Annotated[
        list[Annotated[str, AfterValidator(values.network)]], BeforeValidator(values.split)
    ] = Field(["127.0.0.0/8", "::1"], description="Addresses and networks that this does not bind: proxies, ingresses.")
    blocked_timeout: Annotated[Seconds, AfterValidator(values.blocked_timeout)] = Field(
        30.0, description="A worker whose event loop stands still for so long is replaced; 0: it never is."
    )
    access_log: bool = Field(True, description="One log line per request.")
    max_concurrent_prefetches: int = Field(
        4, ge=1, le=100, description="Blobs fetched before they are asked for, at most, per worker (see `prefetch`)."
    )

    @model_validator(mode="after")
    def _pair(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self


class StoreSettings(_Section):
    """`[store]`"""

    root: Path = Field(default_factory=values.default_root, description="Folder of the cache; one local filesystem.")
    capacity: Annotated[str, AfterValidator(values.capacity)] = Field(
        "80%", description="What blobs may take: bytes (500GB, 2TiB) or a part of the disk (80%)."
    )
    high_water: float = Field(0.95, gt=0, le=1, description="Eviction begins above this part of the capacity.")
    low_water: float = Field(0.85, gt=0, le=1, description="Eviction ends below this part of the capacity.")
    partials_max_age: Seconds = Field(
        86400.0, description="An interrupted download that nobody resumes is dropped after this."
    )
    quarantine_max_size: Annotated[str, AfterValidator(values.size)] = Field(
        "1GB", description="Damaged blobs kept for whoever looks into it, at most a tenth of the store; 0: none is."
    )
    tag_lists_max_size: Annotated[str, AfterValidator(values.size)] = Field(
        "256MB", description="What tag lists that are sorted here may take on disk; it is not part of the capacity."
    )
    quarantine_max_age: Seconds = Field(7 * 86400.0, description="So long they are kept; 0: none is.")

    @model_validator(mode="after")
    def _order(self) -> StoreSettings:
        if self.low_water > self.high_water:
            raise ValueError(f"low_water ({self.low_water:g}) is above high_water ({self.high_water:g})")
        return self


class IndexSettings(_Section):
    """`[index]`"""

    url: SecretStr = Field(
        SecretStr(""), description="redis://, rediss:// or unix:// URL; empty: embedded, beside the blobs."
    )
    url_file: Path | None = Field(None, description="File that holds the URL.")
    timeout: Seconds = Field(0.1, gt=0, description="So long Redis may take to answer before it is done without.")


class ScrubSettings(_Section):
    """`[scrub]`"""

    every: Seconds = Field(
        2592000.0, description="So often every blob is read again and its digest is checked; 0: never."
    )
    rate: Annotated[str, AfterValidator(values.rate)] = Field("20MB", description="Bytes per second that it may read.")


class LogSettings(_Section):
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is written."
    )


class TraceSettings(_Section):
    """`[trace]`"""

    endpoint: Annotated[str, AfterValidator(values.collector)] = Field(
        "", description="URL of a collector that takes OTLP over HTTP; empty: nothing is traced."
    )
    sample_ratio: float = Field(
        0.01, ge=0, le=1, description="Part of the requests without a traceparent that are traced."
    )


class ReachSettings(_Section):
    """How one address is reached, and as whom: the upstream's own, or that of one of its mirrors."""

    username: str | None = Field(None, description="User name at the registry.")
    password: SecretStr | None = Field(None, description="Password or access token.")
    password_file: Path | None = Field(None, description="File that holds the password; read again when it changes.")
    docker_config: Path | None = Field(
        None, description="Docker config.json with the credentials; read again when it changes."
    )
    provider: Literal["google", "ecr", "ecr-public", "acr"] | None = Field(
        None, description="The cloud that issues credentials for this registry, instead of a password."
    )
    key_file: Path | None = Field(
        None, description="google: key of a service account; without it, application default credentials."
    )
    region: str | None = Field(None, description="ecr: the region, where the name does not tell it.")
    role_arn: str | None = Field(None, description="ecr, ecr-public: a role to take on first.")
    tenant_id: str | None = Field(None, description="acr: the tenant of a service principal or workload identity.")
    client_id: str | None = Field(None, description="acr: the service principal, or the one of several identities.")
    client_secret: SecretStr | None = Field(None, description="acr: the secret of a service principal.")
    client_secret_file: Path | None = Field(None, description="File that holds the client secret.")
    token_file: Path | None = Field(None, description="acr: file with the token of a workload identity.")
    provider_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="ecr, ecr-public: another address of its API; acr: another authority."
    )
    sts_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="ecr, ecr-public: another address of STS, for role_arn."
    )
    metadata_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="Another address of the cloud's metadata server."
    )
    token_hosts: list[Annotated[str, AfterValidator(values.token_host)]] = Field(
        [], description="Hosts of other domains that may be sent these credentials for a token."
    )
    private_network: bool = Field(
        False,
        description="Its name may lead to private addresses. Not needed if url holds such an address, or localhost.",
    )
    ca_file: Path | None = Field(
        None, description="PEM file with the certificate authorities to trust instead of the system's."
    )
    verify_tls: bool = Field(True, description="Check the registry's certificate.")
    client_certificate: Path | None = Field(None, description="PEM file of a certificate shown to the registry.")
    client_key: Path | None = Field(None, description="PEM file with its private key.")
    proxy: SecretStr | None = Field(
        None, description="http://host:port of a proxy; env: as HTTPS_PROXY and NO_PROXY say."
    )
    proxy_file: Path | None = Field(None, description="File that holds the proxy's URL, with user and password.")

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file exclude each other")
        if (self.username is None) != (self.password is None and self.password_file is None):
            raise ValueError("username and password (or password_file) belong together")
        ways = {"username": self.username, "docker_config": self.docker_config, "provider": self.provider}
        given = [name for name, way in ways.items() if way is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
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
                raise ValueError(f"{option} is for provider {' or '.join(providers)}")
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("client_secret and client_secret_file exclude each other")
        if (self.client_secret or self.client_secret_file) and not (self.tenant_id and self.client_id):
            raise ValueError("a client secret needs tenant_id and client_id")
        if (self.client_secret or self.client_secret_file) and self.token_file:
            raise ValueError("a client secret and token_file exclude each other")
        return self


class EndpointSettings(ReachSettings):
    """`[[upstream.endpoints]]`: a mirror of the upstream; the URL alone may stand for it."""

    url: Annotated[str, AfterValidator(values.url)] = Field(description="Where it is.")


def _endpoint(given: Any) -> Any:
    return {"url": given} if isinstance(given, str) else given


class UpstreamSettings(ReachSettings):
    """`[[upstream]]`: a registry that may be pulled from."""

    name: Annotated[str, AfterValidator(values.registry)] = Field(
        description="The registry as clients say it (ghcr.io), or *.suffix for all hosts below a domain."
    )
    url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="Where it is; https://<name> if not set."
    )
    aliases: list[Annotated[str, AfterValidator(values.alias)]] = Field(
        [], description="Other names for the same registry."
    )
    host_headers: list[Annotated[str, AfterValidator(values.host)]] = Field(
        [], description="Requests with these Host headers mean this registry."
    )
    endpoints: list[Annotated[EndpointSettings, BeforeValidator(_endpoint)]] = Field(
        [], description="Mirrors of it, tried in this order before the registry itself."
    )
    access: Literal["shared", "verify"] = Field(
        "shared",
        description="shared: our credentials, our rules. verify: each caller's own credentials must open it, too.",
    )
    hedge_after: Seconds | None = Field(
        None, gt=0, description="An endpoint that has not answered by then is raced by the next; not set: never."
    )
    max_concurrent_downloads: int = Field(32, ge=1, le=1000, description="Downloads under way at most, per worker.")
    connect_timeout: Seconds = Field(5.0, description="For a connection, with TLS.")
    read_timeout: Seconds = Field(30.0, description="Without a byte for so long a download is resumed anew.")

    @model_validator(mode="after")
    def _wildcard(self) -> UpstreamSettings:
        if self.name.startswith("*."):
            given = [setting for setting in ("url", "aliases", "host_headers", "endpoints") if getattr(self, setting)]
            if given:
                raise ValueError(f"{', '.join(given)}: not possible for a wildcard, each host is its own")
        if self.provider == "ecr" and not self.name.startswith("*.") and not (self.region or ecr_region(self.name)):
            raise ValueError("region must be set: the name of the registry does not tell it")
        return self

    @model_validator(mode="after")
    def _verified(self) -> UpstreamSettings:
        if self.access == "verify" and self.endpoints:
            raise ValueError("endpoints: not possible with access = verify, they would be asked with our credentials")
        return self

    @property
    def addresses(self) -> list[tuple[str, ReachSettings]]:
        """Each setting that says how an address is reached, under its name in this table; this one's own first."""
        return [("", self), *((f".endpoints[{number}]", one) for number, one in enumerate(self.endpoints, 1))]


#: Which provider may be told what.
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


class TokenSettings(_Section):
    """`[[access.token]]`: a token that lets its bearer in."""

    name: str = Field(min_length=1, max_length=200, description="How it is called in rules and logs.")
    token: SecretStr | None = Field(None, description="The token itself.")
    token_file: Path | None = Field(None, description="File that holds the token.")
    groups: list[str] = Field([], description="Groups that it belongs to, for rules.")

    @model_validator(mode="after")
    def _one(self) -> TokenSettings:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("needs one of token and token_file")
        return self


class IssuerSettings(_Section):
    """`[[access.issuer]]`: an OpenID Connect issuer, whose JSON web tokens let their bearer in."""

    issuer: Annotated[str, AfterValidator(values.url)] = Field(description="The `iss` of its tokens.")
    audience: str = Field(min_length=1, description="The `aud` that tokens for this mirror have.")
    keys_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="Where its keys are (JWKS); found by its discovery document if not set."
    )
    keys_file: Path | None = Field(None, description="File with its keys instead.")
    issuer_ca_file: Path | None = Field(None, description="PEM file of the authorities to trust at the issuer.")
    bearer_file: Path | None = Field(None, description="File with a token that is sent when keys are fetched.")
    name_claim: str = Field("sub", description="Claim that holds the name.")
    groups_claim: str = Field("groups", description="Claim that holds the groups.")
    prefix: str = Field("", description="Put before names and groups, to keep issuers apart.")


class RuleSettings(_Section):
    """`[[access.rule]]`: who may do what; a rule that denies goes before all that allow."""

    effect: Literal["allow", "deny"] = Field(description="What it does.")
    callers: list[Annotated[str, AfterValidator(check_caller)]] = Field(
        min_length=1, description="*, anonymous, authenticated, user:…, token:…, subject:…, certificate:…, group:…"
    )
    actions: list[Literal["pull", "push", "admin"]] = Field(["pull"], min_length=1, description="What it is about.")
    repositories: list[str] = Field([], description="Patterns as routes have them; none means all.")


class AccessSettings(_Section):
    """`[access]`: who may come in."""

    anonymous: bool = Field(True, description="Whether those who do not log in are let in.")
    htpasswd: Path | None = Field(None, description="Accounts: an htpasswd file with bcrypt hashes.")
    groups: dict[str, list[str]] = Field({}, description='Groups of accounts, for rules: ops = ["alice"].')
    client_ca: Path | None = Field(
        None, description="PEM file; client certificates of these authorities let their holders in."
    )
    realm: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the token endpoint as clients reach it; found by the Host header if not set."
    )
    token_lifetime: Seconds = Field(300.0, ge=60, description="How long a token of ours is good.")
    token_key_file: Path | None = Field(
        None, description="File with the key of our tokens, for replicas to share; made beside the store if not set."
    )
    verified_for: Seconds = Field(
        300.0, gt=0, description='So long upstream\'s word about a caller counts, where access = "verify".'
    )
    verified_while_down: Seconds = Field(3600.0, description="The same while upstream is down.")
    audit_log: Path | None = Field(None, description="File that gets a JSON line for each access and each refusal.")
    token: list[TokenSettings] = []
    issuer: list[IssuerSettings] = []
    rule: list[RuleSettings] = []

    @property
    def is_shut(self) -> bool:
        """Whether there is no way to say who one is."""
        return self.htpasswd is None and self.client_ca is None and not self.token and not self.issuer

    @property
    def has_admins(self) -> bool:
        """Whether rules let somebody administer who can say who they are."""
        return any(
            rule.effect == "allow"
            and "admin" in rule.actions
            and not rule.repositories
            and any(one != "anonymous" for one in rule.callers)
            for rule in self.rule
        )

    @property
    def is_open(self) -> bool:
        """Whether anybody may pull anything, and nobody has to be asked who they are."""
        return self.is_shut and self.anonymous and not self.rule


class RouteSettings(_Section):
    """`[[route]]`: how repositories are treated; the first whose pattern fits counts."""

    match: Annotated[str, AfterValidator(values.route_pattern)] = Field(
        description="registry/name; * within one part, ** for any parts: docker.io/library/*, ghcr.io/**"
    )
    tag_ttl: Seconds = Field(300.0, description="So long a tag's answer is believed without asking upstream.")
    stale_while_down: Seconds = Field(604800.0, description="So old a tag's answer may be while upstream is down.")
    prefetch: bool = Field(
        False, description="Fetch the blobs of an image once its manifest had to be fetched, before clients ask."
    )
    offline: bool = Field(False, description="Sealed: upstream is never contacted, what is here is served.")
    minimum_age: Seconds = Field(
        0.0, description="Serve the newest digest of a tag that was first seen at least so long ago; 0: the newest."
    )
    minimum_age_new_tags: Literal["refuse", "serve"] = Field(
        "refuse", description="What is done about a tag that was never seen before, until it is old enough."
    )
    require_digest: bool = Field(False, description="Refuse pulls by tag.")
    max_size: Annotated[str, AfterValidator(values.size)] | None = Field(
        None, description="Refuse images whose config and layers have more bytes (20GB)."
    )
    signed_by: list[Path] = Field(
        [], description="PEM files; refuse images without a cosign signature by one of these public keys."
    )


class ContentSettings(_Section):
    """`[content]`: what may be pulled through here at all."""

    deny: list[Annotated[str, AfterValidator(values.image_pattern)]] = Field(
        [], description="registry/name, registry/name:tag (with * and **) or registry/name@digest; goes before allow."
    )
    allow: list[Annotated[str, AfterValidator(values.image_pattern)]] = Field(
        [], description="The same; if there are any, nothing else may be pulled."
    )


class PinSettings(_Section):
    """`[[pin]]`: images that are never evicted."""

    match: Annotated[str, AfterValidator(values.pin_pattern)] = Field(
        description="registry/name:tag, each with * and ? (** in names): docker.io/library/*:3.1*"
    )
    reason: str = Field("", description="Why, for whoever asks `mirror pins`.")


class AdminSettings(_Section):
    """`[admin]`"""

    listen: Annotated[str, AfterValidator(values.admin_listen)] | None = Field(
        None,
        description="Where admin API and web page listen: unix:/path; host:port, then besides admin.sock in the "
        "store's root; not set: that alone; empty: nowhere.",
    )


class SyncSettings(_Section):
    """`[[sync]]`: tags of a repository that are brought in by themselves, again and again."""

    name: str = Field("", description="What the rule is called in commands, logs and metrics; its `from` if not set.")
    from_: str = Field(alias="from", description="The repository: docker.io/library/python.")
    tags: str | None = Field(None, description="Which tags, as a glob: 3.1*; all of them if nothing is said.")
    tags_regex: str | None = Field(None, description="Which tags, as a regular expression that fits the whole tag.")
    tags_semver: str | None = Field(None, description="Which tags, as a version range in npm's notation: >=1.2 <2.")
    prereleases: bool = Field(False, description="Whether a version range means prereleases too.")
    newest: int | None = Field(None, ge=1, description="Of the tags that fit only so many, the newest.")
    platforms: list[str] = Field([], description="linux/amd64 and the like; empty: all platforms.")
    referrers: bool = Field(False, description="Signatures, SBOMs and other referrers too.")
    every: Seconds | None = Field(None, ge=60, description="How often, from start to start; at least a minute.")
    cron: str | None = Field(None, description="When, as a cron expression: 0 3 * * *.")
    timezone: str = Field("UTC", description="In which time zone the cron expression is meant.")
    every_replica: bool = Field(
        False, description="Every replica with a disk of its own runs it; otherwise one for all that share a Redis."
    )

    @property
    def title(self) -> str:
        """Its name, whether given or not."""
        return self.name or self.from_

    @property
    def tag_set(self) -> TagSet:
        """Raises `ValueError`."""
        return TagSet(self.tags, self.tags_regex, self.tags_semver, self.prereleases, self.newest)

    @property
    def plan(self) -> Plan:
        """Raises `ValueError`."""
        if (self.every is None) == (self.cron is None):
            raise ValueError("needs one of every and cron")
        if self.every is not None:
            if self.timezone != "UTC":
                raise ValueError("timezone belongs to cron")
            return Every(self.every)
        return Cron(self.cron or "", self.timezone)

    @model_validator(mode="after")
    def _parts(self) -> SyncSettings:
        mistakes = []
        if self.name and not _RULE_NAME.fullmatch(self.name):
            mistakes.append("name has 1 to 100 letters, digits and any of . _ - / :")
        for part in (lambda: self.tag_set, lambda: self.plan, lambda: [parse_platform(one) for one in self.platforms]):
            try:
                part()
            except ValueError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def repository(self, table: RoutingTable) -> Repo:
        """The repository that `from` means. Raises `RequestError`."""
        last = self.from_.rpartition("/")[2]
        if "@" in last or ":" in last:
            raise RequestError(f"names a repository, without tag or digest: {self.from_!r}")
        return parse_image(self.from_, table).repo


_RULE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,99}")

#: What is served without any `[[upstream]]`. Only these names are ever contacted then.
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
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="MIRROR__", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    default_registry: Annotated[str, AfterValidator(lambda name: values.registry(name) if name else name)] = Field(
        "docker.io", description="What a request without Host, ns or prefix means; empty: such requests are refused."
    )
    offline: bool = Field(
        False, description="The whole mirror is sealed: no upstream is ever contacted, what is here is served."
    )
    server: ServerSettings = ServerSettings.model_validate({})
    store: StoreSettings = Field(default_factory=lambda: StoreSettings.model_validate({}))
    index: IndexSettings = IndexSettings.model_validate({})
    scrub: ScrubSettings = ScrubSettings.model_validate({})
    log: LogSettings = LogSettings.model_validate({})
    trace: TraceSettings = TraceSettings.model_validate({})
    access: AccessSettings = AccessSettings.model_validate({})
    content: ContentSettings = ContentSettings.model_validate({})
    upstream: list[UpstreamSettings] = Field(
        default_factory=lambda: [UpstreamSettings.model_validate(entry) for entry in PUBLIC]
    )
    route: list[RouteSettings] = []
    pin: list[PinSettings] = []
    admin: AdminSettings = AdminSettings.model_validate({})
    sync: list[SyncSettings] = []

    @property
    def admin_address(self) -> str:
        """Where the command line asks; empty: nowhere."""
        listen = self.admin.listen
        own_socket = f"unix:{self.store.root.absolute()}/admin.sock"
        return listen if listen is not None and (not listen or listen.startswith("unix:")) else own_socket

    @property
    def admin_tcp(self) -> str | None:
        """Where browsers do; None: they cannot."""
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
        """Arguments alone: `load` lays the environment over the file, so that a mistake in either can be left out."""
        return (init_settings,)
