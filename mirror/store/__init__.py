"""Blobs and records on the local disk. The disk is the source of truth for what the mirror has."""
