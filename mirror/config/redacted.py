"""The settings in force, without secrets, to be shown to operators of a running mirror."""

from __future__ import annotations

from typing import Any

from mirror import telemetry
from mirror.config.settings import Config


def masked(config: Config) -> dict[str, Any]:
    """The settings as JSON values. Secrets are replaced by asterisks; user names and queries are removed from URLs."""
    told = _redacted(config.model_dump(mode="json", by_alias=True))
    assert isinstance(told, dict)  # noqa: S101  # for the type checker
    return told


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_redacted(one) for one in value]
    return telemetry.redact(value) if isinstance(value, str) else value
