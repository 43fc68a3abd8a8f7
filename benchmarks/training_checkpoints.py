"""Time that steps lose to checkpoints of Stable Diffusion 1.5's size.

python benchmarks/training_checkpoints.py OUTPUT SAVES STEP_SECONDS EVERY    # a folder or a URI; prints one line of JSON
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time

import torch

from realcustom import storage
from realcustom.checkpoint import Adapter, save_adapter
from realcustom.settings import MethodSettings
from realcustom.store import Store
from realcustom.training.background import Background
from realcustom.training.checkpoints import Checkpoint, Snapshot, file_name, prune

TENSORS, MIB = 128, 410  # weights and two moments of the adapter


def stall(output: str, saves: int, seconds: float, every: int) -> dict[str, list[float]]:
    """By checkpoint: the share of the time of the steps after it that is lost while it is copied and written, and of
    these, seconds of waiting until the one before is written, and of the copy."""
    tensors = {str(number): torch.randn(MIB * 2**20 // 4 // TENSORS) for number in range(TENSORS)}
    store, snapshot, begins = Store(), Snapshot(), list[float]()
    waits, copies = list[float](), list[float]()

    def write(step: int) -> None:
        weights = {name: snapshot.tensors[name] for name in tensors if int(name) < TENSORS // 3}
        adapter = Adapter(tensors=weights, settings=MethodSettings(), base="", image_encoder="")
        save_adapter(storage.join(output, "adapters", file_name(step)), adapter, store)
        snapshot.write(storage.join(output, "checkpoints"), store)
        for folder in ("adapters", "checkpoints"):
            prune(storage.join(output, folder), 2, 0, {}, store)

    with Background() as background:
        for step in range(1, (saves + 1) * every + 1):
            time.sleep(seconds)  # stands in for the model
            if step % every:
                continue
            begins.append(time.monotonic())
            if len(begins) > saves:
                break
            checkpoint = Checkpoint(tensors=tensors, counters={"step": step}, progress={}, identity="", losses={})
            background.wait()  # for the one before
            waits.append(time.monotonic() - begins[-1])
            snapshot.take(checkpoint)
            copies.append(time.monotonic() - begins[-1] - waits[-1])
            background.put(functools.partial(write, step))
    taken = [after - before for before, after in itertools.pairwise(begins)]
    return {"shares": [one / (every * seconds) - 1 for one in taken], "waits": waits, "copies": copies}


if __name__ == "__main__":
    output, saves, seconds, every = sys.argv[1:]
    print(json.dumps(stall(output, int(saves), float(seconds), int(every))))
