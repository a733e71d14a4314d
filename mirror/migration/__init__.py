"""Moves hosted content between two stores, a disk and a bucket, while the one that it leaves goes on serving.

`record_folders.py` knows which records there are, `repository_copy.py` copies one repository, `migration.py` runs a
pass over everything. What is done with each record is decided in `policy/hosted/migration_steps.py`.
"""
