"""Settings of a run: recipe < `--config FILE` < `--set a.b=c`. Imports neither torch nor ray."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from realcustom import config
from realcustom.pipeline.recipes import RECIPES, RunSettings


def resolve(
    recipe: str,
    files: Sequence[str | Path] = (),
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> RunSettings:
    """The recipe with settings files over it, then single assignments; a later one wins over an earlier one.

    Args:
        recipe: a name of `recipes.RECIPES`.
        files: YAML files of (partial, nested) settings.
        sets: `NAME=VALUE` with a dotted name.
        options: nested settings from a verb's own options; they win over all others.
    Raises:
        config.SettingError: an unknown recipe, name or value; the message names the nearest valid one.
    """
    if recipe not in RECIPES:
        close = difflib.get_close_matches(recipe, RECIPES, n=1, cutoff=0.4)
        guess = f"did you mean '{close[0]}'? " if close else ""
        raise config.SettingError(f"unknown recipe '{recipe}'; {guess}There are {', '.join(RECIPES)}")
    data: dict[str, Any] = {}
    for file in files:
        data = config.merge(data, config.load_file(file))
    for text in sets:
        data = config.merge(data, config.parse_assignment(text))
    data = config.merge(data, options or {})
    return config.override(RECIPES[recipe](), data)


def to_yaml(settings: Any) -> str:
    """A settings dataclass, or a mapping that holds some, as YAML; a `RunSettings` is read back by `--config`."""
    plain = {name: config.to_dict(value) for name, value in settings.items()} if isinstance(settings, dict) else None
    return yaml.safe_dump(plain or config.to_dict(settings), sort_keys=False, allow_unicode=True, width=120)
