"""Decisions about clients by their addresses."""
