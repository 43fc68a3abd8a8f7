"""RealCustom++ in whole calls: on SDXL as released, with the paper's cascade, on SD 1.x; several subjects and words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.config import override, to_dict
from realcustom.presets import paper_sd15, released_sdxl
from realcustom.settings import MethodSettings
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog and a cat on grass"
STEPS = 4
RELEASED = {  # the preset but for what belongs to encoders of another size
    name: {key: value for key, value in section.items() if key not in ("high_res", "model")}
    if isinstance(section, dict)
    else section
    for name, section in to_dict(released_sdxl()).items()
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of tiny bases of both shapes, of a tiny SigLIP and DINOv2 and of a tiny CLIP."""
    root = tmp_path_factory.mktemp("plus_plus")
    return {
        "sdxl": tiny.tiny_sdxl_base(root / "sdxl"),
        "sd15": tiny.tiny_base(root / "sd15"),
        "siglip_dino": tiny.tiny_siglip_dino(root / "encoder"),
        "clip": tiny.tiny_image_encoder(root / "clip"),
        "root": str(root),
    }


def make(parts: dict[str, str], base: str, encoder: str, settings: MethodSettings) -> RealCustomPipeline:
    path = tiny.tiny_adapter(f"{parts['root']}/adapter.safetensors", parts[base], parts[encoder], settings)
    return RealCustomPipeline.from_pretrained(parts[base], path, parts[encoder])


def plus_plus(**changes: Any) -> MethodSettings:
    steps = {"sampler": {"num_inference_steps": STEPS}}
    return override(override(tiny.tiny_pp_settings(), steps), changes)


def draw(pipeline: RealCustomPipeline, subjects: Any, prompt: Any = PROMPT, **arguments: Any) -> Any:
    arguments = {"output_type": "latent", "return_masks": True, **arguments}
    generators = [torch.Generator().manual_seed(3 + i) for i in range(1 if isinstance(prompt, str) else len(prompt))]
    return pipeline(prompt, subjects, generator=generators, **arguments)


def launches(pipeline: RealCustomPipeline, subjects: Any, **arguments: Any) -> list[tuple[int, int, bool]]:
    """Of each UNet call: rows, rows that see subjects, whether maps are recorded."""
    seen = []

    def count(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        conditioning, rows = named["cross_attention_kwargs"]["conditioning"], len(positional[0])
        acting = len(range(rows)[conditioning.subjects[0].rows]) if conditioning.subjects else 0
        seen.append((rows, acting, conditioning.recorders != []))

    handle = pipeline.base.unet.register_forward_pre_hook(count, with_kwargs=True)
    draw(pipeline, subjects, return_masks=False, **arguments)
    handle.remove()
    return seen


def test_as_released(parts: dict[str, str], picture: Picture) -> None:
    """Maps for the first steps, their prediction discarded; the subject and a black picture under the same mask."""
    settings = override(plus_plus(), RELEASED)
    pipeline = make(parts, "sdxl", "siglip_dino", override(settings, {"sampler": {"num_inference_steps": STEPS}}))
    dog = [Subject(image=picture(0), word="dog")]
    assert launches(pipeline, dog, mask_reuse_after=2) == [(1, 0, True), (2, 2, False)] * 2 + [(2, 2, False)] * 2
    out = draw(pipeline, dog, mask_reuse_after=2)
    assert torch.isfinite(out.images).all() and out.masks[3][0] is out.masks[1][0]
    assert out.masks[0][0].shape == (1, 1, 8, 8) and out.masks[0][0].count_nonzero() <= 16
    other = draw(pipeline, dog, mask_reuse_after=2, subject_guidance_scale=1.0)
    assert not torch.allclose(out.images, other.images, atol=1e-3)


def test_a_black_reference_is_not_no_reference(parts: dict[str, str], picture: Picture) -> None:
    """inv. 3's note: black pixels make tokens that are not zero; where the mask is zero both are the same."""
    black = {"guidance": {"uncond": "negative_text_black_image_masked"}}
    with_black = make(parts, "sdxl", "siglip_dino", plus_plus(**black))
    without = make(parts, "sdxl", "siglip_dino", plus_plus())
    dog = Subject(image=picture(0), word="dog")
    assert not torch.allclose(draw(with_black, [dog]).images, draw(without, [dog]).images, atol=1e-3)
    nowhere = Subject(image=picture(0), word="dog", scope=0.0)
    difference = draw(with_black, [nowhere]).images - draw(without, [nowhere]).images
    assert difference.abs().max() <= 1e-4
    # without the subject's branch the unconditional one still is under the mask, so its maps are made
    assert launches(with_black, [dog], subject_guidance_scale=0.0)[0] == (1, 0, True)
    assert launches(without, [dog], subject_guidance_scale=0.0)[0] == (2, 0, False)


EQUAL, BY_MASK = {"guidance_scale": 5.0}, {"rescale_by_mask": True}
LIVE = [(1, 0, True), (2, 1, False)]  # the guidance pass, then all others as one launch


@pytest.mark.parametrize(
    ("mode", "guidance", "reuse", "expected"),
    [
        ("direct", {}, None, LIVE * STEPS),
        ("direct", {}, 1, LIVE + [(2, 1, False)] * (STEPS - 1)),
        ("direct", {"launches": "separate"}, 1, [(1, 0, True)] + [(1, 0, False), (1, 1, False)] * STEPS),
        ("cascade", {}, 1, LIVE + [(3, 1, False)] * (STEPS - 1)),
        # a prediction without weight is run where its deviation rescales
        ("cascade", {"guidance_rescale": 0.5, "guidance_scale": 5.0, "subject_guidance_scale": 0}, None, LIVE * STEPS),
        ("cascade", EQUAL | {"guidance_rescale": 0.5} | BY_MASK, 1, LIVE + [(3, 1, False)] * (STEPS - 1)),
        ("cascade", EQUAL, 1, LIVE + [(2, 1, False)] * (STEPS - 1)),
        (
            "direct",
            {"guidance_rescale": 0.5, "subject_guidance_scale": 1},
            1,
            [(1, 0, True)] + [(1, 1, False)] * STEPS,
        ),
    ],
)
def test_launches_of_every_mode(
    parts: dict[str, str],
    picture: Picture,
    mode: str,
    guidance: dict[str, Any],
    reuse: int | None,
    expected: list[Any],
) -> None:
    """inv. 37, on SDXL with a projector: rows of each launch, those that see the subject, those that are recorded."""
    # with equal weights the guidance branch would have none
    both = {"mode": mode, "guidance_scale": 7.5 if mode == "cascade" else 5.0, "subject_guidance_scale": 5.0}
    pipeline = make(parts, "sdxl", "siglip_dino", plus_plus(guidance=both | guidance))
    subjects = [Subject(image=picture(0), word="dog"), Subject(image=picture(1), word="cat")]
    assert launches(pipeline, subjects, mask_reuse_after=reuse) == expected


@pytest.mark.parametrize(
    ("base", "encoder", "changes"),
    [
        ("sdxl", "siglip_dino", {"guidance": {"mode": "cascade"}, "mask": {"self_refine": True}}),
        ("sd15", "siglip_dino", {"tokens": {"scoring": True, "hidden": 16}, "mask": {"self_refine": True}}),
        ("sdxl", "siglip_dino", {"tokens": {"scoring": True, "hidden": 16, "visual_context": "conv_in"}}),
        ("sdxl", "siglip_dino", {"mask": {"layers": "up", "norm": "minmax_per_layer", "mask_resize": "area"}}),
        (
            "sdxl",
            "siglip_dino",
            {"mask": {"layers": [4], "norm": "minmax", "select": "threshold", "overlap": "argmax"}},
        ),
        ("sdxl", "clip", {}),
    ],
)
def test_legal_combinations_draw(
    parts: dict[str, str], picture: Picture, base: str, encoder: str, changes: dict[str, Any]
) -> None:
    """++ with the paper's cascade and scorer, the paper's scorer on SDXL, every way to make a mask; rows as alone."""
    start = tiny.tiny_settings() if encoder == "clip" else plus_plus()
    settings = override(override(start, {"sampler": {"num_inference_steps": STEPS}}), changes)
    pipeline = make(parts, base, encoder, settings)
    prompts = [PROMPT, "a toy on grass"]
    subjects = [
        [Subject(image=picture(0), word="dog"), Subject(image=picture(1), word="cat")],
        [Subject(image=picture(2), word="toy")],
    ]
    together = draw(pipeline, subjects, prompts, num_inference_steps=2)
    for row in range(2):
        generator = torch.Generator().manual_seed(3 + row)
        alone = pipeline(prompts[row], subjects[row], generator=generator, output_type="latent", num_inference_steps=2)
        assert (together.images[row] - alone.images[0]).abs().max() <= 1e-4
    for masks in together.masks:
        assert all(mask.min() >= 0 and mask.max() <= 1 for mask in masks) and masks[0].max() > 0


def test_several_words_for_one_picture(parts: dict[str, str], picture: Picture) -> None:
    """The same tokens under two masks (encoded once), or under the one that both words' maps make together."""
    pipeline = make(parts, "sd15", "clip", tiny.tiny_settings())
    calls: list[int] = []
    assert pipeline.image_encoder is not None
    encode = pipeline.image_encoder.encode

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    with replaced(pipeline.image_encoder, "encode", counted):
        two = draw(pipeline, [Subject(image=picture(0), word=word) for word in ("dog", "cat")], num_inference_steps=1)
        one = draw(pipeline, [Subject(image=picture(0), word=("dog", "cat"))], num_inference_steps=1)
    assert calls == [1] and one.words == [["dog, cat"]] and two.words == [["dog", "cat"]]
    (together,), (dog, cat) = one.masks[0], two.masks[0]
    assert not torch.equal(dog, cat) and not torch.equal(together, dog)
    summed = [mask_of(pipeline, picture, word) for word in ("dog", "cat")]
    total = sum(summed)
    assert isinstance(total, Tensor)
    assert torch.allclose(together, total.where(together > 0, torch.zeros(())) / total.max(), atol=1e-5)


def mask_of(pipeline: RealCustomPipeline, picture: Picture, word: str) -> Tensor:
    """The raw map of a word at the first step."""
    kept = pipeline.settings
    pipeline.settings = override(kept, {"mask": {"norm": "none", "influence_scope": 1.0}})
    mask: Tensor
    (mask,) = draw(pipeline, [Subject(image=picture(0), word=word)], num_inference_steps=1).masks[0]
    pipeline.settings = kept
    return mask


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Any:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def test_two_of_a_kind_by_occurrence(parts: dict[str, str], picture: Picture) -> None:
    pipeline = make(parts, "sd15", "clip", tiny.tiny_settings())
    subjects = [Subject(image=picture(i), word="dog", occurrence=i) for i in range(2)]
    masks = draw(pipeline, subjects, "a dog and a dog", num_inference_steps=1).masks[0]
    assert not torch.equal(*masks)
    with pytest.raises(ValueError, match="no occurrence 2"):
        draw(pipeline, [Subject(image=picture(0), word="dog", occurrence=2)], "a dog and a dog")
    with pytest.raises(ValueError, match="occurrence is 'all'"):
        draw(pipeline, [Subject(image=picture(0), word="dog", occurrence="second")])


@pytest.mark.parametrize(("base", "encoder"), [("sd15", "clip"), ("sdxl", "siglip_dino")])
def test_bf16_keeps_what_must_be_fp32(parts: dict[str, str], picture: Picture, base: str, encoder: str) -> None:
    """Maps, masks, scores and gates in fp32 beside a model in bf16; the image is near the one in fp32."""
    settings = tiny.tiny_settings() if encoder == "clip" else plus_plus(tokens={"scoring": True, "hidden": 16})
    path = tiny.tiny_adapter(f"{parts['root']}/bf16.safetensors", parts[base], parts[encoder], settings)
    dog, images = [Subject(image=picture(0), word="dog")], []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = RealCustomPipeline.from_pretrained(parts[base], path, parts[encoder], torch_dtype=dtype)
        gates: list[Tensor] = []

        def look(module: Any, positional: Any, named: dict[str, Any], gates: list[Tensor] = gates) -> None:
            for subject in named["cross_attention_kwargs"]["conditioning"].subjects:
                gates.append(subject.gate)

        pipeline.base.unet.register_forward_pre_hook(look, with_kwargs=True)
        out = draw(pipeline, dog, num_inference_steps=2, guidance_scale=2.0, subject_guidance_scale=2.0)
        assert out.images.dtype == dtype and all(mask.dtype == torch.float32 for (mask,) in out.masks)
        assert out.masks[0][0].max() == 1  # exactly, also in bf16
        assert all(gate.dtype == torch.float32 and (gate > 1).all() for gate in gates) and gates
        assert len(gates[0].unique()) > 1  # 1 + 1/n is 1.0 in bf16
        images.append(out.images.float())
    assert (images[0] - images[1]).abs().mean() < 0.1 * images[0].abs().mean()


def test_presets_differ_where_the_papers_do() -> None:
    paper, released = paper_sd15(), released_sdxl()
    assert (paper.guidance.guidance_scale, paper.guidance.subject_guidance_scale) == (7.5, 12.5)
    assert paper.tokens.scoring and not released.tokens.scoring
    assert (paper.sampler.scheduler, paper.sampler.num_inference_steps) == ("ddim", 50)
