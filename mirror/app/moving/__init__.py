"""Puts together what moves content into the store, and between stores."""
