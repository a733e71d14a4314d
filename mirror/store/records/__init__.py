"""Tags, manifests, links, deletions, pins and freezes as records, on the local disk or in a bucket."""
