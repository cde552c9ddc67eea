"""The user-space overlay: one TUN device, one UDP socket, one process a node."""
