"""The verb `realcustom generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.cli.options import ModelOptions, SettingsOptions
from realcustom.pipeline.output_folder import of_option
from realcustom.sampling import KNOBS, MAX_SEED, SamplingParams

OUTPUT = "outputs/generate"
MAX_ENLARGE = 64


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Description of the picture; contains every --word.  [required]")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="PHOTO", help="Picture of the subject, path or URI; repeat for several; none: only text."
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--word", metavar="WORD", help="The prompt's word that the photo narrows; one for each --image."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help=f"Images, masks over the steps, settings; path or URI; else {OUTPUT}, or the next that is free.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --output.")] = False,
    *,
    models: ModelOptions,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the starting noise.")] = 0,
    sampling: SamplingParams,
    enlarge: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_ENLARGE, metavar="TIMES", help="Repeat each pixel so often, to look at small ones."
        ),
    ] = 1,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="torch device; else a GPU, if there is one.")
    ] = None,
    given: SettingsOptions,
) -> None:
    """Generate images of a prompt with one of its words narrowed to the subject of a photograph. Runs without Ray.

    --config takes the settings.yaml of an earlier result too: what it asked for, with this command's options over it.
    """
    settings = given.resolve("generate", ("base", "adapter", "method.image_encoder"))
    base, adapter = models.base_and_adapter(settings)
    from realcustom.pipeline.generate import check, draw, earlier_request, free_folder, make_request

    values = {
        **{knob.name: getattr(sampling, knob.name) for knob in KNOBS},
        **{
            "prompt": prompt,
            "images": images or (),
            "words": words or (),
            "seed": seed,
            "device": device,
            "enlarge": enlarge,
        },
        "image_encoder": models.image_encoder,
    }
    asked = {**values, **earlier_request(given.config or ())}
    asked |= {name: value for name, value in values.items() if _is_given(context, name)}
    if asked["prompt"] is None:
        raise UsageError("Missing option '--prompt'")
    encoder = settings.method.image_encoder.model
    asked |= {"base": base, "adapter": adapter, "recipes_image_encoder": encoder, "return_masks": bool(asked["images"])}
    request = make_request(asked)
    folder = of_option(output) if output is not None else str(free_folder(Path(OUTPUT)))
    photographs = check(request, folder, overwrite)
    for path in draw(request, photographs, folder, overwrite):
        print(path)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


VERBS = {
    generate: (
        'realcustom generate --image photo.jpg --word star --prompt "a star on grass" --output outputs/star',
        "realcustom generate --base FOLDER --adapter FILE --image photo.jpg --word dog "
        '--prompt "a dog in the snow" --count 4 --seed 7',
        "realcustom generate --config outputs/star/settings.yaml --seed 8 --output outputs/star-8",
    )
}
