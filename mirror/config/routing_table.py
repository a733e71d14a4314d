"""The routing table that follows from the settings. No connection is opened and no file is read."""

from __future__ import annotations

from mirror.config.settings import (
    Config,
)
from mirror.policy.routing import Registry, RoutingTable


def routing_table(config: Config) -> RoutingTable:
    """The table that tells which configured registry a name means."""
    return RoutingTable.build(
        (
            *(
                Registry(entry.name, tuple(entry.aliases), tuple(entry.host_headers), library=entry.name == "docker.io")
                for entry in config.upstream
            ),
            *(
                Registry(entry.name, tuple(entry.aliases), tuple(entry.host_headers), hosted=True)
                for entry in config.hosted
            ),
            *(
                Registry(entry.name, tuple(entry.aliases), tuple(entry.host_headers), members=tuple(entry.members))
                for entry in config.virtual
            ),
        ),
        config.default_registry or None,
    )
