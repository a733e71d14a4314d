"""Opens what sends clients to the bucket."""

from __future__ import annotations

from contextlib import AsyncExitStack

from mirror.app.bucket import open_bucket
from mirror.app.storage import Storage
from mirror.config import Config
from mirror.policy.clients.networks import Networks
from mirror.policy.clients.redirecting import RedirectRule
from mirror.ports import ObjectSigner
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.redirects import Redirects
from mirror.values.sizes import parse_size


def open_redirects(
    config: Config, storage: Storage, addresses: ClientAddresses, stack: AsyncExitStack
) -> Redirects | None:
    """The redirects; None if no client is sent to the bucket. `stack` closes what is opened for them."""
    settings = config.bucket
    if storage.bucket is None or not settings.redirect_to:
        return None
    bucket = storage.bucket.bucket
    rule = RedirectRule(Networks(settings.redirect_to), parse_size(settings.redirect_from), settings.redirect_for)
    return Redirects(
        rule, addresses, bucket, _by_other_name(config, stack) or bucket, threads=storage.bucket.threads.requests
    )


def _by_other_name(config: Config, stack: AsyncExitStack) -> ObjectSigner | None:
    """What signs URLs, if clients reach the bucket by another name than the mirror: the signature covers the name. It
    is never connected.
    """
    settings = config.bucket
    if settings.redirect_endpoint is None:
        return None
    for_clients = settings.model_copy(update={"endpoint": settings.redirect_endpoint, "allow_http": True})
    signer = open_bucket(config.model_copy(update={"bucket": for_clients}))
    if signer is not None:
        stack.callback(signer.close)
    return signer
