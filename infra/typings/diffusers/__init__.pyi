"""diffusers as pyright sees it here: of no type, since its own annotations contradict its use."""

from typing import Any

def __getattr__(name: str) -> Any: ...
