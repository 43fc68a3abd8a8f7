"""The verb `realcustom quickstart`."""

from __future__ import annotations

from typing import Annotated

import typer

from realcustom.pipeline.cli.options import Address, SettingsOptions
from realcustom.pipeline.inputs import local_folder, require_base, require_path
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
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Run the whole system on a synthetic world: corpus, preprocessing, training, serving, evaluation, a page."""
    settings = given.resolve("quickstart", USED)
    require_base(settings.base)
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
