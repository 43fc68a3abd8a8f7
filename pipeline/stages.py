"""Run one or more preprocessing stages, with lines about the results."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from realcustom import storage
from realcustom.errors import require_all
from realcustom.pipeline.cluster import check_address, connected
from realcustom.pipeline.devices import check_stages, require_gpu_node
from realcustom.pipeline.recipes import RunSettings
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.errors import NothingKept
from realcustom.preprocessing.report.nothing import why_little, why_nothing
from realcustom.preprocessing.report.page import not_read_of
from realcustom.preprocessing.run import InProcess, OnRay, check_stage, run_stage
from realcustom.preprocessing.settings import Device, PreprocessSettings
from realcustom.store import Store

logger = logging.getLogger(__name__)


def run_stages(
    stages: Sequence[Stage],
    input: str,
    output: str,
    settings: RunSettings,
    *,
    local: bool = False,
    limit: int | None = None,
    address: str | None = None,
) -> Iterator[str]:
    """Run `stages` one after the other, the first on `input`; yields lines with the result of each.

    The last line of a stage is the directory that it wrote. Ray is started when there is work for it, not before.
    Raises NothingKept after a stage that is complete and kept no row.

    Args:
        local: in this process, without Ray.
        limit: at most this many units of each stage.
        address: of the Ray cluster, as `cluster.connected` takes it.
    """
    if not local:
        check_address(address)
    preprocess = settings.for_stages()
    # a missing model of the last stage must not be found only after days
    require_all(*(partial(check_stage, stage, preprocess, settings.method) for stage in stages))
    check_stages(stages, preprocess, local, address)
    with contextlib.ExitStack() as stack:
        for stage in stages:
            _warn_of_drawings(stage, input, preprocess)
            result = run_stage(
                stage,
                input,
                output,
                preprocess,
                method=settings.method,
                executor=InProcess() if local else OnRay(lambda: _connect(stack, stages, preprocess, address)),
                limit=limit,
            )
            little = why_little(result.report, preprocess) if result.report["kept"] else None
            yield account(stage.name, result.report) + (f"; {little}" if little else "")
            yield result.directory
            if not result.report["kept"] and not result.units_left:
                raise NothingKept(
                    f"{why_nothing(stage.name, result.report, preprocess)}; {result.directory}/aside says why of each row"
                )
            input = result.directory


def _connect(
    stack: contextlib.ExitStack, stages: Sequence[Stage], settings: PreprocessSettings, address: str | None
) -> None:
    stack.enter_context(connected(address))
    if settings.compute.device is Device.CUDA and any(stage.models_of(settings) for stage in stages):
        require_gpu_node("preprocess.compute.device=cuda", "set preprocess.compute.device=cpu")


def _warn_of_drawings(stage: Stage, input: str, settings: PreprocessSettings) -> None:
    """Warn before models that know drawings alone are run on photographs."""
    from realcustom.sprites import ZOO
    from realcustom.sprites.world import SIZE

    models = stage.models_of(settings)
    drawing = [name for name, model in models.items() if Path(model).is_relative_to(ZOO)]
    store = Store(settings.execution.retries)
    if not drawing or stage.open_source is not None or not store.is_dir(input):
        return
    files = [name for name in store.list_names(input) if name.endswith(".parquet")]
    if not files:
        return
    uri = storage.join(input, files[0])
    if not {"width", "height"} <= set(store.call(tables.read_schema, uri).names):
        return
    sizes = store.call(lambda place: tables.read_columns(place, ["width", "height"]), uri).to_pylist()
    shorter = [min(size.values()) for size in sizes]
    usual = median(shorter) if shorter else 0  # one thumbnail makes no drawings of photographs
    if usual > 4 * SIZE:
        logger.warning(
            "%s: %s, the models of the recipe `sprites`, know drawings of %d pixels alone, and half of the pictures of %s have "
            "%d and more: what they say of them means nothing. Another --recipe, or --set, names models for photographs",
            stage.name,
            " and ".join(f"{stage.name}.{name}" for name in drawing),
            SIZE,
            input,
            usual,
        )


def account(name: str, report: dict[str, Any]) -> str:
    """`select: 240 in = 210 kept + 30 dropped (tiny 30) + 0 quarantined; 210 rows written`."""
    parts = [f"{name}: {report['in']} in = {report['kept']} kept"]
    for word in ("dropped", "quarantined"):
        numbers = report[word]
        reasons = f" ({', '.join(f'{reason} {number}' for reason, number in numbers.items())})" if numbers else ""
        parts.append(f" + {sum(numbers.values())} {word}{reasons}")
    return "".join(parts) + f"; {report['rows_out']} rows written" + "".join(f"; {text}" for text in _besides(report))


def _besides(report: dict[str, Any]) -> Iterator[str]:
    """What else is to be said: kept rows without a caption, files that were not read."""
    for note, number in report.get("noted", {}).items():
        yield f"{number} of the kept {note.replace('_', ' ')}"
    lost = report.get("table_rows_without_picture", {}).get("rows", 0)
    if lost:
        yield f"{lost} rows of a table of captions without a picture"
    kinds = not_read_of(report)
    if kinds:
        named = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        yield f"{sum(kinds.values())} files not read: {named}"
