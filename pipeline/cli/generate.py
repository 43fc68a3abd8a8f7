"""The verb `realcustom generate`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from realcustom.pipeline.cli.options import ModelOptions, SettingsOptions
from realcustom.pipeline.inputs import local_folder
from realcustom.sampling import MAX_SEED, SamplingParams


def generate(
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Description of the picture; contains every --word.")],
    images: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="PHOTO", help="Picture of the subject; repeat for several; none: only text."),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--word", metavar="WORD", help="The prompt's word that the photo narrows; one for each --image."),
    ] = None,
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Images, masks over the steps, settings.")
    ] = "outputs/generate",
    *,
    models: ModelOptions,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the starting noise.")] = 0,
    sampling: SamplingParams,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="torch device; else a GPU, if there is one.")
    ] = None,
    given: SettingsOptions,
) -> None:
    """Generate images of a prompt with one of its words narrowed to the subject of a photograph. Runs without Ray."""
    settings = given.resolve("generate", ("base", "adapter", "method.image_encoder"))
    base, adapter = models.base_and_adapter(settings)
    from realcustom.pipeline.generate import Request, check, draw

    request = Request(
        prompt=prompt,
        images=tuple(images or ()),
        words=tuple(words or ()),
        base=base,
        adapter=adapter,
        image_encoder=models.image_encoder,
        recipes_image_encoder=settings.method.image_encoder.model,
        sampling=dataclasses.replace(sampling, seed=seed, return_masks=bool(images)),
        device=device,
    )
    folder = local_folder(output)
    photographs = check(request, folder)
    for path in draw(request, photographs, folder):
        print(path)


VERBS = {
    generate: (
        'realcustom generate --image photo.jpg --word star --prompt "a star on grass" --output outputs/star',
        "realcustom generate --base FOLDER --adapter FILE --image photo.jpg --word dog "
        '--prompt "a dog in the snow" --count 4 --seed 7',
    )
}
