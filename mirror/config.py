"""Every setting, with its default and what it means. Reading this file is knowing them all.

A setting comes from the TOML file given with `--config`; an environment variable goes before it:
`MIRROR__STORE__CAPACITY=500GB` is `capacity` under `[store]`. Whatever is not set has its default, and with neither
file nor environment the mirror serves the public registries. A secret can be read from a file: `password_file`,
`url_file`.

Only `app.py` and `cli/` know this module: everything below takes ordinary arguments.
"""

from __future__ import annotations

import copy
import ipaddress
import os
import re
import ssl
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from mirror.access.htpasswd import check_htpasswd
from mirror.access.issued import check_keys
from mirror.errors import ConfigError, RequestError
from mirror.index.redis import parse_redis_url
from mirror.oci.reference import Repo, check_registry
from mirror.policy.access import check_who
from mirror.policy.clouds import ecr_region
from mirror.policy.content import ImagePattern
from mirror.policy.durations import parse_duration
from mirror.policy.images import parse_image
from mirror.policy.pins import PinRule
from mirror.policy.platforms import parse_platform
from mirror.policy.realms import UrlRefused, parse_url
from mirror.policy.routing import Registry, RoutingTable
from mirror.policy.schedule import Cron, Every, Plan
from mirror.policy.sizes import parse_capacity, parse_size
from mirror.policy.tagsets import TagSet
from mirror.repository.cosign import read_key
from mirror.upstream.docker_config import DockerConfig
from mirror.upstream.providers import missing_library
from mirror.upstream.proxies import Proxies

__all__ = [
    "PUBLIC",
    "Config",
    "PinSettings",
    "ReachSettings",
    "RouteSettings",
    "ScrubSettings",
    "SyncSettings",
    "UpstreamSettings",
    "load",
    "routing_table",
]

Seconds = Annotated[float, BeforeValidator(parse_duration)]


def _default_root() -> Path:
    """`/var/lib/mirror` where this process may write there, else the user's own data folder."""
    system = Path("/var/lib/mirror")
    if os.access(system if system.exists() else system.parent, os.W_OK):
        return system
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mirror"


def _listen(text: str) -> str:
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").startswith("/"):
            raise ValueError(f"a unix listener has an absolute path: {text!r}")
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"not host:port or unix:/path: {text!r}")
    return text


def _split(given: object) -> object:
    """A list of the environment, where `a,b` is easier to write than JSON."""
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else given


def _admin_listen(text: str) -> str:
    """There is no authentication yet: who can connect may do everything."""
    if not text or _listen(text).startswith("unix:"):
        return text
    host = text.rpartition(":")[0].strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"only a loopback address or unix:/path, for the admin API knows no passwords: {text!r}")
    return text


def _capacity(text: str) -> str:
    parse_capacity(text)
    return text


def _size(text: str) -> str:
    parse_size(text)
    return text


def _image_pattern(text: str) -> str:
    ImagePattern(text)
    return text


def _registry(name: str) -> str:
    return ("*." if name.startswith("*.") else "") + _alias(name.removeprefix("*."))


def _alias(name: str) -> str:
    try:
        return check_registry(name)
    except RequestError as error:
        raise ValueError(str(error)) from error


def _host(name: str) -> str:
    """What stands in a `Host` header, where case does not matter and an address may be in brackets."""
    try:
        check_registry(re.sub(r"\A\[[0-9a-f:.]+\]", "address", name.lower()))
    except RequestError as error:
        raise ValueError(f"not a host name, with or without port: {name[:80]!r}") from error
    return name


def _token_host(name: str) -> str:
    """As `policy.realms` compares them: a host, host:port or an origin."""
    _host(re.sub(r"\Ahttps?://", "", name.lower()).rstrip("/"))
    return name


def _pattern(text: str) -> str:
    if "/" not in text and "**" not in text:
        raise ValueError(f"{text!r} fits nothing: a pattern is registry/name, where ** is any parts, * within one part")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    if parts.username or parts.password:
        raise ValueError("holds a user or password; use username and password_file")
    if parts.query or parts.fragment:
        raise ValueError("holds a query or fragment")
    try:
        parse_url(text)
    except UrlRefused as error:
        raise ValueError(f"not an http or https URL: {error}") from error
    return text.rstrip("/")


def _proxy(text: str) -> str:
    try:
        Proxies.given(text)
    except (UrlRefused, ValueError) as error:
        raise ValueError("proxy is not http://host:port, and not env") from error
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(_Section):
    """`[server]`"""

    listen: Annotated[list[Annotated[str, AfterValidator(_listen)]], BeforeValidator(_split)] = Field(
        ["127.0.0.1:5000"],
        min_length=1,
        description="Where to listen: host:port, [::1]:port, or unix:/path. Port 0 takes a free one.",
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that serve; they share one store.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with certificate and chain; then listeners speak TLS."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    drain: Seconds = Field(30.0, description="How long answers under way may take to finish after SIGTERM.")
    client_stall: Seconds = Field(300.0, description="A client that takes no byte for so long is dropped.")
    idle: Seconds = Field(75.0, description="A connection without a request is closed after this time.")
    access_log: bool = Field(True, description="One log line per request.")
    prefetch_blobs_at_once: int = Field(
        4, ge=1, le=100, description="Blobs fetched before they are asked for, at most, per worker (see `prefetch`)."
    )

    @model_validator(mode="after")
    def _pair(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self


class StoreSettings(_Section):
    """`[store]`"""

    root: Path = Field(default_factory=_default_root, description="Folder of the cache; one local filesystem.")
    capacity: Annotated[str, AfterValidator(_capacity)] = Field(
        "80%", description="What blobs may take: bytes (500GB, 2TiB) or a part of the disk (80%)."
    )
    high_water: float = Field(0.95, gt=0, le=1, description="Eviction begins above this part of the capacity.")
    low_water: float = Field(0.85, gt=0, le=1, description="Eviction ends below this part of the capacity.")
    keep_partials: Seconds = Field(
        86400.0, description="An interrupted download that nobody resumes is dropped after this."
    )

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


def _rate(text: str) -> str:
    if not parse_size(text):
        raise ValueError("a rate of nothing: write for example 20MB")
    return text


class ScrubSettings(_Section):
    """`[scrub]`"""

    every: Seconds = Field(
        2592000.0, description="So often every blob is read again and its digest is checked; 0: never."
    )
    rate: Annotated[str, AfterValidator(_rate)] = Field("20MB", description="Bytes per second that it may read.")


class LogSettings(_Section):
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is written."
    )


class ReachSettings(_Section):
    """How one address is reached, and as whom: the upstream's own, or that of one of its mirrors."""

    username: str | None = Field(None, description="User name at the registry.")
    password: SecretStr | None = Field(None, description="Password or access token.")
    password_file: Path | None = Field(None, description="File that holds the password.")
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
    provider_url: Annotated[str, AfterValidator(_url)] | None = Field(
        None, description="ecr, ecr-public: another address of its API; acr: another authority."
    )
    sts_url: Annotated[str, AfterValidator(_url)] | None = Field(
        None, description="ecr, ecr-public: another address of STS, for role_arn."
    )
    metadata_url: Annotated[str, AfterValidator(_url)] | None = Field(
        None, description="Another address of the cloud's metadata server."
    )
    token_hosts: list[Annotated[str, AfterValidator(_token_host)]] = Field(
        [], description="Hosts of other domains that may be sent these credentials for a token."
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
            _proxy(self.proxy.get_secret_value())
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

    url: Annotated[str, AfterValidator(_url)] = Field(description="Where it is.")


def _endpoint(given: Any) -> Any:
    return {"url": given} if isinstance(given, str) else given


class UpstreamSettings(ReachSettings):
    """`[[upstream]]`: a registry that may be pulled from."""

    name: Annotated[str, AfterValidator(_registry)] = Field(
        description="The registry as clients say it (ghcr.io), or *.suffix for all hosts below a domain."
    )
    url: Annotated[str, AfterValidator(_url)] | None = Field(
        None, description="Where it is; https://<name> if not set."
    )
    aliases: list[Annotated[str, AfterValidator(_alias)]] = Field([], description="Other names for the same registry.")
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(
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
    blobs_at_once: int = Field(32, ge=1, le=1000, description="Downloads under way at most, per worker.")
    connect_timeout: Seconds = Field(5.0, description="For a connection, with TLS.")
    read_timeout: Seconds = Field(30.0, description="Without a byte for so long a download is resumed anew.")

    @model_validator(mode="after")
    def _wildcard(self) -> UpstreamSettings:
        if self.name.startswith("*."):
            given = [setting for setting in ("url", "aliases", "hosts", "endpoints") if getattr(self, setting)]
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

    issuer: Annotated[str, AfterValidator(_url)] = Field(description="The `iss` of its tokens.")
    audience: str = Field(min_length=1, description="The `aud` that tokens for this mirror have.")
    keys_url: Annotated[str, AfterValidator(_url)] | None = Field(
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
    who: list[Annotated[str, AfterValidator(check_who)]] = Field(
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
    realm: Annotated[str, AfterValidator(_url)] | None = Field(
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
    def is_open(self) -> bool:
        """Whether anybody may pull anything, and nobody has to be asked who they are."""
        return self.is_shut and self.anonymous and not self.rule


class RouteSettings(_Section):
    """`[[route]]`: how repositories are treated; the first whose pattern fits counts."""

    match: Annotated[str, AfterValidator(_pattern)] = Field(
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
    minimum_age_new: Literal["refuse", "serve"] = Field(
        "refuse", description="What is done about a tag that was never seen before, until it is old enough."
    )
    require_digest: bool = Field(False, description="Refuse pulls by tag.")
    max_size: Annotated[str, AfterValidator(_size)] | None = Field(
        None, description="Refuse images whose config and layers have more bytes (20GB)."
    )
    signed_by: list[Path] = Field(
        [], description="PEM files; refuse images without a cosign signature by one of these public keys."
    )


class ContentSettings(_Section):
    """`[content]`: what may be pulled through here at all."""

    deny: list[Annotated[str, AfterValidator(_image_pattern)]] = Field(
        [], description="registry/name, registry/name:tag (with * and **) or registry/name@digest; goes before allow."
    )
    allow: list[Annotated[str, AfterValidator(_image_pattern)]] = Field(
        [], description="The same; if there are any, nothing else may be pulled."
    )


def _pin_pattern(text: str) -> str:
    PinRule(text)
    return text


class PinSettings(_Section):
    """`[[pin]]`: images that are never evicted."""

    match: Annotated[str, AfterValidator(_pin_pattern)] = Field(
        description="registry/name:tag, each with * and ? (** in names): docker.io/library/*:3.1*"
    )
    reason: str = Field("", description="Why, for whoever asks `mirror pins`.")


class AdminSettings(_Section):
    """`[admin]`"""

    listen: Annotated[str, AfterValidator(_admin_listen)] | None = Field(
        None,
        description="Where the admin API listens: unix:/path, or host:port on loopback; not set: admin.sock in the "
        "store's root; empty: nowhere.",
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

    default_registry: Annotated[str, AfterValidator(lambda name: _registry(name) if name else name)] = Field(
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
        """Where the admin API listens; empty: nowhere."""
        return f"unix:{self.store.root.absolute()}/admin.sock" if self.admin.listen is None else self.admin.listen

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


def load(path: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """Read and check everything. Raises `ConfigError` with every mistake, none of which shows a secret.

    `overrides` are settings of the command line, by section; they go before everything.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror}"]) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: not TOML: {error}"]) from error
    config, mistakes = _validated(_with_environment(content))
    mistakes += _unknown_in_environment()
    for section, values in (overrides or {}).items():
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            config, more = _override(config, section, given)
            mistakes += more
    config, more = _with_secrets(config)
    mistakes += [*more, *_cross_check(config)]
    if mistakes:
        raise ConfigError(mistakes)
    return config


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """What is no JSON is taken as it is written: its own setting says whether it is right."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _with_environment(content: Mapping[str, Any]) -> dict[str, Any]:
    """The file's settings, over which those of the environment go."""
    merged = dict(content)
    for name, value in _Environment(Config)().items():
        below = merged.get(name)
        merged[name] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _unknown_in_environment() -> list[str]:
    """Variables whose first word is no section and no setting: pydantic never looks at those."""
    prefix = str(Config.model_config["env_prefix"])
    names = [name for name in os.environ if name.upper().startswith(prefix)]
    known = Config.model_fields
    return [f"{name}: no such setting" for name in sorted(names) if name.lower().split("__")[1] not in known]


def _validated(content: dict[str, Any]) -> tuple[Config, list[str]]:
    """What can be made of the settings, and every mistake in them.

    Wrong settings are left out and the rest is looked at again: what only shows once each setting is right by itself
    must not wait for the next try. What is said about a section for want of a setting that was left out is not told.
    """
    content = copy.deepcopy(content)
    mistakes: list[str] = []
    left_out: set[str] = set()
    while True:
        try:
            return Config.model_validate(content), mistakes
        except ValidationError as error:
            for one in error.errors(include_url=False, include_input=False):
                text = _mistake(one)
                of_our_making = one["type"] == "value_error" and any(
                    name in text.partition(": ")[2] for name in left_out
                )
                if not (of_our_making or (left_out and one["type"] == "missing")):
                    mistakes.append(text)
            # from behind, so that places in a list stay what they are
            for where in sorted({one["loc"] for one in error.errors()}, key=str, reverse=True):
                left_out |= _leave_out(content, where)


def _leave_out(content: dict[str, Any], where: tuple[int | str, ...]) -> set[str]:
    """Take one place out of the settings; returns the names of those that are gone."""
    match where:
        case ("upstream", int(number), *inner) if isinstance(content["upstream"], list):
            entry = content["upstream"][number]
            if inner and isinstance(entry, dict) and inner[0] in entry and inner[0] != "name":
                del entry[inner[0]]
                return {str(inner[0])}
            # it keeps its number, and as much of its name as there is
            name = entry.get("name") if isinstance(entry, dict) and (not inner or inner[0] != "name") else None
            content["upstream"][number] = {"name": name or f"left-out-{number}.invalid"}
            return {str(key) for key in entry} if isinstance(entry, dict) else set()
        case (str(section), str(setting), *_) if isinstance(content.get(section), dict):
            gone = content[section].pop(setting, None) is not None
            return {setting} if gone else set()
        case (str(section), *_):
            gone_section = content.pop(section, None)
            return {section, *(gone_section if isinstance(gone_section, dict) else ())}
    raise AssertionError(where)


def _override(config: Config, section: str, given: dict[str, Any]) -> tuple[Config, list[str]]:
    current: BaseModel = getattr(config, section)
    try:
        changed = type(current).model_validate({**current.model_dump(), **given})
    except ValidationError as error:
        return config, [_mistake(one, section) for one in error.errors(include_input=False)]
    return config.model_copy(update={section: changed}), []


def _mistake(error: Any, *before: str) -> str:
    """One line: which setting, and what is wrong with it."""
    where = ""
    for part in (*before, *error["loc"]):
        where += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = {"extra_forbidden": "no such setting", "missing": "must be set"}.get(error["type"], error["msg"])
    return f"{where or 'configuration'}: {message.removeprefix('Value error, ')}"


def _with_secrets(config: Config) -> tuple[Config, list[str]]:
    """Replace every `…_file` by what the file holds."""
    mistakes: list[str] = []
    index = config.index
    if index.url_file is not None:
        if index.url.get_secret_value():
            mistakes.append("index: url and url_file exclude each other")
        text = _read_secret("index.url_file", index.url_file, mistakes)
        index = index.model_copy(update={"url": SecretStr(text)})
    upstreams = []
    for number, upstream in enumerate(config.upstream, 1):
        where = f"upstream[{number}]"
        endpoints = [
            _with_reach_secrets(one, f"{where}.endpoints[{position}]", mistakes)
            for position, one in enumerate(upstream.endpoints, 1)
        ]
        read = _with_reach_secrets(upstream, where, mistakes)
        upstreams.append(read.model_copy(update={"endpoints": endpoints}))
    tokens = []
    for number, token in enumerate(config.access.token, 1):
        if token.token_file is not None:
            text = _read_secret(f"access.token[{number}].token_file", token.token_file, mistakes)
            token = token.model_copy(update={"token": SecretStr(text)})
        tokens.append(token)
    access = config.access.model_copy(update={"token": tokens})
    return config.model_copy(update={"index": index, "upstream": upstreams, "access": access}), mistakes


R = TypeVar("R", bound=ReachSettings)


def _with_reach_secrets(reach: R, where: str, mistakes: list[str]) -> R:
    for secret in ("password", "client_secret", "proxy"):
        file: Path | None = getattr(reach, f"{secret}_file")
        if file is not None:
            text = _read_secret(f"{where}.{secret}_file", file, mistakes)
            if secret == "proxy" and text:  # noqa: S105 - the name of a setting
                try:
                    _proxy(text)
                except ValueError:
                    mistakes.append(f"{where}.proxy_file: {file} holds no http://host:port")
                    continue
            reach = reach.model_copy(update={secret: SecretStr(text)})
    return reach


def _read_secret(setting: str, path: Path, mistakes: list[str]) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{setting}: {path}: {error.strerror if isinstance(error, OSError) else 'not text'}")
        return ""
    if not text:
        mistakes.append(f"{setting}: {path} is empty")
    return text


_FILES: Final = ("docker_config", "ca_file", "key_file", "token_file", "client_certificate", "client_key")


def _check_reach(reach: ReachSettings, name: str) -> list[str]:
    mistakes = []
    if reach.provider and (missing := missing_library(reach.provider)):
        mistakes.append(f"provider: {reach.provider} {missing}")
    for setting in _FILES:
        path: Path | None = getattr(reach, setting)
        if path is not None and not os.access(path, os.R_OK):
            mistakes.append(f"{setting}: {path} cannot be read")
    return mistakes or _check_contents(reach, name)


def _check_contents(reach: ReachSettings, name: str) -> list[str]:
    """What is wrong inside the files that are there."""
    mistakes = []
    if reach.ca_file is not None:
        try:
            ssl.create_default_context(cafile=reach.ca_file)
        except (OSError, ssl.SSLError):
            mistakes.append(f"ca_file: {reach.ca_file} holds no certificate")
    if reach.client_certificate is not None and reach.client_key is not None:
        pair = reach.client_certificate, reach.client_key
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*pair, password=lambda: "")
        except (OSError, ssl.SSLError):
            mistakes.append(f"client_certificate, client_key: {pair[0]} and {pair[1]} are no matching pair")
    if reach.docker_config is not None:
        try:
            DockerConfig(reach.docker_config, [name]).check()
        except ConfigError as error:
            mistakes += [f"docker_config: {mistake}" for mistake in error.mistakes]
    return mistakes


def _cross_check(config: Config) -> list[str]:
    """What no single setting can tell, and what only the files that are named can."""
    mistakes = [*_check_server(config.server), *_check_upstreams(config.upstream)]
    if config.store.root.exists() and not config.store.root.is_dir():
        mistakes.append(f"store.root: {config.store.root} is not a folder")
    names = {name for upstream in config.upstream for name in (upstream.name, *upstream.aliases)}
    mistakes += [*_check_access(config), *_check_routes(config.route)]
    verified = [entry.name for entry in config.upstream if entry.access == "verify"]
    if verified and config.offline:
        mistakes.append(f"offline: {', '.join(verified)} with access = verify must be asked about each caller")
    if config.default_registry and config.default_registry not in names:
        mistakes.append(f"default_registry: {config.default_registry} is not the name of an upstream")
    mistakes += _check_syncs(config)
    if url := config.index.url.get_secret_value():
        try:
            parse_redis_url(url)
        except ConfigError as error:
            mistakes += [f"index.url: {mistake}" for mistake in error.mistakes]
    return mistakes


def _check_access(config: Config) -> list[str]:
    access = config.access
    named = {"htpasswd": access.htpasswd, "client_ca": access.client_ca, "token_key_file": access.token_key_file}
    for number, issuer in enumerate(access.issuer, 1):
        named |= {
            f"issuer[{number}].{setting}": getattr(issuer, setting)
            for setting in ("keys_file", "issuer_ca_file", "bearer_file")
        }
    mistakes = [
        f"access.{setting}: {path} cannot be read"
        for setting, path in named.items()
        if path is not None and not os.access(path, os.R_OK)
    ]
    mistakes += _unusable_secrets(access)
    if access.client_ca is not None and config.server.tls_certificate is None:
        mistakes.append("access.client_ca: needs server.tls_certificate: certificates come with TLS")
    if not access.anonymous and access.is_shut:
        mistakes.append("access: nobody could come in: anonymous is false, and there is no way to log in")
    if access.groups and access.htpasswd is None:
        mistakes.append("access.groups: are of accounts; needs access.htpasswd")
    names = [token.name for token in access.token]
    mistakes += [
        f"access.token: {name!r} stands there twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return mistakes


def _unusable_secrets(access: AccessSettings) -> list[str]:
    """What is wrong inside the files that are there."""
    mistakes: list[str] = []
    for path, check in ((access.htpasswd, check_htpasswd), (access.token_key_file, check_keys)):
        if path is not None and os.access(path, os.R_OK):
            try:
                check(path)
            except ConfigError as error:
                mistakes += error.mistakes
    return mistakes


def _check_routes(routes: Iterable[RouteSettings]) -> list[str]:
    mistakes: list[str] = []
    for number, route in enumerate(routes, 1):
        for key in route.signed_by:
            try:
                read_key(key)
            except ConfigError as error:
                mistakes += [f"route[{number}].{mistake}" for mistake in error.mistakes]
    return mistakes


def _check_server(server: ServerSettings) -> list[str]:
    fixed = [one for one in server.listen if not one.endswith(":0")]
    mistakes = [f"server.listen: {one} is given more than once" for one in sorted(_repeated(fixed))]
    unreadable = [
        f"server.{setting}: {path} cannot be read"
        for setting in ("tls_certificate", "tls_key")
        if (path := getattr(server, setting)) is not None and not os.access(path, os.R_OK)
    ]
    if server.tls_certificate and server.tls_key and not unreadable:
        try:
            # a key with a passphrase must not make a server ask for it on a terminal
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                server.tls_certificate, server.tls_key, password=lambda: ""
            )
        except (OSError, ssl.SSLError):
            mistakes.append(
                f"server.tls_certificate, tls_key: {server.tls_certificate} and {server.tls_key} are no matching pair "
                "of PEM files, or the key has a passphrase"
            )
    return mistakes + unreadable


def _check_upstreams(upstreams: Iterable[UpstreamSettings]) -> list[str]:
    mistakes: list[str] = []
    names: dict[str, int] = {}
    hosts: dict[str, int] = {}
    for number, upstream in enumerate(upstreams, 1):
        where = f"upstream[{number}]"
        mistakes += [
            f"{where}: {name} is the name of upstream[{names[name]}] already"
            for name in (upstream.name, *upstream.aliases)
            if names.setdefault(name, number) != number
        ]
        mistakes += [
            f"{where}.hosts: {host} means upstream[{hosts[host.lower()]}] already"
            for host in upstream.hosts
            if hosts.setdefault(host.lower(), number) != number
        ]
        for inner, reach in upstream.addresses:
            mistakes += [f"{where}{inner}.{mistake}" for mistake in _check_reach(reach, upstream.name)]
    return mistakes


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _check_syncs(config: Config) -> list[str]:
    mistakes: list[str] = []
    table = routing_table(config)
    titles: dict[str, int] = {}
    for number, rule in enumerate(config.sync, 1):
        if titles.setdefault(rule.title, number) != number:
            mistakes.append(f"sync[{number}]: {rule.title} is the name of sync[{titles[rule.title]}] already; set name")
        try:
            rule.repository(table)
        except RequestError as error:
            mistakes.append(f"sync[{number}].from: {error}")
    return mistakes


def routing_table(config: Config) -> RoutingTable:
    """Which registry a name means."""
    return RoutingTable.build(
        (
            Registry(entry.name, tuple(entry.aliases), tuple(entry.hosts), library=entry.name == "docker.io")
            for entry in config.upstream
        ),
        config.default_registry or None,
    )
