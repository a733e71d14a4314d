"""The store on a local disk. `layout.py` draws its tree."""
