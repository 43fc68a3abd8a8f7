"""The verb `realcustom quickstart`."""

from __future__ import annotations

from typing import Annotated

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.cli.options import Address, SettingsOptions
from realcustom.pipeline.inputs import local_folder, require_base, require_path
from realcustom.store import check_writable

USED = ("base", "adapter", "method", "preprocess", "train", "serve", "evaluate")


def quickstart(
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Page, report and all files that they use.")
    ] = "outputs/quickstart",
    pictures: Annotated[int, typer.Option(min=48, help="Number of pictures of the synthetic corpus.")] = 240,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train from new weights, not the shipped ones.")
    ] = False,
    *,
    given: SettingsOptions,
    address: Address = None,
) -> None:
    """Run the whole system on a synthetic world: corpus, preprocessing, training, serving, evaluation, a page."""
    settings = given.resolve("quickstart", USED)
    require_base(settings.base)
    if not from_scratch:
        if settings.adapter is None:
            raise UsageError(
                f"recipe {given.recipe} has no adapter to start from: give --from-scratch, or --set adapter=FILE"
            )
        require_path(settings.adapter, "adapter", "adapter checkpoint")
    folder = local_folder(output)
    check_writable(str(folder))
    from realcustom.pipeline.quickstart.run import run

    run(folder, settings, pictures=pictures, from_scratch=from_scratch, address=address)


VERBS = {
    quickstart: (
        "realcustom quickstart",
        "realcustom quickstart --from-scratch --set train.lr=3e-3 --output outputs/scratch",
    )
}
