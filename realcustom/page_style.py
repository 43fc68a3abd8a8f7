"""The style of all pages that are written: light and dark, down to a phone's width."""

from __future__ import annotations

from pathlib import Path

STYLE = Path(__file__).with_name("page.css").read_text("utf-8")
