"""Benchmarks: figures to compare with targets, not tests. Run with ``./run bench NAME``."""
