"""Copies of images that are kept elsewhere: in another repository of this site, or in another registry.

image_tree.py        reads an image with its referrers from a repository, in the order in which it can be written
target.py            what takes an image, and how it is given: blobs, children, manifest, referrers, the tag last
site_target.py       a hosted repository of this site
registry_target.py   a repository of another registry
copy_order.py        what `mirror copy` is asked for, validated
copy_run.py          does it, one tag after another

here.py              what rules read of hosted repositories
replication_rules.py the rules of the configuration, and what each has put into the other registry
rule_run.py          one run of a rule: compares, and repeats what is missing
replications.py      all rules: runs them, records and shows their runs
replication_scheduler.py   starts those that have something to do
compared_content.py  what need not be read again
rate_limit.py        bytes per second
"""
