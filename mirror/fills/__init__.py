"""Downloads of blobs: shared transfers (flights), fetching ahead, and outages of registries."""
