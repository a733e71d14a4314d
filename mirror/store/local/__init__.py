"""The store on a local disk. `layout.py` shows its directory tree."""
