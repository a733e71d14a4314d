"""A pull-through caching mirror for OCI and Docker registries. Start reading at `mirror/ports.py`."""

__version__ = "0.1.0"
