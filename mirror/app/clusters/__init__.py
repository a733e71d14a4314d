"""What a replica of a cluster does with the others, put together."""
