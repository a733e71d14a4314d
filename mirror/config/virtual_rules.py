"""The rules of the virtual registries that follow from the settings. No file is read."""

from __future__ import annotations

from mirror.config.routing_table import routing_table
from mirror.config.settings import Config, VirtualSettings
from mirror.config.tables.upstream_settings import UpstreamSettings
from mirror.policy.routing import RoutingTable
from mirror.policy.virtual.members import VirtualMember, VirtualRules


def virtual_rules(config: Config) -> dict[str, VirtualRules]:
    """The rules of each virtual registry, by its name."""
    table = routing_table(config)
    upstreams = {entry.name: entry for entry in config.upstream}
    return {entry.name: _rules(entry, table, upstreams) for entry in config.virtual}


def _rules(settings: VirtualSettings, table: RoutingTable, upstreams: dict[str, UpstreamSettings]) -> VirtualRules:
    absent = {stored_name(name, table) for name in settings.refusal_means_absent}
    members = []
    for name in settings.members:
        registry, entry = table.registry(name) or (name, None)
        if entry is None:
            continue  # a mistake that `checks.py` reports
        upstream = upstreams.get(entry.name)
        hides = upstream is not None and upstream.has_credentials and registry not in absent
        members.append(VirtualMember(registry, entry.hosted, entry.library, hides))
    writable = None if settings.writable is None else stored_name(settings.writable, table)
    return VirtualRules(settings.name, tuple(members), writable, tuple(settings.reserved))


def stored_name(name: str, table: RoutingTable) -> str:
    """The name under which a registry's content is stored, for any of its names."""
    found = table.registry(name)
    return name if found is None else found[0]
