"""Decisions about the replicas of a cluster: how they are named, and who may ask whom for what."""
