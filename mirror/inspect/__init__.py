"""What people are shown: images, tags, and why an answer came about."""
