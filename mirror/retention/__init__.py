"""Retention: deletes tags and images of hosted repositories by rules. `mirror.policy.hosted.retention` decides.

retention_schedule.py     rounds when they are due, by one process at a time; rounds by hand
repository_retention.py   one repository in a round: facts, decision, deletion
repository_facts.py       what the decision needs to know, read from the disk
protected_images.py       what pins, freezes and immutable tags keep, whatever the rules say
retention_marks.py        what is remembered of a repository from round to round
pull_notes.py             when tags and manifests were pulled
retention_report.py       what a round has done; retention_replies.py is the JSON of that
"""
