"""Clients of other registries."""
