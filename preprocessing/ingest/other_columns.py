"""What else a table holds of a row, as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Mapping[str, Any]) -> str | None:
    """A row's columns that no stage reads, by name, as JSON: all tables of a corpus get one schema. None: no such column.

    Bytes become base64, dates and times ISO 8601, numbers that are not finite null, and in texts that are not UTF-8
    each broken byte U+FFFD. Other types become text.
    """
    if not values:
        return None
    return json.dumps(_plain(dict(values)), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_valid_text(name): _plain(inner) for name, inner in value.items()}
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
    return _valid_text(value)


def _valid_text(value: Any) -> str:
    """Valid text; lone surrogates, which stand for invalid bytes, are replaced."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
