"""The HTTP servers: the only folder that imports `aiohttp.web`."""
