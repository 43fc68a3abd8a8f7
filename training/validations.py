"""Validations and sheets that are made of checkpoints beside the training: which there are to make, and what came of them.

`validations/step-NNNNNNNN.json` is the row of one in the metrics, or has the error that it ended with: neither is made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping

from realcustom import storage
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, prune, step_of
from realcustom.training.job import TrainingJob
from realcustom.training.metrics_file import Row, validation_file, validation_files
from realcustom.training.settings import TrainSettings

logger = logging.getLogger(__name__)

MOST_WAITING = 8  # checkpoints that are kept for their task


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is due; 0 = never."""
    return every > 0 and step % every == 0


def is_apart(settings: TrainSettings, step: int) -> bool:
    """Whether a task of its own validates the checkpoint of a step, or draws with it; the last one's are the workers'."""
    due = is_due(step, settings.val_every) or is_due(step, settings.sample_every)
    return settings.async_validation and due and step < settings.steps


def write_result(output: str, row: Row, store: Store) -> None:
    """Keep what came of the checkpoint of `row["step"]`."""
    store.write(validation_file(output, row["step"]), json.dumps(row).encode())


def read_results(output: str, store: Store, known: Collection[int] = ()) -> Iterator[Row]:
    """What came of the checkpoints, in the order of their steps, but for those of the steps that are `known`."""
    for step, uri in validation_files(output, store).items():
        if step not in known:
            yield json.loads(store.read(uri))


def waiting(job: TrainingJob, store: Store, done: Collection[int]) -> list[str]:
    """uris of the checkpoints that wait for their task, oldest first; those of the steps that are `done` do not."""
    there = {*validation_files(job.output, store), *done}
    uris = list_checkpoints(storage.join(job.output, "checkpoints"), store)
    return [uri for uri in uris if is_apart(job.settings, step_of(uri)) and step_of(uri) not in there]


def skip_oldest(job: TrainingJob, store: Store, done: Collection[int]) -> None:
    """Keep of the checkpoints that wait no more than `MOST_WAITING`: the tasks are slower than the training, or there is no
    room for one. The oldest of all may be in one, and stays.
    """
    for uri in waiting(job, store, done)[1 : 1 - MOST_WAITING]:
        reason = f"more than {MOST_WAITING} checkpoints waited for their validation"
        logger.warning(
            "the checkpoint of step %d is not validated: %s; is there room for a task beside the workers? a larger "
            "train.val_every (or sample_every) asks for fewer",
            *(step_of(uri), reason),
        )
        write_result(job.output, {"step": step_of(uri), "error": reason}, store)


def prune_all(job: TrainingJob, losses: Mapping[str, float], done: Collection[int], store: Store) -> None:
    """Remove the checkpoints, and their adapters, that neither wait nor are kept.

    Args:
        losses: of validations, by the step of a checkpoint.
        done: steps whose checkpoints do not wait for a task.
    """
    settings = job.settings
    kept = [step_of(uri) for uri in waiting(job, store, done)] if settings.async_validation else []
    for folder in ("checkpoints", "adapters"):
        place = storage.join(job.output, folder)
        prune(place, settings.keep_checkpoints, settings.keep_best, losses, store, kept)
