"""A source's columns that no stage reads, carried along as JSON: one schema, whatever tables a corpus consists of."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Mapping[str, Any]) -> str | None:
    """Values of a row by column as JSON; None where there are none.

    Bytes become base64, dates and times ISO 8601, numbers that are not finite null, and in texts that are not UTF-8 each
    broken byte U+FFFD. What else JSON does not know becomes its text.
    """
    if not values:
        return None
    return json.dumps(_plain(dict(values)), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_text(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _text(value)


def _text(value: Any) -> str:
    """Valid text; lone surrogates, which stand for bytes that were none, replaced."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
