"""The shipped CLIP finds the picture that a caption means, also among pictures with defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from realcustom.sprites import ZOO, clip, zoo_path
from realcustom.sprites.text import tokenize
from realcustom.sprites.world import Split, draw, scene

FIRST = 3 * 10**9 + 10**6  # apart from the scenes that others measure on
CHOICES = 32


@pytest.mark.skipif(not (ZOO / "clip").is_dir(), reason="CLIP is not trained yet")
@pytest.mark.parametrize(("defect", "floor"), [(0.0, 0.8), (0.45, 0.7)])
def test_shipped_clip_finds_the_picture_of_a_caption(defect: float, floor: float) -> None:
    folder = zoo_path("clip")
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    found = []
    for group in range(10):
        numbers = range(FIRST + group * CHOICES, FIRST + (group + 1) * CHOICES)
        scenes = [scene(Split.EVALUATION, number, second=0.2) for number in numbers]
        pictures = [
            Image.fromarray(clip.picture_with_defect(number, draw(item).image, defect)[0])
            for number, item in zip(numbers, scenes, strict=True)
        ]
        ids = tokenize(tokenizer, [item.caption for item in scenes])
        with torch.inference_mode():
            pixel_values = processor(pictures, return_tensors="pt").pixel_values
            best = model(input_ids=ids, pixel_values=pixel_values).logits_per_text.argmax(1).tolist()
        said = [clip.content(item) for item in scenes]
        found += [said[choice] == said[row] for row, choice in enumerate(best)]  # equal captions count as right
    assert np.mean(found) >= floor
