"""Measures of the shipped models on new held-out drawings with ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from realcustom.base_loading import load_base
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.image_encoder import load_image_encoder
from realcustom.model import RealCustomModel
from realcustom.settings import (
    GuidanceSettings,
    ImageEncoderSettings,
    MethodSettings,
    SamplerSettings,
    TokenSettings,
)
from realcustom.sprites import ZOO, zoo_path
from realcustom.sprites.blip import canonical_caption
from realcustom.sprites.judge import Judge
from realcustom.sprites.world import (
    BACKGROUNDS,
    GUIDANCE_SCALE,
    NOUNS,
    NUM_INFERENCE_STEPS,
    PLACES,
    TEMPLATES,
    Drawing,
    Scene,
    Split,
    draw,
    scene,
)

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, pixels
Detector = Callable[[list[Image.Image], list[str]], list[list[Box]]]  # pictures, a noun for each -> boxes, best first
Segmenter = Callable[
    [list[Image.Image], list[Box]], list[tuple[np.ndarray, float]]
]  # -> mask (H, W), its estimated IoU
Captioner = Callable[[list[Image.Image]], list[str]]

IOU = 0.5  # a box counts as found from this IoU on
BATCH = 32  # pictures drawn at a time
GALLERY = 32  # captions among which a picture's own is searched


def inspect_zoo(
    images: int = 256,
    seed: int = 0,
    names: Sequence[str] | None = None,
    *,
    detector: Detector | None = None,
    segmenter: Segmenter | None = None,
    captioner: Captioner | None = None,
) -> dict[str, float]:
    """Measures of the shipped models on `images` drawings of one subject, identities that no model has seen.

    Args:
        seed: other seeds give other drawings.
        names: of the models; None = all.
        detector, segmenter, captioner: what runs `grounding_dino`, `sam` and `blip`; None: it is not measured.

    Returns:
        Shares and mean IoUs, 0 to 1, by name. Measures of a missing model are missing.
    """
    first = 10**9 + seed * 10**6
    scenes = [scene(Split.EVALUATION, first + number) for number in range(images)]
    drawings = [draw(item) for item in scenes]
    measures = {
        "pipeline": inspect_pipeline,
        "grounding_dino": partial(inspect_detector, detector) if detector else None,
        "sam": partial(inspect_segmenter, segmenter) if segmenter else None,
        "blip": partial(inspect_captioner, captioner) if captioner else None,
        "clip": inspect_clip,
        "judge": inspect_judge,
    }
    result: dict[str, float] = {}
    for name, measure in measures.items():
        if measure is not None and (ZOO / name).exists() and (names is None or name in names):
            result |= measure(scenes, drawings)
    return result


def inspect_pipeline(scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Plain text-to-image scored by the judge, and the noun's attention during sampling.

    Shares of images that show the caption's noun, background and place; and the mean IoU, over steps, of the quarter of
    cells with the noun's largest attention with the object in the image.
    """
    masks, images = [], []
    pipeline = plain_pipeline()
    for start in range(0, len(scenes), BATCH):
        numbers = range(start, min(start + BATCH, len(scenes)))
        subjects = [
            Subject(image=Image.fromarray(drawings[i].image), word=scenes[i].subjects[0].identity.noun) for i in numbers
        ]
        output = pipeline(
            [scenes[i].caption for i in numbers],
            [[subject] for subject in subjects],
            generator=[torch.Generator().manual_seed(i) for i in numbers],
            influence_scope=0.25,
            return_masks=True,
            output_type="np",
        )
        assert output.masks is not None and isinstance(output.images, np.ndarray)
        images.append(output.images)
        masks.append(torch.stack([mask for (mask,) in output.masks])[:, :, 0].numpy() > 0)  # (steps, B, h, w)
    verdict = Judge.load(zoo_path("judge"))(np.concatenate(images))
    support = np.concatenate(masks, 1).repeat(2, 2).repeat(2, 3)  # from the latent's grid to pixels
    drawn = verdict.mask > 0.5
    ious = [mask_iou(step[i], drawn[i]) for step in support for i in range(len(scenes))]
    found = {name: getattr(verdict, name).argmax(1) for name in ("noun", "background", "place")}
    return {
        "plain_noun": share(
            [NOUNS[k] == item.subjects[0].identity.noun for k, item in zip(found["noun"], scenes, strict=True)]
        ),
        "plain_background": share(
            [BACKGROUNDS[k] == item.background for k, item in zip(found["background"], scenes, strict=True)]
        ),
        "plain_place": share(
            [tuple(PLACES)[k] == item.subjects[0].place for k, item in zip(found["place"], scenes, strict=True)]
        ),
        "attention_iou": float(np.mean(ious)),
    }


def plain_pipeline() -> RealCustomPipeline:
    """Text-to-image that returns masks: with the subject's weight at zero its branch is never run."""
    encoder = ImageEncoderSettings(model=zoo_path("image_encoder"))
    settings = MethodSettings(
        image_encoder=encoder,
        tokens=TokenSettings(scoring=False),
        guidance=GuidanceSettings(guidance_scale=GUIDANCE_SCALE, subject_guidance_scale=0.0),
        sampler=SamplerSettings(num_inference_steps=NUM_INFERENCE_STEPS),
    )
    base, image_encoder = load_base(zoo_path("pipeline")), load_image_encoder(encoder.model, encoder)
    model = RealCustomModel(base.unet, settings, image_encoder.embed_dim)
    pipeline = RealCustomPipeline(base, settings, model, image_encoder)
    pipeline.set_progress_bar_config(disable=True)  # a command's progress is log lines
    return pipeline


def inspect_detector(detector: Detector, scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Recall and precision of the detector, prompted once with the picture's noun and once with an absent one.

    A picture is recalled if its best box overlaps the subject's by `IOU`. Precision is the share of right boxes among
    all that are found: a second box for the same subject is wrong, and so is any box for an absent noun.
    """
    images = pictures_of(drawings)
    nouns = [item.subjects[0].identity.noun for item in scenes]
    absent = [NOUNS[(NOUNS.index(noun) + 1 + place) % len(NOUNS)] for place, noun in enumerate(nouns)]
    absent = [
        other if other != noun else NOUNS[NOUNS.index(noun) - 1] for other, noun in zip(absent, nouns, strict=True)
    ]
    present = detector(images, nouns)
    false = sum(len(found) for found in detector(images, absent))
    recalled = sum(
        bool(found) and box_iou(found[0], drawing.boxes[0]) >= IOU
        for found, drawing in zip(present, drawings, strict=True)
    )
    total = sum(len(found) for found in present) + false
    return {"detection_recall": recalled / len(images), "detection_precision": recalled / max(total, 1)}


def inspect_segmenter(segmenter: Segmenter, scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Mean IoU of the segmenter's masks from the true boxes, and the mean error of its own estimate of it."""
    answers = segmenter(pictures_of(drawings), [drawing.boxes[0] for drawing in drawings])
    ious = [mask_iou(mask, drawing.masks[0]) for (mask, _), drawing in zip(answers, drawings, strict=True)]
    errors = [abs(score - iou) for (_, score), iou in zip(answers, ious, strict=True)]
    return {"mask_iou": float(np.mean(ious)), "mask_score_error": float(np.mean(errors))}


def inspect_captioner(captioner: Captioner, scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Shares of captions that name the background, the noun, and that are right in every word."""
    pairs = list(zip(captioner(pictures_of(drawings)), scenes, strict=True))
    return {
        "caption_background": share([item.background in caption.split() for caption, item in pairs]),
        "caption_noun": share([item.subjects[0].identity.noun in caption.split() for caption, item in pairs]),
        "caption_accuracy": share([caption == canonical_caption(item) for caption, item in pairs]),
    }


@torch.inference_mode()
def inspect_clip(scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Share of pictures that are nearest to their own caption among those of `GALLERY` pictures, one template."""
    folder = zoo_path("clip")
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pictures = pictures_of(drawings)
    captions = [dataclasses.replace(item, template=TEMPLATES[0]).caption for item in scenes]
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    output = model(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        pixel_values=CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values,
    )
    right = []
    for start in range(0, len(captions), GALLERY):
        gallery = slice(start, start + GALLERY)
        nearest = (output.image_embeds[gallery] @ output.text_embeds[gallery].T).argmax(1).tolist()
        right += [captions[start + best] == captions[start + place] for place, best in enumerate(nearest)]
    return {"clip_retrieval": share(right)}


def inspect_judge(scenes: list[Scene], drawings: list[Drawing]) -> dict[str, float]:
    """Shares of nouns and backgrounds that the judge names right, and the mean IoU of its masks."""
    verdict = Judge.load(zoo_path("judge"))(np.stack([drawing.image for drawing in drawings]))
    nouns = [NOUNS.index(item.subjects[0].identity.noun) for item in scenes]
    backgrounds = [BACKGROUNDS.index(item.background) for item in scenes]
    masks = [mask_iou(found, drawing.masks[0]) for found, drawing in zip(verdict.mask > 0.5, drawings, strict=True)]
    return {
        "judge_noun": share((verdict.noun.argmax(1) == np.array(nouns)).tolist()),
        "judge_background": share((verdict.background.argmax(1) == np.array(backgrounds)).tolist()),
        "judge_mask_iou": float(np.mean(masks)),
    }


def pictures_of(drawings: list[Drawing]) -> list[Image.Image]:
    """The drawings as PIL images."""
    return [Image.fromarray(drawing.image) for drawing in drawings]


def share(right: list[bool]) -> float:
    """The share that is true; raises UsageError for none at all."""
    if not right:
        raise UsageError("a share of no pictures: give images=1 or more")
    return sum(right) / len(right)


def box_iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1, 0 to 1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks (H, W), 0 to 1; one of them is not empty."""
    return float((first & second).sum() / (first | second).sum())
