"""A pull-through caching mirror for OCI and Docker registries. Start reading at `mirror/ports/`."""

__version__ = "0.1.0"
