"""Frozen values: addresses, kernel objects, operations, states."""
