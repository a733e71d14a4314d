"""Pieces of asyncio that know nothing of registries: one call for many callers, bounded maps, threads, a cache."""
