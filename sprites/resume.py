"""Shared by all recipes of the zoo: a checkpoint to resume from, and progress lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Checkpoint:
    """The state of a training in one file, replaced atomically.

    Args:
        path: the file.
        parts: modules, optimizers, schedules (saved by `state_dict`) or plain dicts of tensors.
    """

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts
        self._shown = time.monotonic()

    def restore(self) -> int:
        """Load the parts if the file exists; returns the number of finished steps."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            if isinstance(part, dict):
                part.update(saved[name])
            else:
                part.load_state_dict(saved[name])
        return int(saved["steps"])

    def save(self, steps: int) -> None:
        """Write the file; `steps` are done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part if isinstance(part, dict) else part.state_dict() for name, part in self.parts.items()}
        temporary = self.path.with_suffix(".tmp")
        torch.save({**state, "steps": steps}, temporary)
        os.replace(temporary, self.path)

    def step(self, step: int, every: int, **values: float) -> None:
        """After step `step`: save at intervals; show the values every ten seconds."""
        if (step + 1) % every == 0:
            self.save(step + 1)
        if time.monotonic() - self._shown > 10:
            self._shown = time.monotonic()
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"  step {step + 1} {shown}", file=sys.stderr, flush=True)


def report_progress(name: str, steps: Iterable[T], batch_size: int) -> Iterator[T]:
    """Yield `steps`, with a line on stderr every ten seconds: steps done, pictures per second."""
    start = shown = time.monotonic()
    for done, step in enumerate(steps):
        yield step
        now = time.monotonic()
        if now - shown > 10:
            shown = now
            rate = (done + 1) * batch_size / (now - start)
            print(f"{name}: step {step}, {rate:.0f} pictures/s", file=sys.stderr, flush=True)
