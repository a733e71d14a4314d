"""Fetches images before clients ask for them: once, as jobs, or by sync rules."""
