"""Decisions about virtual registries: who answers for a name, and what the answers of several members become."""
