"""The settings in force, without secrets, to be shown to operators of a running mirror."""

from __future__ import annotations

from typing import Any

from mirror import telemetry
from mirror.config.settings import Config


def redacted_settings(config: Config) -> dict[str, Any]:
    """The settings as JSON values. Secrets are replaced by asterisks; user names and queries are removed from URLs."""
    settings: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    return {name: _redacted(value) for name, value in settings.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner) for inner in value]
    return telemetry.redact(value) if isinstance(value, str) else value
