"""How a sentence shows a value of a JSON document."""

from __future__ import annotations

import msgspec

SHOWN_CHARACTERS = 60


def show(value: object) -> str:
    """A value as it stands in the JSON, cut where it is long."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
