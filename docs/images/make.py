"""Draw the pictures of the README and of the gallery with the shipped models: `python docs/images/make.py`.

All subjects are identities that nobody was trained on. Writes PNG files beside this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from realcustom import RealCustomPipeline, Subject
from realcustom.evaluation.table import Case
from realcustom.pipeline.quickstart.cases import drawn_cases
from realcustom.sprites import zoo_path

HERE = Path(__file__).parent
SIDE, GAP, LINE = 128, 10, 30  # pixels: of a picture, between pictures, of a line of text
MASK_STEPS = (0, 4, 9, 19)  # of the 20 masks, those of the README's picture
NARROWING = (0, 1, 2, 4, 6, 9, 12, 15, 19)  # those of the gallery's
PROMPTS = ("at the left on grass", "at the top on water", "at the right on lava", "at the bottom on snow")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of pictures with what was asked under it."""

    pictures: Sequence[Image.Image]
    text: str = ""


def draw_sheet(path: Path, titles: Sequence[str], rows: Sequence[Row]) -> None:
    """Rows of pictures under their columns' titles, as a PNG. The first column stands apart."""
    under = LINE if any(row.text for row in rows) else GAP
    width = _left(len(titles))
    sheet = Image.new("RGB", (width, LINE + len(rows) * (SIDE + under)), "white")
    canvas = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        canvas.text((_left(column), 8), title, fill="#667085", font_size=15)
    for line, row in enumerate(rows):
        top = LINE + line * (SIDE + under)
        for column, picture in enumerate(row.pictures):
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (_left(column), top))
        canvas.text((GAP, top + SIDE + 4), row.text, fill="#1d2129", font_size=16)
    sheet.save(path, optimize=True)
    print(path.name)


def _left(column: int) -> int:
    return GAP + column * (SIDE + GAP) + (GAP if column else 0)


def asked(
    pipeline: RealCustomPipeline, case: Case, prompt: str, count: int = 1, use_mask: bool = True
) -> list[Image.Image]:
    """Images of a prompt with the case's subject, from the case's seed on."""
    subject = Subject(image=case.reference, word=case.target_word)
    generators = [torch.Generator().manual_seed(case.seed + i) for i in range(count)]
    images = pipeline(prompt, [subject], generator=generators, num_images_per_prompt=count, use_mask=use_mask).images
    assert isinstance(images, list)
    return images


def masks_of(pipeline: RealCustomPipeline, case: Case, steps: Iterable[int]) -> list[Image.Image]:
    """The influence mask that acts in some of the steps, white where the subject does."""
    subject = Subject(image=case.reference, word=case.target_word)
    generator = torch.Generator().manual_seed(case.seed)
    masks = pipeline(case.prompt, [subject], generator=generator, return_masks=True).masks
    assert masks is not None
    return [Image.fromarray((masks[step][0][0, 0].numpy() * 255).astype(np.uint8)) for step in steps]


def hero(pipeline: RealCustomPipeline, cases: Sequence[Case]) -> None:
    """The README's picture: reference, mask over the steps, three images."""
    titles = ("reference", *(f"mask, step {step + 1}" for step in MASK_STEPS), "image 1", "image 2", "image 3")
    rows = [
        Row(
            [case.reference, *masks_of(pipeline, case, MASK_STEPS), *asked(pipeline, case, case.prompt, 3)],
            f"“{case.prompt}”",
        )
        for case in cases[:2]
    ]
    draw_sheet(HERE / "hero.png", titles, rows)


def mask_or_not(pipeline: RealCustomPipeline, cases: Sequence[Case]) -> None:
    """The same starting noise: text alone, the subject acting everywhere, and where its mask lets it."""
    rows = []
    for case in cases:
        text = pipeline(case.prompt, generator=torch.Generator().manual_seed(case.seed)).images
        assert isinstance(text, list)
        everywhere = asked(pipeline, case, case.prompt, use_mask=False)
        masked = asked(pipeline, case, case.prompt)
        rows.append(Row([case.reference, *text, *everywhere, *masked, case.oracle], f"“{case.prompt}”"))
    draw_sheet(HERE / "mask.png", ("reference", "text alone", "no mask", "masked", "as drawn"), rows)


def narrowing(pipeline: RealCustomPipeline, cases: Sequence[Case]) -> None:
    """The mask over the steps, and the image that came of it."""
    rows = [
        Row([case.reference, *masks_of(pipeline, case, NARROWING), *asked(pipeline, case, case.prompt)])
        for case in cases
    ]
    draw_sheet(HERE / "narrowing.png", ("reference", *(f"step {step + 1}" for step in NARROWING), "image"), rows)


def prompts(pipeline: RealCustomPipeline, cases: Sequence[Case]) -> None:
    """One subject a row, one prompt a column."""
    rows = [
        Row(
            [
                case.reference,
                *(asked(pipeline, case, f"a {case.target_word} {asked_for}")[0] for asked_for in PROMPTS),
            ],
            f"“a {case.target_word} …”",
        )
        for case in cases
    ]
    draw_sheet(HERE / "prompts.png", ("reference", *(text.replace("at the", "…") for text in PROMPTS)), rows)


def main() -> None:
    """Draw all of them."""
    pipeline = RealCustomPipeline.from_pretrained(
        zoo_path("pipeline"), zoo_path("adapter.safetensors"), zoo_path("image_encoder")
    )
    first_of_noun = {case.target_word: case for case in reversed(drawn_cases(40))}
    cases = sorted(first_of_noun.values(), key=lambda case: case.seed)
    hero(pipeline, cases)
    mask_or_not(pipeline, cases)
    narrowing(pipeline, cases[2:6])
    prompts(pipeline, cases)


if __name__ == "__main__":
    main()
