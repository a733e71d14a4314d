"""The composition root: the only package that knows every concrete class.

building.py         builds a worker from the following: read this first
storage.py          disk, index, eviction and purges: enough for most commands
repositories.py     what answers pulls
upstreams.py        the upstream registries
routes.py           the rules for repositories
client_auth.py      authentication and authorization of clients
reporting.py        events, and what delivers them
administration.py   the admin API
prefetching.py      jobs and sync rules
import_target.py    what `mirror import` writes to
client_files.py     the configuration of clients, for the admin API
housekeeping.py     work that one worker does for all

This module imports nothing: a command that only looks at the disk imports `storage.py`, and no server or client with
it.
"""
