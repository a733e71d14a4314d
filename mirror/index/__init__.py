"""What is remembered about the content on disk: sizes, last use, names, links. Losing it loses nothing."""
