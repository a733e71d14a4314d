"""HTTP to a registry: addresses, connections, bodies, proxies."""
