"""The distribution API: `/v2/`."""
