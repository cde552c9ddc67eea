"""Pure planning: what the network should be, and the steps towards it."""
