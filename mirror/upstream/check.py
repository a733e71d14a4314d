"""Checks whether the registries answer and accept our credentials, for `mirror check --online`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirror.errors import (
    MirrorError,
    UpstreamDenied,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamOffLimits,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.policy.upstream.budget import Budget
from mirror.upstream.credentials.source import CredentialsUnavailable
from mirror.upstream.registry import RegistryUpstream

#: The image that Docker's documentation names for this ("Docker Hub pull usage and limits"). HEAD does not count as a
#: pull.
_COUNTED: Final = "ratelimitpreview/test", "latest"


@dataclass(frozen=True, slots=True)
class RegistryCheck:
    """The result for one address of a registry: `detail` describes it, `advice` says what to do if `ok` is False."""

    upstream: str
    url: str
    ok: bool
    detail: str
    advice: str = ""


async def check_all(registries: Iterable[RegistryUpstream]) -> list[RegistryCheck]:
    """Check all registries at the same time; the results are in the order given."""
    return list(await asyncio.gather(*map(_check, registries)))


async def _check(registry: RegistryUpstream) -> RegistryCheck:
    try:
        return RegistryCheck(registry.name, registry.url, True, await registry.check())
    except MirrorError as error:
        return RegistryCheck(registry.name, registry.url, False, str(error), advice_for(error))


async def ask_budget(hub: RegistryUpstream) -> Budget | None:
    """How many pulls Docker Hub still allows us; None if it states no limit. Asking costs no pull."""
    with suppress(MirrorError):  # a spent budget is raised as an error, but recorded all the same
        await hub.resolve(*_COUNTED)
    return hub.budget


def advice_for(error: MirrorError) -> str:
    """What the operator should check first after this error."""
    if isinstance(error, CredentialsUnavailable):
        return "the issuer of the credentials failed, not the registry: follow the message"
    if isinstance(error, UpstreamDenied):
        return "check the credentials: are they right, not expired, and allowed to pull?"
    if isinstance(error, UpstreamThrottled):
        return f"wait {error.retry_after:.0f} s; other credentials may allow more requests"
    if isinstance(error, UpstreamNotFound):
        return "is url the root of a registry, without a path of its own?"
    if isinstance(error, UpstreamUnavailable) and (error.status or 0) >= 500:
        return "the registry, or a proxy before it, fails: try again later, and look at its status page"
    if isinstance(error, UpstreamUnavailable):
        return "check url, network, proxy and, with a private certificate authority, ca_file"
    if isinstance(error, UpstreamOffLimits):
        return "its name leads to a private address; if that is right, add private_network = true to its [[upstream]]"
    if isinstance(error, UpstreamInvalid):
        return "is url that of a registry? If its token server has another domain, add that to token_hosts"
    return "correct the configuration"
