"""HTTP in front: the only folder that imports `aiohttp.web`."""
