"""Copies of images that are kept elsewhere: in another repository of this site, or in another registry.

image_tree.py        reads an image with its referrers from a repository, in the order in which it can be written
target.py            what takes an image, and how it is given: blobs, children, manifest, referrers, the tag last
site_target.py       a hosted repository of this site
registry_target.py   a repository of another registry
copy_order.py        what `mirror copy` is asked for, validated
copy_run.py          does it, one tag after another
"""
