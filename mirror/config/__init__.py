"""The settings: what they are, where they come from, and whether they are right.

settings.py          all settings, with their defaults and meanings
tables/              those of large tables: upstreams, hosted registries, sync and replication, access, events, the
                     bucket, the cluster
section.py           what all tables of the file have in common
values.py            checks of single values
plans.py             when something is done again and again
loading.py           from file and environment to checked settings
checks.py            checks of several settings together, and of the files that they name
bucket_checks.py     those of the bucket
cluster_checks.py    those of a cluster of replicas
event_checks.py      those of the endpoints that are sent events
redacted.py          the settings without secrets, for display
routing_table.py     the routing table that follows from them
access_policy.py     the access rules that follow from them
virtual_rules.py     who answers for the names of virtual registries, as far as it follows from them

Settings come from the TOML file given with `--config`. An environment variable takes precedence over the file:
`MIRROR__STORE__CAPACITY=500GB` is `capacity` under `[store]`. A setting that is not given has its default. With neither
file nor environment, the mirror serves the public registries. A secret can be read from a file: `password_file`,
`url_file`, `secret_key_file`.

Only `app/` and `cli/` import this package: the modules below them take ordinary arguments.
"""

from mirror.config.access_policy import access_policy, named_claims
from mirror.config.checks import hints
from mirror.config.loading import load
from mirror.config.redacted import redacted_settings
from mirror.config.routing_table import routing_table
from mirror.config.settings import (
    Config,
    PinSettings,
    RouteSettings,
    ScrubSettings,
    ServerSettings,
    TraceSettings,
    VirtualSettings,
)
from mirror.config.tables.access_settings import IssuerSettings
from mirror.config.tables.bucket_settings import BucketSettings
from mirror.config.tables.cluster_settings import ClusterSettings
from mirror.config.tables.copying_settings import ReplicationSettings, SyncSettings
from mirror.config.tables.hosting_settings import HostedSettings
from mirror.config.tables.upstream_settings import PUBLIC, ReachSettings, UpstreamSettings
from mirror.config.virtual_rules import virtual_rules

__all__ = [
    "PUBLIC",
    "BucketSettings",
    "ClusterSettings",
    "Config",
    "HostedSettings",
    "IssuerSettings",
    "PinSettings",
    "ReachSettings",
    "ReplicationSettings",
    "RouteSettings",
    "ScrubSettings",
    "ServerSettings",
    "SyncSettings",
    "TraceSettings",
    "UpstreamSettings",
    "VirtualSettings",
    "access_policy",
    "hints",
    "load",
    "named_claims",
    "redacted_settings",
    "routing_table",
    "virtual_rules",
]
