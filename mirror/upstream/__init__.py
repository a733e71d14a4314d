"""Speaking to other registries."""
