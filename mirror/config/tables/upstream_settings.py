"""The settings of upstreams: how each of their addresses is reached, and with which credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from mirror.config import values
from mirror.config.section import Section
from mirror.config.values import Seconds
from mirror.policy.upstream.ecr_names import ecr_region


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
