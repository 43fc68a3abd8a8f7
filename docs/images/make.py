"""Draw the README's picture with the shipped models: `python docs/images/make.py`.

A row per subject that nobody was trained on: its reference, the influence mask narrowing over the steps, and the images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipeline.drawn_cases import drawn_cases
from realcustom import RealCustomPipeline, Subject
from sprites import zoo_path

ROWS = 4
STEPS = (0, 4, 9, 19)  # of the masks that are shown
SIDE, GAP, TOP = 128, 10, 34  # pixels


def main() -> None:
    """Draw and write `hero.png` beside this file."""
    pipeline = RealCustomPipeline.from_pretrained(
        zoo_path("pipeline"), zoo_path("adapter.safetensors"), zoo_path("image_encoder")
    )
    rows, captions = [], []
    first_of_each_noun = {case.target_word: case for case in reversed(drawn_cases(40))}
    for case in sorted(first_of_each_noun.values(), key=lambda case: case.seed)[:ROWS]:
        subject = Subject(image=case.reference, word=case.target_word)
        generators = [torch.Generator().manual_seed(case.seed + i) for i in range(3)]
        out = pipeline(case.prompt, [subject], generator=generators, num_images_per_prompt=3, return_masks=True)
        assert out.masks is not None and isinstance(out.images, list)
        masks = [
            Image.fromarray((out.masks[step][0][0, 0].numpy() * 255).astype(np.uint8)).convert("RGB") for step in STEPS
        ]
        rows.append([case.reference, *masks, *out.images])
        captions.append(case.prompt)
    width = len(rows[0]) * (SIDE + GAP) + 2 * GAP
    sheet = Image.new("RGB", (width, TOP + len(rows) * (SIDE + TOP)), "white")
    canvas = ImageDraw.Draw(sheet)
    titles = ["reference", *(f"mask, step {step + 1}" for step in STEPS), "image 1", "image 2", "image 3"]
    for column, title in enumerate(titles):
        canvas.text((_left(column), 10), title, fill="#667085", font_size=15)
    for line, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = TOP + line * (SIDE + TOP)
        for column, picture in enumerate(row):
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (_left(column), top))
        canvas.text((GAP, top + SIDE + 5), f"“{caption}”", fill="#1d2129", font_size=16)
    sheet.quantize(128).save(Path(__file__).with_name("hero.png"), optimize=True)


def _left(column: int) -> int:
    return GAP + column * (SIDE + GAP) + (GAP if column else 0)


if __name__ == "__main__":
    main()
