"""Repositories as clients see them: proxied, sealed, or guarded by rules. Uses the outside only by `mirror.ports`."""
