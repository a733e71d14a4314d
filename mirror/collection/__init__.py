"""The online garbage collection of hosted content."""
