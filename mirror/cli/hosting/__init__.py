"""Commands for hosted registries: copies and replication."""
