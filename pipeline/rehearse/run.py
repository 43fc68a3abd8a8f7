"""A rehearsal: the models counted against what is published, then made, then every part of a run, one after another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realcustom.errors import UsageError
from realcustom.pipeline.recipes import RunSettings
from realcustom.pipeline.rehearse.folders import count, parameters
from realcustom.pipeline.rehearse.measure import GIB, Measured, in_own_process
from realcustom.pipeline.rehearse.parts import PARTS, write_pictures
from realcustom.pipeline.rehearse.plan import make_plan, model_names
from realcustom.pipeline.rehearse.public import DATA, PublicModel, public_model


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A model of a recipe, counted."""

    name: str
    parameters: int
    cross_attentions: int | None
    against: str  # what it was compared with
    problems: tuple[str, ...]


def rehearse(
    settings: RunSettings, *, steps: int = 1, pictures: int = 2, side: int | None = None, data: Path = DATA
) -> Iterator[str]:
    """Run the rehearsal; yields lines of two Markdown tables: the models, and the parts.

    Args:
        settings: a recipe's. Its models that are folders are used as they are.
        steps: of training and of denoising.
        pictures: that go through the stages, at least 2.
        side: pixels of the pictures that are encoded and drawn; None = as the recipe and its base say.
        data: public configurations.
    Raises:
        UsageError: a model has another number of parameters than published, after all lines; a hub model's configuration is
            not known; the memory does not suffice.
    """
    models = [public_model(name, data) for name in model_names(settings) if not Path(name).is_dir()]
    yield "| model | parameters | text cross-attentions | published |\n|---|---|---|---|"
    problems: list[str] = []
    for model in models:
        for counted in count_model(model):
            problems += counted.problems
            layers = "" if counted.cross_attentions is None else str(counted.cross_attentions)
            yield f"| {counted.name} | {counted.parameters:,} | {layers} | {counted.against} |"
    with tempfile.TemporaryDirectory(prefix="realcustom-rehearse-") as folder:
        plan = make_plan(settings, Path(folder), models, steps, pictures, side)
        write_pictures(plan.folder / "pictures", pictures)
        yield "\n| part | what came out | load, s | work, s | images/s | peak memory, GiB |\n|---|---|---|---|---|---|"
        for part in PARTS:
            yield _line(in_own_process(part, plan))
    if problems:
        raise UsageError(f"rehearse: {'; '.join(problems)}")


def count_model(model: PublicModel) -> Iterator[Counted]:
    """The models of a folder, counted without weights and compared with what is published."""
    for folder, part in model.parts.items():
        if not part.published:
            continue
        made, layers = count(part)
        name = f"{model.name}, {folder}" if folder else model.name
        problems, against = [], []
        for published in part.published:
            found = parameters(made, published.of)
            of = f" {' and '.join(published.of)}" if published.of else ""
            shown = f"{published.parameters:,}" if isinstance(published.parameters, int) else published.parameters
            against.append(f"{shown}{of} ({published.source})")
            if not published.agrees(found):
                problems.append(f"{name}{of} has {found:,} parameters, published are {shown}")
        if layers != part.cross_attentions:
            problems.append(f"{name} has {layers} text cross-attentions, published are {part.cross_attentions}")
        yield Counted(
            name=name,
            parameters=parameters(made),
            cross_attentions=layers,
            against="; ".join(against),
            problems=tuple(problems),
        )


def _line(part: Measured) -> str:
    rate = part.images_per_second
    load, work = (part.seconds, None) if part.load_seconds is None else (part.load_seconds, part.work_seconds)
    memory = f"{part.peak_bytes / GIB:.1f}" + (f", GPU {part.device_bytes / GIB:.1f}" if part.device_bytes else "")
    cells = (
        part.name,
        "; ".join(part.shapes),
        f"{load:.1f}",
        "" if work is None else f"{work:.1f}",
        "" if rate is None else f"{rate:.3g}",
        memory,
    )
    return "| " + " | ".join(cells) + " |"
