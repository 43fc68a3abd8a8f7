"""The verb `realcustom quickstart`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from realcustom.errors import require_all
from realcustom.pipeline.cli.options import Address, EncoderOptions, SettingsOptions
from realcustom.pipeline.inputs import local_folder, require_base, require_model, require_path
from realcustom.store import check_writable

USED = ("base", "adapter", "method", "preprocess", "train", "serve", "evaluate")


def quickstart(
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Page, report and all files that they use.")
    ] = "outputs/quickstart",
    pictures: Annotated[int, typer.Option(min=48, help="Number of pictures of the synthetic corpus.")] = 240,
    initial_adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Adapter to start the training from; else random weights.")
    ] = None,
    *,
    models: EncoderOptions,
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Run the whole system on a synthetic world: corpus, preprocessing, training, serving, evaluation, a page.

    --base and --image-encoder are for models of this world, trained anew; the shipped adapter is then left out.
    """
    over = models.settings()
    settings = given.resolve("quickstart", USED, {**over, "adapter": None} if over else None)
    require_all(
        partial(require_base, settings.base),
        partial(require_model, settings.method.image_encoder.model, "--image-encoder"),
    )
    for name, file in (("adapter", settings.adapter), ("--initial-adapter", initial_adapter)):
        if file is not None:
            require_path(file, name, "adapter checkpoint")
    folder = local_folder(output)
    check_writable(str(folder))
    from realcustom.pipeline.quickstart.run import run

    run(folder, settings, pictures=pictures, initial_adapter=initial_adapter, address=address)


VERBS = {
    quickstart: (
        "realcustom quickstart",
        "realcustom quickstart --set train.steps=600 --output outputs/longer",
    )
}
