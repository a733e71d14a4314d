"""How bytes come: one download of a blob, and what follows it."""
