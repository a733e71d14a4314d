"""Credential providers of the clouds. Each is imported only if it is configured: its library may not be installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from mirror.errors import ConfigError
from mirror.policy.upstream.ecr_names import ecr_region
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.renewal import Renewed
from mirror.upstream.http.transport import Endpoint

ProviderName: TypeAlias = Literal["google", "ecr", "ecr-public", "acr"]

#: For each provider, the library that it needs and the extra that installs it; None if it needs no library.
PROVIDERS: Final[dict[str, tuple[str, str] | None]] = {
    "google": ("google.auth", "gcp"),
    "ecr": ("botocore", "aws"),
    "ecr-public": ("botocore", "aws"),
    "acr": None,
}


def missing_library(provider: str) -> str | None:
    """Says what to install before this provider can be used; None if nothing is missing."""
    needed = PROVIDERS[provider]
    if needed is None:
        return None
    try:
        spec = importlib.util.find_spec(needed[0])
    except ModuleNotFoundError:
        spec = None
    return None if spec else f"needs the library {needed[0]}: pip install 'registry-mirror[{needed[1]}]'"


def open_provider(
    endpoint: Endpoint,
    provider: ProviderName,
    options: ProviderOptions,
    *,
    proxy: str | None = None,
    now: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Renewed:
    """A source of credentials for the registry at `endpoint`.

    `proxy` is the URL of the one proxy through which the cloud's library sends everything. It is None if there is none,
    and also if the environment sets the proxies: libraries read those variables themselves.

    Raises `ConfigError` if the library is missing or the region of an ECR registry is not known.
    """
    upstream = endpoint.name
    if missing := missing_library(provider):
        raise ConfigError([f"upstream {upstream}: provider {provider} {missing}"])
    issuer: GoogleIssuer | AcrIssuer | EcrIssuer
    if provider == "google":
        from mirror.upstream.credentials.google import GoogleIssuer

        issuer = GoogleIssuer(upstream, options, proxy=proxy, now=now)
    elif provider == "acr":
        from mirror.upstream.credentials.acr import AcrIssuer

        issuer = AcrIssuer(endpoint, options, now=now)
    else:
        from mirror.upstream.credentials.ecr import EcrIssuer

        region = None
        if provider == "ecr":
            region = options.region or ecr_region(endpoint.bounds.base.host) or ecr_region(upstream)
            if region is None:
                raise ConfigError([f"upstream {upstream}: set region: the name of the registry does not contain it"])
        issuer = EcrIssuer(upstream, region, options, proxy=proxy, now=now)
    return Renewed(upstream, provider, issuer.obtain, clock=clock, now=now)
