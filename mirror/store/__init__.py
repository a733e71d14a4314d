"""Bytes and records on the local disk, which is the truth about what the mirror holds."""
