"""The verbs `realcustom inspect`, `realcustom convert` and `realcustom schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.inputs import require_base
from realcustom.store import check_writable


def convert(
    weights: Annotated[Path, typer.Argument(metavar="FILE", help="The released RealCustom++ weights, a .pth file.")],
    base: Annotated[
        str, typer.Option(metavar="FOLDER|HUB_ID", help="SDXL model in diffusers' format to use them with.")
    ],
    output: Annotated[str, typer.Option(metavar="FILE", help="Adapter checkpoint to write; path or URI.")],
    image_encoder: Annotated[
        str | None, typer.Option(metavar="SIGLIP,DINOV2", help="Folders or hub ids, instead of the preset's.")
    ] = None,
) -> None:
    """Turn the released RealCustom++ weights into an adapter; every name and shape is checked, no code in it is run."""
    require_base(base)
    _check_file(output)
    from realcustom.checkpoint import save_adapter
    from realcustom.released import convert_released

    adapter = convert_released(weights, base, image_encoder)
    print(f"adapter {output}: {len(adapter.tensors)} tensors")
    print(f"sha256 {save_adapter(output, adapter)}")


def inspect(
    target: Annotated[str, typer.Argument(metavar="ADAPTER|RUN|STAGE_DIR|RECORDS|zoo", help="What to describe.")],
    images: Annotated[int, typer.Option(min=1, help="For zoo: drawings to measure on.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="For zoo: other seeds give other drawings.")] = 0,
    sheet: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Of a stage or records: write rows as pictures; path or URI."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=500, help="With --html: rows to show, spread over all.")] = 48,
) -> None:
    """Describe an adapter, a training run, a stage's output or a table of records; `zoo` measures the shipped models."""
    if sheet is not None and (target == "zoo" or target.endswith(".safetensors")):
        raise UsageError(f"--html shows the rows of a stage's output or of records as pictures, and {target} has none")
    if sheet is not None:
        _check_file(sheet)
    from realcustom.pipeline.inspection import describe

    for line in describe(target, images, seed):
        print(line, flush=True)
    if sheet is not None:
        from realcustom.preprocessing.report.sheet import write_sheet

        print(write_sheet(target, sheet, rows))


def schema() -> None:
    """Print a JSON schema of the settings, by which editors complete and check a --config file."""
    from realcustom.pipeline.schema import settings_schema

    print(json.dumps(settings_schema(), indent=1, ensure_ascii=False))


def _check_file(uri: str) -> None:
    """Raise UsageError where no file can be written."""
    check_writable(uri.rpartition("/")[0] or ("/" if uri.startswith("/") else "."))


VERBS = {
    convert: (
        "realcustom convert RealCustom_highres.pth --base stabilityai/stable-diffusion-xl-base-1.0 "
        "--output adapter.safetensors",
    ),
    inspect: (
        "realcustom inspect adapter.safetensors",
        "realcustom inspect outputs/train",
        "realcustom inspect outputs/records/select@0123456789ab --html outputs/select.html",
        "realcustom inspect zoo",
    ),
    schema: ("realcustom schema > settings.schema.json",),
}
