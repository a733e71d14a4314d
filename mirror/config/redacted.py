"""Every setting as it counts, without secrets: for whoever looks at a running mirror."""

from __future__ import annotations

from typing import Any

from mirror import telemetry
from mirror.config.settings import Config

__all__ = ["masked"]


def masked(config: Config) -> dict[str, Any]:
    """As JSON has it; secrets are asterisks, URLs have neither users nor queries."""
    told = _redacted(config.model_dump(mode="json", by_alias=True))
    assert isinstance(told, dict)  # noqa: S101  # for the type checker
    return told


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_redacted(one) for one in value]
    return telemetry.redact(value) if isinstance(value, str) else value
