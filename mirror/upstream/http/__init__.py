"""HTTP towards a registry: addresses, connections, bodies, proxies."""
