"""What can be set, where it comes from, and whether it is right.

settings.py   every setting, with its default and what it means
values.py     what single settings may be
loading.py    from file and environment to checked settings
checks.py     what no single setting can tell
masked.py     the same for whoever looks, without secrets
tables.py     what they mean, for those who ask before anything is built

A setting comes from the TOML file given with `--config`; an environment variable goes before it:
`MIRROR__STORE__CAPACITY=500GB` is `capacity` under `[store]`. Whatever is not set has its default, and with neither
file nor environment the mirror serves the public registries. A secret can be read from a file: `password_file`,
`url_file`.

Only `app/` and `cli/` know this module: everything below takes ordinary arguments.
"""

from mirror.config.checks import hints
from mirror.config.loading import load
from mirror.config.redacted import masked
from mirror.config.routing import routing_table
from mirror.config.settings import (
    PUBLIC,
    Config,
    IssuerSettings,
    PinSettings,
    ReachSettings,
    RouteSettings,
    ScrubSettings,
    ServerSettings,
    SyncSettings,
    TraceSettings,
    UpstreamSettings,
)

__all__ = [
    "PUBLIC",
    "Config",
    "IssuerSettings",
    "PinSettings",
    "ReachSettings",
    "RouteSettings",
    "ScrubSettings",
    "ServerSettings",
    "SyncSettings",
    "TraceSettings",
    "UpstreamSettings",
    "hints",
    "load",
    "masked",
    "routing_table",
]
