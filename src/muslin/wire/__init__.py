"""Codecs: bytes to values and back, without sockets, files or a clock."""
