"""The agent: one small daemon a node that holds a subnet and connects it with every other node."""
