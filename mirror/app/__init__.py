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

Nothing is imported here: a command that looks at the disk takes `storage.py`, and with it no server and no client.
"""
