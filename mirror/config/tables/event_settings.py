"""The settings of reports of changes, and of the endpoints that they are sent to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, model_validator

from mirror.config import values
from mirror.config.section import Section
from mirror.config.values import Seconds, Size
from mirror.policy.events.changes import MOUNTED, PULLED, TYPES


class EventEndpointSettings(Section):
    """`[[events.endpoint]]`: an HTTP endpoint that is sent events."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        description="The endpoint's name in commands, logs and metrics: small letters, digits and hyphens."
    )
    url: SecretStr | None = Field(None, description="Where events are sent to, by POST; http or https.")
    url_file: Path | None = Field(None, description="File that contains the URL, if it has a secret in it.")
    secret_file: Path | None = Field(
        None, description="File with the secrets that sign what is sent, one a line; a second one while you change it."
    )
    events: list[Annotated[str, AfterValidator(values.event_pattern)]] = Field(
        [kind for kind in TYPES if kind not in (MOUNTED, PULLED)],
        min_length=1,
        description="The types of events to send, with * for any part; all but mounted and pulled if not set.",
    )
    repositories: list[Annotated[str, AfterValidator(values.route_pattern)]] = Field(
        ["**"], min_length=1, description="Patterns as in routes; events about other repositories are not sent."
    )
    timeout: Seconds = Field(10.0, gt=0, le=300, description="Time limit for one attempt.")
    ca_file: Path | None = Field(None, description="PEM file of the authorities to trust, instead of the system's.")
    proxy: SecretStr | None = Field(None, description="Proxy for the endpoint: http://host:port, or env.")

    @model_validator(mode="after")
    def _one_url(self) -> EventEndpointSettings:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("needs either url or url_file")
        if self.url is not None:
            values.event_url(self.url.get_secret_value())
        if self.proxy is not None:
            values.proxy(self.proxy.get_secret_value())
        return self


class EventsSettings(Section):
    """`[events]`: reports of changes, sent to HTTP endpoints."""

    source: str = Field(
        "mirror", min_length=1, max_length=200, description="The `source` of events, to tell several mirrors apart."
    )
    keep: Seconds = Field(
        7 * 86400.0, ge=60, description="How long delivery of an event is tried; older ones become dead letters."
    )
    max_events: int = Field(
        100_000, ge=100, description="How many events may wait; beyond it, the oldest are given up and counted."
    )
    max_size: Size = Field("256MB", description="How many bytes they may take in the store.")
    sample_pulls: int = Field(100, ge=1, description="Of so many pulls of manifests, one is reported, if asked for.")
    endpoint: list[EventEndpointSettings] = Field([])
