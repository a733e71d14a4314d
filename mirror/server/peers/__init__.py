"""The internal listener: what the other replicas of the cluster ask of this one."""
