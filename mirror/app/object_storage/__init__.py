"""Opens what a store has in a bucket, and what is done with it."""
