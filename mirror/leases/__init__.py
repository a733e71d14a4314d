"""Leases of a cluster: of all replicas, one does a piece of work.

bucket_leases.py    who has a lease, by compare-and-set in the bucket; how it is lost and taken over
work_locks.py       a lock of this machine first, then the lease
fenced_records.py   records that only the holder of a lease writes, however late another's writes arrive
"""
