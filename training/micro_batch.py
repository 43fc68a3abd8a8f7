"""`micro_batch: auto`: how many rows of a worker's share of the batch one forward takes, found before the first step.

More forwards make the same step, so that memory decides how long a step takes and not what it computes.
"""

from __future__ import annotations

import torch

from realcustom.errors import UsageError
from realcustom.machine import is_out_of_memory
from realcustom.training.batch import Batch
from realcustom.training.loop import Trainer
from realcustom.training.optimizers import start_moments
from realcustom.training.sharding import gathered

TOO_LITTLE = "the device has too little memory for a step"


def find_micro_batch(trainer: Trainer, batch: Batch) -> None:
    """Halve `trainer.micro_batch` until forwards and backwards of so many rows fit; all workers call it, and take the same.

    The first try is the number that a checkpoint gave to the trainer, else all rows.

    Args:
        batch: this worker's share of a step.
    Raises UsageError where not even one row fits.
    """
    trainer.micro_batch = trainer.micro_batch or len(batch.weights)
    while not _fits(trainer, batch):
        if trainer.micro_batch == 1:
            raise UsageError(
                f"{TOO_LITTLE}, and even for one row of it: set train.gradient_checkpointing=true, or "
                "train.precision=bf16 with train.base_dtype=bf16 (--dry-run counts what each takes)"
            )
        trainer.micro_batch = -(-trainer.micro_batch // 2)


def _fits(trainer: Trainer, batch: Batch) -> bool:
    """Whether it fits on all workers."""
    fits, fresh = True, not trainer.optimizer.state
    with gathered(trainer.model):
        try:
            if fresh:
                start_moments(trainer.optimizer, trainer.parameters, 0, trainer.guarded)
            _try(trainer, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        trainer.model.zero_grad(set_to_none=True)
    if fresh:
        trainer.optimizer.state.clear()
    if trainer.world.device.type == "cuda":
        torch.cuda.empty_cache()  # after the except clause, whose error keeps the failed forward in memory
    failed = trainer.world.sum(torch.tensor(float(not fits), device=trainer.world.device))
    return not bool(failed)


def _try(trainer: Trainer, batch: Batch) -> None:
    """A step without what workers exchange, as one that ran out of memory would leave the others waiting; nothing is changed.

    Raises a RuntimeError of torch's where the memory is too small.
    """
    # the exchange's copy of the gradients; one worker alone needs as much for the optimizer's arithmetic
    reserve = [torch.empty_like(value) for value in trainer.model.parameters() if value.requires_grad]
    batch = batch.to(trainer.world.device)
    for chunk in trainer.chunks(batch)[:2]:  # gradients take memory from the second one on
        # forward: without the hooks of a sharded model
        errors = trainer.errors(trainer.model.forward, chunk, trainer.influence_quantities[-1])
        ((errors * trainer.weights(chunk)).sum() / batch.total_weight).backward()
    del reserve
