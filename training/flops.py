"""Model FLOPs: what the arithmetic of a step would take without anything computed twice, against what the device can do."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from realcustom.compiling import compiled_nothing
from realcustom.training.batch import Batch
from realcustom.training.loop import Trainer
from realcustom.training.settings import Precision, TrainSettings

# Dense bf16 TFLOP/s by a part of the device's name, from the makers' data sheets; the first that fits counts.
TFLOPS = {
    **{"GH200": 989.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "B200": 2250.0, "A100": 312.0},
    **{"L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A6000": 155.0, "RTX 4090": 165.0},
}


def peak_flops(settings: TrainSettings, device: torch.device) -> float:
    """FLOP/s of a device: `device_tflops`, or its data sheet's at bf16; 0 where neither is known."""
    if settings.device_tflops:
        return settings.device_tflops * 1e12
    if device.type != "cuda" or settings.precision is not Precision.BF16:
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for part, tflops in TFLOPS.items() if part in name), 0.0)


def count_flops(trainer: Trainer, batch: Batch) -> int:
    """FLOPs of one row's forward and backward, counted on the first row of a batch. Leaves no gradient."""
    row = next(iter(batch.chunks(len(batch.weights))))
    unet: Any = trainer.model.unet
    checkpointing = unet.is_gradient_checkpointing
    unet.disable_gradient_checkpointing()  # what is computed twice counts once
    try:
        with compiled_nothing(), FlopCounterMode(display=False) as counter:
            trainer.errors(trainer.model, row, trainer.influence_quantities[-1]).sum().backward()
    finally:
        if checkpointing:
            unet.enable_gradient_checkpointing()
        trainer.optimizer.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


class FlopMeter:
    """The FLOPs of steps, where it is known what the device can do."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._peak = trainer, peak_flops(trainer.settings, trainer.world.device)
        self._of_row: dict[torch.Size, int] = {}  # by the shape of its latents
        self._done = 0.0  # of all workers, since the last reading

    def add(self, batch: Batch) -> None:
        """Count a step of the batch of which this is a worker's share."""
        if not self._peak:
            return
        shape = batch.latents.shape[1:]
        if shape not in self._of_row:
            self._of_row[shape] = count_flops(self._trainer, batch.to(self._trainer.world.device))
        self._done += self._of_row[shape] * batch.total_weight

    def read(self, seconds: float) -> dict[str, float]:
        """TFLOP/s of a worker, and their share of what its device can do, over the seconds since the last reading."""
        if not self._peak:
            return {}
        flops, self._done = self._done / seconds / self._trainer.world.size, 0.0
        return {"tflops": round(flops / 1e12, 3), "mfu": round(flops / self._peak, 4)}
