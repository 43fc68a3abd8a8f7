"""The verb `realcustom train`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from realcustom.pipeline.cli.options import Address, SettingsOptions
from realcustom.pipeline.cluster import connected
from realcustom.pipeline.inputs import require_base, require_path, require_records
from realcustom.store import check_writable


def train(
    records: Annotated[str, typer.Option("--input", metavar="RECORDS", help="Training records: folder, path or URI.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Adapter, metrics, samples, checkpoints; path or URI.")],
    initial_adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Adapter whose weights training starts from; else new ones.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|HUB_ID", help="Diffusion model in diffusers' format, instead of the recipe's."),
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="Instead of the recipe's method.image_encoder.model.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="One worker in this process, without Ray.")] = False,
    *,
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Train adapter and scoring module on training records; an unfinished run in OUTPUT is continued."""
    settings = given.resolve("train", ("base", "method", "train"))
    base = base or settings.base
    require_records(records)
    require_base(base)
    if initial_adapter is not None:
        require_path(initial_adapter, "--initial-adapter", "adapter checkpoint")
    check_writable(output)
    with contextlib.nullcontext() if local else connected(address):
        from realcustom.training.run import train as run_training

        result = run_training(
            records=records,
            output=output,
            base=base,
            image_encoder=image_encoder,
            method=settings.method,
            settings=settings.train,
            initial_adapter=initial_adapter,
            local=local,
        )
    print(f"validation loss {result.loss_before:.4f} -> {result.loss_after:.4f}")
    print(f"adapter {result.adapter}")
    print(f"sha256 {result.sha256}")


VERBS = {
    train: (
        "realcustom train --input outputs/records/encode@0123456789ab --output outputs/train",
        "realcustom train --input s3://bucket/encode@0123456789ab --output s3://bucket/train --set train.lr=3e-5",
    )
}
