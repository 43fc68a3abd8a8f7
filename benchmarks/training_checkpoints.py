"""Time that steps lose to checkpoints of Stable Diffusion 1.5's size.

python benchmarks/training_checkpoints.py OUTPUT STEPS STEP_SECONDS EVERY    # a folder or a URI; prints one line of JSON
"""

from __future__ import annotations

import functools
import json
import sys
import time

import torch

from realcustom.store import Store
from realcustom.training.background import Background
from realcustom.training.checkpoints import Checkpoint, Snapshot, prune

TENSORS, MIB = 128, 410  # weights and two moments of the adapter


def stall(output: str, steps: int, seconds: float, every: int) -> dict[str, float]:
    """Share of the steps' time that is lost while checkpoints are copied and written, and seconds of each copy."""
    tensors = {str(number): torch.randn(MIB * 2**20 // 4 // TENSORS) for number in range(TENSORS)}
    store, snapshot, copies = Store(), Snapshot(), list[float]()

    def write(step: int) -> None:
        snapshot.write(output, store)
        prune(output, 2, 0, {}, store)

    with Background() as background:
        start = time.monotonic()
        for step in range(1, steps + 1):
            time.sleep(seconds)  # stands in for the model
            if step % every == 0:
                begun = time.monotonic()
                checkpoint = Checkpoint(tensors=tensors, counters={"step": step}, progress={}, identity="", losses={})
                background.wait()
                snapshot.take(checkpoint)
                background.put(functools.partial(write, step))
                copies.append(time.monotonic() - begun)
        lost = time.monotonic() - start - steps * seconds
    return {"share": lost / (steps * seconds), "seconds_of_a_copy": sum(copies) / len(copies)}


if __name__ == "__main__":
    output, steps, seconds, every = sys.argv[1:]
    print(json.dumps(stall(output, int(steps), float(seconds), int(every))))
