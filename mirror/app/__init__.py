"""The composition root: the only folder that knows every concrete class.

building.py    a worker, put together: read this first
parts.py       what comes of it
storage.py     disk and index, enough for most commands
upstreams.py   the registries that may be asked
gate.py        who is asked who they are
routes.py      how repositories are treated
purging.py     what drops an image on purpose
syncing.py     sync rules
tasks.py       jobs
house.py       what one worker does for all
"""

from mirror.app.building import build
from mirror.app.house import scrub_of
from mirror.app.parts import App, Disk, Storage
from mirror.app.purging import make_purge
from mirror.app.routes import age_rule, content_lists, route_of
from mirror.app.storage import MISSES_LOCK, SCRUB_LOCK, open_disk, open_storage, pin_rules, scrub_notes
from mirror.app.syncing import make_sync
from mirror.app.tasks import make_jobs
from mirror.app.upstreams import open_registries, upstream_urls
from mirror.config import routing_table

__all__ = [
    "MISSES_LOCK",
    "SCRUB_LOCK",
    "App",
    "Disk",
    "Storage",
    "age_rule",
    "build",
    "content_lists",
    "make_jobs",
    "make_purge",
    "make_sync",
    "open_disk",
    "open_registries",
    "open_storage",
    "pin_rules",
    "route_of",
    "routing_table",
    "scrub_notes",
    "scrub_of",
    "upstream_urls",
]
