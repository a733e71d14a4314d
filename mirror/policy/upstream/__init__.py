"""Decisions that only `mirror.upstream` asks for."""
