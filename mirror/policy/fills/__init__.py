"""Decisions of fills: which bytes are fetched next, and by whom."""
