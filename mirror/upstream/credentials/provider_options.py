"""The options of the clouds that issue credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """The options of all providers; each provider reads only its own (docs/upstreams.md).

    `provider_url`, `sts_url` and `metadata_url` replace the cloud's own addresses: of ECR's API or Azure's authority,
    of AWS's STS, and of the metadata server.
    """

    key_file: Path | None = None
    region: str | None = None
    role_arn: str | None = None
    tenant: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    token_file: Path | None = None
    provider_url: str | None = None
    sts_url: str | None = None
    metadata_url: str | None = None
