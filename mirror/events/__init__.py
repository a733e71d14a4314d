"""Events: written down with the change that they report, and delivered to HTTP endpoints.

announcing.py      the events of one change, from before its first write to its end, or to what a crash has left of it
seen_changes.py    what the records say about a change
event_log.py       events that report no change of a hosted repository
endpoint_queue.py  the events of one endpoint: one at a time of each repository, in order, again until it takes them
deliveries.py      all endpoints, each served by one process

docs/events.md says what receivers get, docs/decisions/0030 why changes are prepared and confirmed.
"""
