"""Which way a packet goes, and why: pure functions over what namespaces tell of themselves (``wire.sight``)."""
