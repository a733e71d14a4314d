"""Checks of the endpoints that are sent events."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from mirror.config.files import unreadable
from mirror.config.settings import Config
from mirror.config.tables.event_settings import EventEndpointSettings
from mirror.errors import reason_of


def check_events(endpoints: Sequence[EventEndpointSettings]) -> list[str]:
    """The mistakes in the settings of the endpoints, and in the files that they name."""
    listed = [endpoint.name for endpoint in endpoints]
    names = {name for name in listed if listed.count(name) > 1}
    mistakes = [f"events.endpoint: {name} is the name of two endpoints" for name in sorted(names)]
    for number, endpoint in enumerate(endpoints, 1):
        where = f"events.endpoint[{number}]"
        absent = unreadable({"secret_file": endpoint.secret_file, "ca_file": endpoint.ca_file})
        mistakes += [f"{where}.{mistake}" for mistake in absent]
        if absent:
            continue
        if endpoint.secret_file is not None:
            try:
                if not endpoint.secret_file.read_bytes().strip():
                    mistakes.append(f"{where}.secret_file: {endpoint.secret_file} is empty")
            except OSError as error:
                mistakes.append(f"{where}.secret_file: {endpoint.secret_file} cannot be read: {reason_of(error)}")
        if endpoint.ca_file is not None:
            try:
                ssl.create_default_context(cafile=endpoint.ca_file)
            except (OSError, ssl.SSLError):
                mistakes.append(f"{where}.ca_file: {endpoint.ca_file} contains no certificate")
    return mistakes


def event_hints(config: Config, may_be_about: Callable[[str, str], bool]) -> list[str]:
    """Warnings about endpoints that cannot tell who sends them events, and about patterns that match nothing, by
    `may_be_about` a pattern and a registry.
    """
    names = [*(entry.name for entry in config.upstream), *(entry.name for entry in config.hosted)]
    warnings = []
    for number, endpoint in enumerate(config.events.endpoint, 1):
        where = f"events.endpoint[{number}]"
        if endpoint.secret_file is None:
            warnings.append(f"{where}: without secret_file, {endpoint.name} cannot know that events come from here")
        warnings += [
            f"{where}.repositories[{place}]: {pattern} matches no registry that is configured here"
            for place, pattern in enumerate(endpoint.repositories, 1)
            if not any(may_be_about(pattern, name) for name in names)
        ]
    return warnings
