"""The verb `realcustom train`."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Annotated

import typer

from realcustom.errors import UsageError, require_all
from realcustom.pipeline.cli.options import Address, EncoderOptions, SettingsOptions
from realcustom.pipeline.cluster import connected
from realcustom.pipeline.devices import check_training, require_gpu_node
from realcustom.pipeline.inputs import find_records, require_base, require_model, require_path
from realcustom.pipeline.recipes import RunSettings
from realcustom.store import check_writable
from realcustom.training.job import split_parent


def train(
    records: Annotated[
        str, typer.Option("--input", metavar="RECORDS", help="Directory of encode, the root of all stages, or a table.")
    ],
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Adapter, metrics, samples, checkpoints; path or URI.")
    ] = None,
    initial_adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Adapter whose weights training starts from; else new ones.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN[@STEP]", help="Begin at a checkpoint of another run, with any settings that fit."
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="One worker in this process, without Ray.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: count the records and the memory, measure a step here.")
    ] = False,
    hourly_price: Annotated[
        float | None, typer.Option(min=0, help="With --dry-run: of one worker, for the cost of the whole run.")
    ] = None,
    *,
    models: EncoderOptions,
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Train adapter and scoring module on training records; an unfinished run in OUTPUT is continued."""
    settings = given.resolve("train", ("base", "method", "train"), models.settings())
    records = find_records(records)
    require_all(
        partial(require_base, settings.base),
        partial(require_model, settings.method.image_encoder.model, "--image-encoder"),
        *(
            [partial(require_path, initial_adapter, "--initial-adapter", "adapter checkpoint")]
            if initial_adapter
            else []
        ),
    )
    if parent is not None:
        require_path(split_parent(parent)[0], "--from", "training run")
    if dry_run:
        _try(settings, records, initial_adapter, parent, hourly_price)
        return
    if hourly_price is not None:
        raise UsageError("--hourly-price is for --dry-run: it prices the run that --dry-run estimates")
    if output is None:
        raise UsageError("--output DIR is missing: where the adapter, metrics and checkpoints go")
    check_writable(output)
    check_training(settings.train, local, address)
    with contextlib.nullcontext() if local else connected(address):
        if settings.train.use_gpu and not local:
            require_gpu_node("train.use_gpu=true", "set train.use_gpu=false")
        from realcustom.training.run import train as run_training

        result = run_training(
            records=records,
            output=output,
            base=settings.base,
            image_encoder=None,
            method=settings.method,
            settings=settings.train,
            initial_adapter=initial_adapter,
            local=local,
            parent=parent,
        )
    print(f"validation loss {result.loss_before:.4f} -> {result.loss_after:.4f}")
    print(f"adapter {result.adapter}")
    print(f"sha256 {result.sha256}")


def _try(
    settings: RunSettings, records: str, initial_adapter: str | None, parent: str | None, hourly_price: float | None
) -> None:
    check_training(settings.train, local=True, address=None)
    from realcustom.training.trial import estimate

    lines = estimate(
        records,
        settings.base,
        settings.method,
        settings.train,
        initial_adapter=initial_adapter,
        parent=parent,
        hourly_price=hourly_price,
    )
    for line in lines:
        print(line, flush=True)


VERBS = {
    train: (
        "realcustom train --input outputs/records/encode@0123456789ab --output outputs/train",
        "realcustom train --input outputs/records/encode@0123456789ab --dry-run --hourly-price 2.5",
        "realcustom train --input outputs/records/encode@0123456789ab --from outputs/train@500 --output outputs/slower "
        "--set train.lr=1e-5",
        "realcustom train --input s3://bucket/encode@0123456789ab --output s3://bucket/train --set train.lr=3e-5",
    )
}
