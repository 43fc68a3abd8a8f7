"""Training checkpoints: all data for a resume, one safetensors file each, written atomically to a folder or a store.

They hold no random state and no reader position: both follow from the step (`draws.py`, `data.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store

PREFIX, SUFFIX = "step-", ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `counters["step"]` steps."""

    tensors: dict[str, torch.Tensor]
    counters: dict[str, int]
    progress: dict[str, float]  # state of the metrics: the sums of the current line, the first validation loss
    identity: str  # hash of the run's configuration


def save_checkpoint(folder: str, checkpoint: Checkpoint, keep: int, store: Store) -> str:
    """Write `<folder>/step-NNNNNNNN.safetensors`, then remove all but the latest `keep`. Returns its uri."""
    note = {"counters": checkpoint.counters, "progress": checkpoint.progress, "identity": checkpoint.identity}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    uri = storage.join(folder, f"{PREFIX}{checkpoint.counters['step']:08d}{SUFFIX}")
    store.write(uri, save(tensors, metadata={"training": json.dumps(note, sort_keys=True)}))
    for old in list_checkpoints(folder, store)[:-keep]:
        store.delete(old)
    return uri


def list_checkpoints(folder: str, store: Store) -> list[str]:
    """uris of the checkpoints in `folder`, oldest first; none where there is no folder."""
    names = store.list_names(folder)
    return [storage.join(folder, name) for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX)]


def load_checkpoint(uri: str, store: Store) -> Checkpoint:
    """Read one. Raises UsageError if the file is not a training checkpoint."""
    data = store.read(uri)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        note = json.loads(header["__metadata__"]["training"])
        tensors = load(data)
    except (KeyError, ValueError, SafetensorError) as error:
        raise UsageError(f"{uri} is not a training checkpoint") from error
    return Checkpoint(tensors=tensors, counters=note["counters"], progress=note["progress"], identity=note["identity"])
