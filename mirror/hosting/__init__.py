"""Pushes, rights and deletions of hosted repositories."""
