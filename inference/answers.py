"""Answers and events, made of what the engine gives: pictures and masks are encoded here."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from realcustom.inference.events import (
    CompletedEvent,
    CompletedType,
    PartialImageEvent,
    PreviewType,
    StepEvent,
    StepMasks,
)
from realcustom.inference.images import encode_mask, encode_picture
from realcustom.inference.jobs import Generation
from realcustom.inference.progress import Progress
from realcustom.inference.responses import GenerationResponse, ImageResponse, MaskResponse, UsageResponse
from realcustom.inference.schema import ImagesRequest
from realcustom.preview import Preview


def answer(
    generation: Generation, request: ImagesRequest, *, model: str, adapter: str | None, words: list[str] | None = None
) -> GenerationResponse:
    """The answer to `request`. It encodes pictures, which takes a while."""
    first = generation.images[0]
    given = {} if words is None else {"words": words}  # unset fields are left out of the JSON
    return GenerationResponse(
        created=int(time.time()),
        adapter=adapter,
        model=model,
        data=[_image(generation, i, request) for i in range(len(generation.images))],
        usage=UsageResponse(**vars(generation.usage)),
        size=f"{first.width}x{first.height}",
        output_format=request.output_format or "png",
        background="opaque",
        ignored=request.ignored(),
        **given,
    )


def _image(generation: Generation, i: int, request: ImagesRequest) -> ImageResponse:
    picture = _encoded(generation.images[i], request)
    if generation.masks is None:
        return ImageResponse(b64_json=picture, seed=generation.seeds[i])
    masks = [mask for step, of_step in enumerate(generation.masks[:, i]) for mask in mask_responses(of_step, step)]
    return ImageResponse(b64_json=picture, seed=generation.seeds[i], masks=masks)


def _encoded(image: Image.Image, request: ImagesRequest) -> str:
    """A picture as the request asks for it, in base64."""
    quality = 100 if request.output_compression is None else request.output_compression
    return encode_picture(image, request.output_format or "png", quality)


def mask_responses(masks: np.ndarray, step: int) -> list[MaskResponse]:
    """Those of one image and step, (U, h, w) in [0, 1]."""
    return [MaskResponse(subject=subject, step=step, b64_json=encode_mask(mask)) for subject, mask in enumerate(masks)]


def previews(
    progress: Progress, preview: Preview, number: int, request: ImagesRequest, *, edit: bool
) -> list[PartialImageEvent]:
    """A preview of every image after this step."""
    kind: PreviewType = "image_edit.partial_image" if edit else "image_generation.partial_image"
    return [
        PartialImageEvent(
            type=kind,
            b64_json=_encoded(image, request),
            created_at=int(time.time()),
            image_index=i,
            size=f"{image.width}x{image.height}",
            output_format=request.output_format or "png",
            partial_image_index=number,
        )
        for i, image in enumerate(preview.images(progress.latents))
    ]


def step_event(progress: Progress, seconds_left: float | None, *, with_masks: bool) -> StepEvent:
    """What a step gave."""
    masks = None
    if with_masks and progress.masks is not None:
        arrays = progress.masks.float().cpu().numpy()  # (n, U, h, w)
        masks = [StepMasks(image=i, masks=mask_responses(one, progress.step - 1)) for i, one in enumerate(arrays)]
    return StepEvent(step=progress.step, of=progress.of, seconds_left=seconds_left, masks=masks)


def completed_events(response: GenerationResponse, *, edit: bool) -> list[CompletedEvent]:
    """One for each image of the answer."""
    kind: CompletedType = "image_edit.completed" if edit else "image_generation.completed"
    return [
        CompletedEvent(
            type=kind,
            b64_json=image.b64_json,
            created_at=response.created,
            image_index=i,
            size=response.size,
            output_format=response.output_format,
            seed=image.seed,
            masks=image.masks,
            usage=response.usage,
            adapter=response.adapter,
            model=response.model,
            words=response.words,
            ignored=response.ignored,
        )
        for i, image in enumerate(response.data)
    ]
