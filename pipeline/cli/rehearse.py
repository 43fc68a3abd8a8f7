"""The verb `realcustom rehearse`."""

from __future__ import annotations

from typing import Annotated

import typer

from realcustom.pipeline.cli.options import SettingsOptions

USED = ("base", "method", "preprocess", "train")


def rehearse(
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, and of denoising.")] = 1,
    pictures: Annotated[int, typer.Option(min=2, help="Pictures that go through the stages.")] = 2,
    side: Annotated[
        int | None,
        typer.Option(min=32, help="Pixels of the pictures that are encoded and drawn; else the recipe's own."),
    ] = None,
    *,
    given: SettingsOptions,
) -> None:
    """Run every part of a recipe once with models of the real sizes and random weights; prints shapes, memory and time."""
    settings = given.resolve("rehearse", USED)
    from realcustom.pipeline.rehearse.run import rehearse as run_rehearsal

    for line in run_rehearsal(settings, steps=steps, pictures=pictures, side=side):
        print(line, flush=True)


VERBS = {
    rehearse: (
        "realcustom rehearse",
        "realcustom rehearse --recipe paper_sd15 > outputs/rehearsal.md",
    )
}
