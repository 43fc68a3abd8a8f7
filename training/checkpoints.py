"""Training checkpoints: all data for a resume, one safetensors file each, written atomically to a folder or a store.

They hold no random state and no reader position: both follow from the step (`draws.py`, `data.py`).

A checkpoint is taken in two parts. `Snapshot.take` copies the tensors off the device, into one block of memory that is
laid out as the file is; then training may go on. `Snapshot.write` writes that block, in another thread.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store

PREFIX, SUFFIX = "step-", ".safetensors"
_ALIGNMENT = 64  # bytes, of the first tensor
_NAMES = {
    **{torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"},
    torch.float64: "F64",
}


VERSION = 1  # of the file's layout; one without a number is of the first
_NOTED = ("counters", "progress", "identity", "losses")  # as JSON in the file's metadata


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `counters["step"]` steps."""

    tensors: Mapping[str, torch.Tensor]
    counters: dict[str, int]
    progress: dict[str, float]  # state of the metrics: the sums of the current line, the first validation loss
    identity: str  # hash of the run's configuration
    losses: Mapping[str, float]  # validation losses by the step of the checkpoint that was written then


class Snapshot:
    """The latest checkpoint in host memory, as the bytes of its file."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._size = self._step = 0
        self.tensors: dict[str, torch.Tensor] = {}  # those of the checkpoint, in the block

    def take(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint; its tensors may change afterwards. The block of the one before is used again."""
        note = {"version": VERSION, **{name: getattr(checkpoint, name) for name in _NOTED}}
        header: dict[str, dict[str, Any]] = {"__metadata__": {"training": json.dumps(note, sort_keys=True)}}
        tensors = sorted(checkpoint.tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # all stay aligned
        end = 0
        for name, tensor in tensors:
            places = [end, end := end + tensor.nbytes]
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        first, on_gpu = 8 + len(text), any(tensor.is_cuda for _, tensor in tensors)
        self._reserve(first + end, pinned=on_gpu)
        self._block[:first] = torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)
        data = self._block[first:]
        self.tensors = {
            name: data[slice(*header[name]["data_offsets"])].view(tensor.dtype).view(tensor.shape)
            for name, tensor in tensors
        }
        for name, tensor in tensors:
            self.tensors[name].copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        self._step = checkpoint.counters["step"]

    def _reserve(self, size: int, pinned: bool) -> None:
        if len(self._block) < size:  # some more, for a longer header
            self._block = torch.empty(size + 2**16, dtype=torch.uint8, pin_memory=pinned)
        self._size = size

    def write(self, folder: str, store: Store) -> None:
        """Write `<folder>/step-NNNNNNNN.safetensors`."""
        data = self._block[: self._size].numpy().data
        store.write(storage.join(folder, file_name(self._step)), data)


def file_name(step: int) -> str:
    """The name of a file of that step."""
    return f"{PREFIX}{step:08d}{SUFFIX}"


def step_of(uri: str) -> int:
    """The step in the name of such a file."""
    return int(uri.rpartition(PREFIX)[2].removesuffix(SUFFIX))


def prune(
    folder: str, latest: int, best: int, losses: Mapping[str, float], store: Store, steps: Collection[int] = ()
) -> None:
    """Remove all files of steps in `folder` but the `latest` ones, the `best` ones by validation loss, and those of `steps`."""
    there = list_checkpoints(folder, store)
    ranked = sorted(losses, key=lambda step: (losses[step], int(step)))
    kept = {storage.join(folder, file_name(int(step))) for step in ranked[:best]} | set(there[-latest:])
    for uri in there:
        if uri not in kept and step_of(uri) not in steps:
            store.delete(uri)


def list_checkpoints(folder: str, store: Store) -> list[str]:
    """uris of the checkpoints in `folder`, oldest first; none where there is no folder."""
    names = store.list_names(folder)
    return [storage.join(folder, name) for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX)]


def latest_checkpoint(output: str, store: Store) -> str:
    """uri of the latest checkpoint of the run in `output`; empty where there is none."""
    return next(reversed(list_checkpoints(storage.join(output, "checkpoints"), store)), "")


def load_checkpoint(uri: str, store: Store) -> Checkpoint:
    """Read one. Raises UsageError if the file is not a training checkpoint, is incomplete, or of a later version."""
    data = store.read(uri)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        note = json.loads(header["__metadata__"]["training"])
        tensors = load(data)
    except (KeyError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{uri} is not a training checkpoint, or not a whole one: remove it, and the run goes on from the one before"
        ) from error
    version = note.get("version", 1)
    if version > VERSION:
        raise UsageError(
            f"{uri} is a training checkpoint of version {version}, this realcustom reads up to {VERSION}: go on with the one "
            "that wrote it, or a later one"
        )
    lacking = [name for name in _NOTED if name not in note]
    if lacking:
        raise UsageError(
            f"{uri} is a training checkpoint without its {', '.join(lacking)}: remove it, and the run goes on from the one before"
        )
    return Checkpoint(tensors=tensors, **{name: note[name] for name in _NOTED})
