"""Decisions as pure functions of plain values. Nothing in this package does I/O or waits."""
