"""Carries images between sites: export, import, inventories, signatures, and layouts of other tools."""
