"""What is remembered about the content on disk: sizes, last use, links, pins. Losing it loses nothing."""
