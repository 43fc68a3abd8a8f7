"""Steps of a phase over all units: each a directory of units below `global/`, planned and done again as a stage's units are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from realcustom import storage
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.executors import Executor, InProcess
from realcustom.preprocessing.engine.plan import Plan, make_plan
from realcustom.preprocessing.engine.progress import Progress
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.engine.worker import StageJob, Work


def step_uri(directory: str, step: str) -> str:
    """The directory of a step. `directory` is the stage's."""
    return storage.join(directory, "global", step)


def run_step(
    step: str, load: Callable[[StageJob], Work], units: Sequence[Unit], job: StageJob, executor: Executor
) -> list[Unit]:
    """Do the open units of a step; its outputs as the next step's inputs, in the order of `units`."""
    job = replace(job, load=load, directory=step_uri(job.directory, step), reads_table=False)
    directory = job.stage_directory()
    present = directory.rows_present()
    plan = make_plan(units, directory.manifests(), present)
    clear(directory, plan, present, units)
    progress = Progress(f"{job.name}, {step}", len(units), len(plan.done))
    # a single unit runs here: Ray would take seconds to start
    where = InProcess() if len(plan.todo) == 1 and not job.models else executor
    for outcome in where.run(job, plan.todo):
        progress.unit_done(outcome.counts)
    outputs = {manifest.unit: manifest.output for manifest in directory.manifests()}
    return [_output(number, unit, outputs[unit.name], directory) for number, unit in enumerate(units)]


def groups_of_output(unit: Unit, job: StageJob) -> list[tuple[int, int]]:
    """Label and length of each row group of a step's output, given as the next step's input."""
    return job.store.call(tables.read_groups, unit.files[0].uri)


def clear(directory: StageDirectory, plan: Plan, present: Collection[str], units: Sequence[Unit]) -> None:
    """Remove units that are out of date, and the rest of a removal that was killed."""
    directory.remove(plan.stale)
    directory.remove(plan.gone, with_outputs=True)
    names = {unit.name for unit in units}
    if not names.issuperset(present):
        directory.remove_strays(names)


def _output(number: int, unit: Unit, output: str, directory: StageDirectory) -> Unit:
    file = InputFile(name=f"{unit.name}.parquet", uri=directory.rows_uri(unit.name), size=0, number=number)
    return Unit(name=unit.name, identity=output, kind=UnitKind.PART, files=(file,), bits=unit.bits)
