"""The composition root: the only package that knows every concrete class.

building.py       builds a worker: read this first
parts.py          the result: a worker's parts
storage.py        disk and index, enough for most commands
upstreams.py      the upstream registries
access.py         authentication and authorization of clients
routes.py         the rules for repositories
purging.py        purges of images
syncing.py        sync rules
tasks.py          jobs
housekeeping.py   work that one worker does for all
client_files.py   the configuration of clients, for the admin API

This module imports nothing: a command that only looks at the disk imports `storage.py`, and no server or client with
it.
"""
