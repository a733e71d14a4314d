"""What names what, read from the disk: manifests, and what is below them."""
