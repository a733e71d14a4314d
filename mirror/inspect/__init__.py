"""Reports for people and programs: which images and tags are here, and why a client was answered as it was."""
