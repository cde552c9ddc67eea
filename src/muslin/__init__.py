"""Muslin: a flat container network, from scratch, out of what Linux itself provides.

What the network should be is a value, and one function makes the kernel agree with it. ARCHITECTURE.md draws
the rooms of this package and says which may import which. Nothing is imported here, so that a command pays
only for the parts that it uses.
"""

__version__ = "0.1.0"
