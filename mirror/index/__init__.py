"""The index of the content on disk: sizes, times of last use, references, links. It can be rebuilt from the disk."""
