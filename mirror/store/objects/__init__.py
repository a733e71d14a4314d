"""What the mirror keeps in a bucket."""
