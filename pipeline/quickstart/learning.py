"""How similarity rises while an adapter is trained: the adapters that a run saved on its way, measured as the table is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realcustom import storage
from realcustom.evaluation.generators import PipelineGenerator
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.table import Case, Judge, Row, Setting, evaluate
from realcustom.store import Store

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline

logger = logging.getLogger(__name__)

HALVINGS = 3  # of the last step: adapters that are measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An adapter that was saved after `step` steps, with its row of the table."""

    step: int
    row: Row


def saved_on_the_way(output: str, steps: int) -> dict[int, str]:
    """The adapters of a training run that are measured, by their step, fewest first: after an eighth of the steps, a
    quarter and a half, where the run saved one then."""
    from realcustom.training.checkpoints import file_name  # imports torch

    places = {
        step: storage.join(output, "adapters", file_name(step)) for k in range(HALVINGS, 0, -1) if (step := steps >> k)
    }
    return {step: place for step, place in places.items() if Store().exists(place)}


def measure(
    name: str, pipeline: RealCustomPipeline, cases: Sequence[Case], judge: Judge, settings: EvaluateSettings
) -> Row:
    """The method's row of the table for the adapter of `pipeline`, drawn in this process; `name` is its name in the log."""

    def show(setting: Setting, done: int, total: int) -> None:
        logger.info("%s: %d/%d", name, done, total)

    generator = PipelineGenerator(pipeline=pipeline, num_inference_steps=settings.num_inference_steps)
    table = evaluate(cases, generator, judge, settings, rows=(Setting.SUBJECT_WITH_MASK,), progress=show)
    row = table.rows[0]
    logger.info("%s: similarity %.3f", name, row.similarity.mean)
    return row
