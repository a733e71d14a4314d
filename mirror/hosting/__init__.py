"""Pushes, rights and deletions of hosted repositories. `mirror.repository.hosted` has the verbs; here is what they do.

parts.py                 the bytes and records that all of it works on
links.py                 which blobs a repository may serve; written so that no collector takes their bytes
rights.py                where else here a caller could pull a blob from: then it need not be uploaded
sessions.py              upload sessions: whose they are, and how many there may be
placing.py, pushing.py   manifests and tags, in the order that a crash may interrupt anywhere
immutable_images.py      what immutable tags forbid, for both
deleting.py              deletions, and what brings deleted images back
operator_deletions.py    the same for operators; retiring.py for retention, many at once
damaged_records.py       records that cannot be parsed: what can be said without them
damaged_blobs.py         damaged content, and who lacks it
hosted_imports.py        images that come from a bundle or another registry's disk
quotas.py                limits, judged by a ledger; ledger_upkeep.py completes it from the records
                         ledger_catch_up.py: before a refusal, from what other replicas have changed
remembered.py            records in memory, for as long as their repository does not change

Why no lock and no transaction is needed: docs/decisions/0023.
"""
