"""Masks from the maps of the step before (`mask.source: previous`): which forwards run, and whose maps they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.config import override
from realcustom.maps import MapRecorder
from realcustom.mask import influence_mask
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"
STEPS = 4


def draw(pipeline: RealCustomPipeline, picture: Picture, **arguments: Any) -> Any:
    given: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent", "return_masks": True} | arguments
    dog = [Subject(image=picture(0), word="dog")]
    return pipeline(PROMPT, dog, generator=torch.Generator().manual_seed(3), **given)


def with_settings(pipeline: RealCustomPipeline, **guidance: Any) -> None:
    changes = {"guidance": guidance, "mask": {"source": "previous"}}
    pipeline.settings = override(pipeline.settings, changes)


def recorded(pipeline: RealCustomPipeline) -> list[tuple[int, slice | None, MapRecorder | None]]:
    """From now on, of each UNet call: its rows, the recorded ones, the recorder."""
    seen: list[tuple[int, slice | None, MapRecorder | None]] = []

    def look(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        recorder = next(iter(named["cross_attention_kwargs"]["conditioning"].recorders), None)
        seen.append((len(positional[0]), None if recorder is None else recorder.rows, recorder))

    pipeline.base.unet.register_forward_pre_hook(look, with_kwargs=True)
    return seen


ALL = slice(0, 1)


EQUAL = {"guidance_scale": 5.0, "subject_guidance_scale": 5.0}  # leaves out the guidance branch of cascade


@pytest.mark.filterwarnings("ignore:.*ignores the prompt")  # weights of 0 are counted too
@pytest.mark.parametrize(
    ("guidance", "reuse", "expected"),
    [
        # the generation branch of two, the guidance branch of three
        ({"mode": "direct"}, None, [(1, ALL), *[(2, slice(1, 2))] * (STEPS - 1), (2, None)]),
        ({"mode": "cascade"}, None, [(1, ALL), (2, None), *[(3, slice(1, 2))] * (STEPS - 2), (3, None)]),
        ({"mode": "direct"}, 2, [(1, ALL), (2, slice(1, 2)), *[(2, None)] * (STEPS - 1)]),
        ({"mode": "direct"}, 1, [(1, ALL), *[(2, None)] * STEPS]),
        ({"mode": "direct", "subject_guidance_scale": 1.0}, None, [(1, ALL), *[(1, slice(0, 1))] * (STEPS - 1), (1, None)]),
        ({"mode": "cascade", **EQUAL}, 2, [(1, ALL), (2, slice(1, 2)), *[(2, None)] * (STEPS - 1)]),
        # of the branches that run none has the text: a guidance pass in each step
        ({"mode": "direct", "subject_guidance_scale": 0.0}, None, [(1, ALL), (1, None)] * STEPS),
        (
            {"mode": "direct", "launches": "separate"},
            2,
            [(1, ALL), (1, None), (1, slice(0, 1)), *[(1, None), (1, None)] * (STEPS - 1)],
        ),
    ],
)  # fmt: skip
def test_forwards_and_launches(
    pipeline: RealCustomPipeline,
    picture: Picture,
    guidance: dict[str, Any],
    reuse: int | None,
    expected: list[tuple[int, slice | None]],
) -> None:
    """Direct: 2n + 1 forwards in n + 1 launches; cascade: 3n in n + 1."""
    with_settings(pipeline, **guidance)
    seen = recorded(pipeline)
    draw(pipeline, picture, mask_reuse_after=reuse)
    assert [(rows, which) for rows, which, _ in seen] == expected


@pytest.mark.parametrize("mode", ["direct", "cascade"])
def test_each_mask_is_made_of_the_maps_of_the_step_before(
    pipeline: RealCustomPipeline, picture: Picture, mode: str
) -> None:
    with_settings(pipeline, mode=mode)
    seen = recorded(pipeline)
    masks = draw(pipeline, picture).masks
    recorders = [recorder for _, _, recorder in seen if recorder is not None]
    made = [influence_mask(recorder.maps, 0.25, pipeline.settings.mask) for recorder in recorders]
    if mode == "cascade":  # the first step's guidance branch is the pass of its own mask
        made.insert(1, made[0])
    assert len(made) == STEPS
    for (mask,), expected in zip(masks, made, strict=True):
        assert torch.equal(mask, expected)


def test_the_first_mask_is_that_of_a_guidance_pass(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """And the recorded rows are those of the generation branch: a map of it equals one recorded when it runs alone."""
    fresh = draw(pipeline, picture)
    with_settings(pipeline)
    previous = draw(pipeline, picture)
    assert torch.equal(fresh.masks[0][0], previous.masks[0][0])
    assert not torch.equal(fresh.masks[2][0], previous.masks[2][0])
    by_launches: list[list[Tensor]] = []
    for launches in ("batched", "separate"):
        with_settings(pipeline, mode="direct", launches=launches)
        seen = recorded(pipeline)
        draw(pipeline, picture, num_inference_steps=2)
        by_launches.append([recorder.maps for _, _, recorder in seen if recorder is not None][1])
    for together, alone in zip(*by_launches, strict=True):
        assert (together - alone).abs().max() <= 1e-5


def test_rows_with_and_without_subjects(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """inv. 7 with masks of the step before: a row is what it is alone."""
    with_settings(pipeline, mode="direct", subject_guidance_scale=3.0, guidance_scale=5.0)
    pipeline.settings = override(pipeline.settings, {"tokens": {"text_mask_mode": "exclude"}})
    dog = [Subject(image=picture(0), word="dog")]
    prompts = [PROMPT, "a cat in the snow", PROMPT]
    subjects = [dog, [], [Subject(image=picture(1), word="grass"), *dog]]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(row) for row in range(3)]
    together: Any = pipeline(prompts, subjects, generator=generators, **arguments).images
    for row in range(3):
        generator = torch.Generator().manual_seed(row)
        alone: Any = pipeline(prompts[row], subjects[row], generator=generator, **arguments).images
        assert (together[row] - alone[0]).abs().max() <= 1e-4, row


def test_self_attention_of_the_step_before(pipeline: RealCustomPipeline, picture: Picture) -> None:
    with_settings(pipeline, mode="direct")
    pipeline.settings = override(pipeline.settings, {"mask": {"self_refine": True}})
    seen = recorded(pipeline)
    out = draw(pipeline, picture)
    assert torch.isfinite(out.images).all()
    for _, _, recorder in seen[:-1]:
        assert recorder is not None and recorder.self_maps is not None
        assert recorder.self_maps.shape == (1, 256, 256)


def test_source_is_a_setting() -> None:
    with pytest.raises(ValueError, match="did you mean 'previous'"):
        override(tiny.tiny_settings(), {"mask": {"source": "previos"}})
