"""Access and authenticity: callers' rights verified at upstream, limits to logins, and cosign signatures."""
