"""The graph of stored content: manifests and the blobs that they name, read from the disk."""
