"""The verb `realcustom generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realcustom.pipeline.cli import options
from realcustom.pipeline.cli.options import DEFAULT_RECIPE, example, settings_of
from realcustom.pipeline.inputs import base_and_adapter

EPILOG = example(
    'realcustom generate --image photo.jpg --word star --prompt "a star on grass" --output outputs/star',
    "realcustom generate --base FOLDER --adapter FILE --image photo.jpg --word dog "
    '--prompt "a dog in the snow" --count 4 --seed 7',
)


def generate(
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the picture shows; holds every --word.")],
    images: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="PHOTO", help="Picture of the subject; repeat for several; none: text alone."),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--word", metavar="WORD", help="The prompt's word that the photo narrows; one for each --image."),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Images, masks over the steps, settings.")] = Path(
        "outputs/generate"
    ),
    base: options.Base = None,
    adapter: options.Adapter = None,
    image_encoder: options.ImageEncoder = None,
    count: Annotated[int, typer.Option(min=1, help="Images; image i is drawn from seed + i.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the starting noise.")] = 0,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; else the base model's own.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; else the base model's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; else as the adapter says.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Weight of the text; else as the adapter says.")] = None,
    subject_guidance_scale: Annotated[
        float | None, typer.Option(help="Weight of the subject; else as the adapter says.")
    ] = None,
    influence_scope: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Part of the picture the subject acts on; else as the adapter says."),
    ] = None,
    influence_quantity: Annotated[
        float | None, typer.Option(min=0, max=1, help="Part of its features that act; else as the adapter says.")
    ] = None,
    no_mask: Annotated[bool, typer.Option("--no-mask", help="Let the subject act everywhere, for comparison.")] = False,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the picture should not show.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="torch device; else a GPU where there is one.")
    ] = None,
    recipe: options.Recipe = DEFAULT_RECIPE,
    config: options.ConfigFiles = None,
    sets: options.Sets = None,
    print_config: options.PrintConfig = False,
) -> None:
    """Draw a prompt with one of its words narrowed to the subject of a photograph. Runs without Ray."""
    settings = settings_of(recipe, config, sets, print_config, "generate", ("base", "adapter", "method.image_encoder"))
    base, adapter = base_and_adapter(settings, base, adapter)
    from realcustom.pipeline.generate import Request, check, draw

    request = Request(
        prompt=prompt,
        images=tuple(images or ()),
        words=tuple(words or ()),
        base=base,
        adapter=adapter,
        image_encoder=image_encoder,
        recipes_image_encoder=settings.method.image_encoder.model,
        count=count,
        seed=seed,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        subject_guidance_scale=subject_guidance_scale,
        influence_scope=influence_scope,
        influence_quantity=influence_quantity,
        use_mask=not no_mask,
        negative_prompt=negative_prompt,
        device=device,
    )
    photographs = check(request, output)
    for path in draw(request, photographs, output):
        print(path)
