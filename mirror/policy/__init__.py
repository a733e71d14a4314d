"""Decisions as pure functions: plain values in, a verdict out. Nothing here waits or touches a file."""
