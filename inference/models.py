"""The models that a request can name: the base, and each adapter on it as `realcustom:NAME`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from realcustom.inference.errors import UnknownModel
from realcustom.inference.responses import ModelInfo

PREFIX = "realcustom:"
_STARTED = int(time.time())  # models have no date of their own


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A name of `GET /v1/models` and what is drawn with."""

    id: str
    adapter: dict[str, Any] | None  # its description, as in `GET /v1/adapters`; None = the base alone
    source: str | None = None  # path or storage URI of the adapter's checkpoint; never told to a client

    @property
    def sha256(self) -> str | None:
        """Of the adapter's checkpoint."""
        return None if self.adapter is None else str(self.adapter["sha256"])

    def listed(self) -> ModelInfo:
        """As it is listed."""
        return ModelInfo(id=self.id, created=_STARTED)


def choose_model(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """The model of this name; None: the first. Raises UnknownModel."""
    if name is None:
        return models[0]
    found = next((model for model in models if model.id == name), None)
    if found is None:
        names = [model.id for model in models]
        close = difflib.get_close_matches(name[:200], names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names)}"
        raise UnknownModel(f"model: this server has no '{name[:60]}'; {hint}", "model")
    return found
