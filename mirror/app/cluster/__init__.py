"""What only a replica of a cluster opens (`clustering.py` opens the cluster itself)."""
