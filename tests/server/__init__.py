"""The HTTP side: one class at a time."""
