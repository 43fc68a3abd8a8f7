"""A training run in an evaluation: a row for each adapter that it saved; on the page, its curves and sheets beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from realcustom import storage
from realcustom.evaluation.methods import ORACLE, TEXT_ALONE, name_and_place
from realcustom.evaluation.results import Results
from realcustom.pipeline.chart import loss_svg, measured_svg
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, step_of
from realcustom.training.facts import read_facts

SHEETS = 5  # sample sheets that are shown, evenly spread over the steps


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run that is given in the place of an adapter."""

    name: str
    place: str  # folder or URI
    adapters: dict[int, str]  # by step, ascending

    def row(self, step: int) -> str:
        """The name of a row of the table."""
        return f"{self.name}@{step}"


def training_runs(given: Sequence[str], store: Store) -> list[TrainingRun]:
    """The training runs among `PLACE` or `NAME=PLACE`: places with adapters in `adapters/`. A run's own name is its folder's."""
    return [run for text in given if (run := _run(text, store)) is not None]


def with_runs(given: Sequence[str], store: Store) -> Iterator[str]:
    """What is given, each training run as `NAME@STEP=FILE` for each adapter that it saved."""
    for text in given:
        run = _run(text, store)
        if run is None:
            yield text
        else:
            yield from (f"{run.row(step)}={file}" for step, file in run.adapters.items())


def _run(text: str, store: Store) -> TrainingRun | None:
    name, place = name_and_place(text)
    if place.endswith(".safetensors"):
        return None
    saved = {step_of(file): file for file in list_checkpoints(storage.join(place, "adapters"), store)}
    return TrainingRun(name=name, place=place, adapters=saved) if saved else None


def section(run: TrainingRun, results: Results, address: Any, store: Store) -> dict[str, Any]:
    """What the page shows of a run.

    Args:
        address: of a picture's URI, from the page.
    """
    facts, charts = read_facts(run.place, store), []
    for metric in results.metrics:
        values = {row: results.cells[row, metric].value for row in results.methods}
        learned = [(step, value) for step in run.adapters if (value := values.get(run.row(step))) is not None]
        levels = [(row, value.mean) for row in (TEXT_ALONE, ORACLE) if (value := values.get(row)) is not None]
        if learned:
            charts.append((metric, Markup(measured_svg(metric, learned, levels))))
    losses = [(row["step"], row["loss"]) for row in facts.training if row["loss"] is not None]
    held_out = [(row["step"], row["val_loss"]) for row in facts.validation]
    if losses and held_out:
        charts.append(("loss: thin, of training; dots, of held-out records", Markup(loss_svg(losses, held_out))))
    names = facts.sheets
    chosen = dict.fromkeys(round(k * (len(names) - 1) / (SHEETS - 1)) for k in range(SHEETS)) if names else ()
    sheets = [
        (step_of(names[k].removesuffix(".png")), address(storage.join(run.place, "samples", names[k]))) for k in chosen
    ]
    return {"name": run.name, "charts": charts, "sheets": sheets}
