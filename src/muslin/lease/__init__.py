"""How a node comes by its subnets and keeps them: allocation, and a state machine that is a table."""
