"""Credentials for a registry, wherever they come from."""
