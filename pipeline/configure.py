"""Settings of a run: recipe < `--config FILE` < `--set a.b=c`. Imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from realcustom import config
from realcustom.pipeline.recipes import RECIPES, RunSettings

_OTHER_NAMES = {"device": ("use_gpu", "num_gpus")}  # by which other programs have options


def resolve(
    recipe: str,
    files: Sequence[str | Path] = (),
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    used: Sequence[str] | None = None,
) -> RunSettings:
    """The recipe with settings files over it, then single assignments; a later one wins over an earlier one.

    Args:
        recipe: a name of `recipes.RECIPES`.
        files: YAML files of (partial, nested) settings; of one that `generate` wrote, the models that it used.
        sets: `NAME=VALUE` with a dotted name.
        options: nested settings from a verb's own options; they win over all others.
        used: the sections that the verb reads; None: all. Of another section names and types are checked, but values that
            contradict each other are no concern of the verb: that section stays the recipe's.
    Raises:
        config.SettingError: an unknown recipe, name or value; the message names the nearest valid one.
    """
    if recipe not in RECIPES:
        guess = config.did_you_mean(recipe, RECIPES)
        raise config.SettingError(f"unknown recipe '{recipe}'{guess}There are {', '.join(RECIPES)}")
    data: dict[str, Any] = {}
    for file in files:
        data = config.merge(data, _of_run(config.load_file(file)))
    for text in sets:
        data = config.merge(data, config.parse_assignment(text))
    data = config.merge(data, options or {})
    while True:
        try:
            return config.override(RECIPES[recipe](), data)
        except config.Conflict as conflict:
            if used is None or any(_overlap(conflict.where, section) for section in used):
                raise
            data = _without(data, conflict.where.split("."))


def setting_of(option: str, section: str) -> str | None:
    """The setting of a section that is meant by an option of its name: `train.lr` by `--lr`. None where there is none."""
    if section not in (field.name for field in fields(RunSettings)):
        return None
    wanted = option.lstrip("-").replace("-", "_")
    names = [f"{section}.{name}" for name in _leaves(config.to_dict(getattr(RECIPES["sprites"](), section)))]
    same = (wanted, *_OTHER_NAMES.get(wanted, ()))
    return next((name for word in same for name in names if name.endswith(f".{word}")), None)


def _leaves(data: Any) -> Iterator[str]:
    """Dotted names of nested settings."""
    for name, value in data.items() if isinstance(data, Mapping) else ():
        yield from (f"{name}.{below}" for below in _leaves(value))
        if not isinstance(value, Mapping):
            yield name


def _of_run(data: dict[str, Any]) -> dict[str, Any]:
    """A file's settings of a run. The `method` that `generate` wrote is its adapter's, which brings it along again."""
    request = data.get("request")
    if not isinstance(request, Mapping):
        return data
    models = {name: request[name] for name in ("base", "adapter") if request.get(name)}
    encoder = request.get("recipes_image_encoder")
    return models | ({"method": {"image_encoder": {"model": encoder}}} if encoder else {})


def _overlap(section: str, other: str) -> bool:
    """Whether one of two dotted names is the other, or part of it; the empty one is the whole."""
    return f"{other}.".startswith(f"{section}.".lstrip(".")) or f"{section}.".startswith(f"{other}.")


def _without(data: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Nested `data` without the entry at `path`."""
    rest = {key: value for key, value in data.items() if key != path[0]}
    return rest if len(path) == 1 else {**rest, path[0]: _without(data[path[0]], path[1:])}


def to_yaml(settings: Any) -> str:
    """A settings dataclass, or a mapping that holds some, as YAML; a `RunSettings` is read back by `--config`."""
    plain = {name: config.to_dict(value) for name, value in settings.items()} if isinstance(settings, dict) else None
    return yaml.safe_dump(plain or config.to_dict(settings), sort_keys=False, allow_unicode=True, width=120)
