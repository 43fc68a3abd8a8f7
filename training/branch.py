"""A run that begins at a checkpoint of another one, with other settings, and says so in its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.checkpoints import file_name, list_checkpoints, load_checkpoint, step_of
from realcustom.training.job import Parent, split_parent


def find_parent(given: str, output: str, store: Store) -> Parent:
    """The parent that `RUN` (its latest checkpoint) or `RUN@STEP` names.

    A run in `output` that has begun keeps its own parent, whatever the parent has done since.

    Raises UsageError where there is no such checkpoint, or the run in `output` has another parent.
    """
    run, at = split_parent(given)
    folder = storage.join(run, "checkpoints")
    known = _recorded(storage.join(output, "settings.yaml"), store)
    if known is not None:
        if at is not None and at != known["step"]:
            raise UsageError(f"{output} was begun from step {known['step']} of its parent, not from step {at}")
        uri = storage.join(folder, file_name(known["step"]))
        return Parent(checkpoint=uri, identity=known["identity"], step=known["step"])
    there = {step_of(uri): uri for uri in list_checkpoints(folder, store)}
    if not there:
        raise UsageError(f"--from {given}: {run} holds no training checkpoint (checkpoints/step-*.safetensors)")
    step = max(there) if at is None else at
    if step not in there:
        raise UsageError(f"--from {given}: {run} has checkpoints of the steps {', '.join(map(str, sorted(there)))}")
    return Parent(checkpoint=there[step], identity=load_checkpoint(there[step], store).identity, step=step)


def adapted(tensors: Mapping[str, torch.Tensor], averaged: bool) -> dict[str, torch.Tensor]:
    """A parent's tensors for a run with an average of the weights, or without: a new one begins as the weights."""
    found = {name: value for name, value in tensors.items() if not name.startswith("ema.")}
    if averaged:
        weights = {name.removeprefix("weights."): value for name, value in found.items() if name.startswith("weights.")}
        found |= {f"ema.{name}": tensors.get(f"ema.{name}", value) for name, value in weights.items()}
    return found


def _recorded(settings: str, store: Store) -> dict[str, Any] | None:
    if not store.exists(settings):
        return None
    found: dict[str, Any] | None = yaml.safe_load(store.read(settings)).get("parent")
    return found
