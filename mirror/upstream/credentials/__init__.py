"""Credentials for a registry, one module for each source."""
