"""A trial of some units of one or more stages in this process, without output: estimates the time and cost of all units."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from realcustom import storage
from realcustom.pipeline.devices import check_stages
from realcustom.pipeline.recipes import RunSettings
from realcustom.preprocessing.catalogue import SELECT
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimate for a stage's whole input, from the units that were tried."""

    units: int  # of the whole input
    startup: float  # seconds of one worker before its first unit: planning, models
    seconds: float  # of one worker for all units
    bytes: int  # written


def dry_run(
    stages: Sequence[Stage], input: str, settings: RunSettings, *, units: int, hourly_price: float | None = None
) -> Iterator[str]:
    """Try `units` units of each stage, each on the output of the one before; yields lines with the estimates.

    Writes only to a temporary folder, which is removed.

    Args:
        hourly_price: of one worker.
    """
    check_stages(stages, settings.for_stages(), local=True, address=None)
    total = None
    hours = 0.0
    with tempfile.TemporaryDirectory(prefix="realcustom-dry-run-") as root:
        for stage in stages:
            result = run_stage(
                stage, input, root, settings.for_stages(), method=settings.method, executor=InProcess(), limit=units
            )
            total = total or result.units_run + result.units_left
            estimate = estimate_of(result, total)
            hours += (estimate.startup + estimate.seconds) / 3600
            yield _line(stage, result, estimate, hourly_price)
            input = result.directory
    if len(stages) > 1:
        yield f"together: {_number(hours)} worker hours{_price(hours, hourly_price)}"


def estimate_of(result: StageResult, total: int) -> Estimate:
    """The estimate for all `total` units from those that were tried.

    The first one loads models and is left out if possible.
    """
    if not result.unit_seconds:
        return Estimate(units=total, startup=result.seconds, seconds=0.0, bytes=0)
    steady = result.unit_seconds[1:] or result.unit_seconds
    per_unit = sum(steady) / len(steady)
    startup = max(0.0, result.seconds - per_unit * len(result.unit_seconds))
    written = sum(entry.size for entry in storage.list_files(result.directory))
    tried = len(result.unit_seconds)
    return Estimate(units=total, startup=startup, seconds=per_unit * total, bytes=written * total // tried)


def _line(stage: Stage, result: StageResult, estimate: Estimate, hourly_price: float | None) -> str:
    hours = (estimate.startup + estimate.seconds) / 3600
    rows = result.report["in"]
    tried = f"{stage.name}: {result.units_run} of {estimate.units} units tried, {rows} rows in {result.seconds:.1f} s"
    note = " (more for duplicates, which are looked for in all units at once)" if stage is SELECT else ""
    return (
        f"{tried}; all: {estimate.startup:.1f} s to start and {estimate.seconds:.0f} s of work on one worker{note}, "
        f"{_number(hours)} worker hours{_price(hours, hourly_price)}, about {_size(estimate.bytes)} written"
    )


def _price(hours: float, hourly_price: float | None) -> str:
    return f" = {_number(hours * hourly_price)} at {hourly_price:g} an hour" if hourly_price is not None else ""


def _number(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _size(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
