"""Hosted content on the local disk."""
