"""Buckets of S3, Google Cloud Storage and Azure, by way of obstore.

obstore_bucket.py  the bucket
obstore_body.py    the content of an object, piece by piece
plain_body.py      the same over plain HTTP, without obstore
request_sender.py  requests that are repeated, counted and judged
request_gate.py    whether, and when, a request may be sent
obstore_errors.py  what a failure of obstore means
clouds.py          what differs from cloud to cloud, and the stores of obstore
key_files.py       the keys of S3, in files or not
raw_s3.py          what obstore has no call for
timed_requests.py  its requests, each with a deadline
aws_identity.py    the keys of the machine or pod, for that
s3_xml.py          values in answers to that

Only `app/bucket.py` imports this package, and only if there is a bucket: obstore takes memory and time.
"""
