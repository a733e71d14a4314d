"""Building blocks for asyncio that know nothing of registries: single flight, bounded maps, threads, caches."""
