"""The verb `realcustom export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.inputs import require_path
from realcustom.pipeline.output_folder import of_option
from realcustom.storage import absolute, is_remote


def export(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Adapter checkpoint; path or URI.")],
    output: Annotated[
        str, typer.Option(metavar="FOLDER", help="New folder, path or URI, in the layout of a model hub.")
    ],
    model_card: Annotated[
        bool, typer.Option("--model-card", help="Add README.md: what it is, how to use it, what it was made with.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Put the folder onto the hub as this repository; needs a token."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in --output.")] = False,
) -> None:
    """Write an adapter as a folder to pass on: the adapter, its settings, and a custom_pipeline file for diffusers."""
    require_path(adapter, "ADAPTER", "adapter checkpoint")
    folder = of_option(output)
    if push is not None and is_remote(folder):
        raise UsageError(f"--push: what goes onto the hub is a folder of this machine, and --output is {folder}")
    from realcustom.pipeline.export import folder as exported
    from realcustom.pipeline.export import push as hub

    exported.check(folder, overwrite)
    if push is not None:
        hub.check(push)
    name = (push or absolute(folder)).rpartition("/")[2]
    for path in exported.write(adapter, folder, name, card=model_card, overwrite=overwrite):
        print(path)
    if push is not None:
        print(hub.push(Path(folder), push))


VERBS = {
    export: (
        "realcustom export outputs/train/adapter.safetensors --output outputs/my-adapter --model-card",
        "realcustom export outputs/train/adapter.safetensors --output outputs/my-adapter --model-card --push me/my-adapter",
    )
}
