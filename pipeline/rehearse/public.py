"""Public configurations of the models that recipes name, and how many parameters are published of each: models.json.

A model is a folder of parts: a diffusers pipeline has several in subfolders, another model has one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realcustom.errors import UsageError

DATA = Path(__file__).parent / "models.json"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published number of parameters."""

    parameters: int | str  # exact, or rounded as "304M" or "92.9M"
    source: str
    of: tuple[str, ...] = ()  # submodules that it counts; none: the whole model

    def agrees(self, counted: int) -> bool:
        """Whether a count is the published one, as far as that was written out."""
        if isinstance(self.parameters, int):
            return counted == self.parameters
        number = self.parameters.removesuffix("M")
        decimals = len(number.partition(".")[2])
        return f"{counted / 1e6:.{decimals}f}" == number


@dataclass(frozen=True, kw_only=True)
class Part:
    """A model, a scheduler, or a tokenizer alone, as its class and configuration."""

    kind: str | None = None  # class of diffusers or transformers
    config: Mapping[str, Any]
    processor: tuple[str, Mapping[str, Any]] | None = None  # class and settings of its image processor
    tokenizer: str | None = None  # whose rules: clip or bert
    published: tuple[Published, ...] = ()
    cross_attentions: int | None = None  # of a UNet with text, as published


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """A model of the hub."""

    name: str
    source: str  # of the configuration
    parts: Mapping[str, Part]  # subfolder -> part; "": the folder itself
    pipeline: str | None = None  # class of diffusers


def public_model(name: str, data: Path = DATA) -> PublicModel:
    """The public configuration of the model with a hub id. Raises UsageError where none is known here."""
    known = _read(data)
    hub_id = name.partition("@")[0]
    if hub_id not in known:
        raise UsageError(
            f"no public configuration of {name} is known: rehearse builds {', '.join(known)}; name one of them, or a folder"
        )
    entry = known[hub_id]
    parts = entry.get("parts", {"": entry})
    return PublicModel(
        name=hub_id,
        source=entry["source"],
        parts={folder: _part(part) for folder, part in parts.items()},
        pipeline=entry.get("pipeline"),
    )


def names_in(models: str) -> Iterator[str]:
    """The names in one setting, which may be several with commas."""
    yield from (name.strip() for name in models.split(","))


def _part(entry: Mapping[str, Any]) -> Part:
    processor = entry.get("processor")
    return Part(
        kind=entry.get("class"),
        config=entry.get("config", {}),
        processor=None if processor is None else (processor["class"], processor["config"]),
        tokenizer=entry.get("tokenizer"),
        published=tuple(
            Published(parameters=one["parameters"], source=one["source"], of=tuple(one["of"]))
            for one in entry.get("published", ())
        ),
        cross_attentions=entry.get("cross_attentions"),
    )


@functools.cache
def _read(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data.read_text("utf-8"))
    return found
