"""The answer of a generation, and how it is made of the engine's result."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from realcustom.inference.images import OutputFormat, encode_mask, encode_picture
from realcustom.inference.jobs import Generation
from realcustom.inference.schema import ImagesRequest


class MaskResponse(BaseModel):
    """One influence mask."""

    subject: int = Field(description="index into the request's subjects")
    step: int = Field(description="denoising step, from 0")
    b64_json: str = Field(description="8-bit grey PNG at the grid's size; white = the subject acts fully")


class ImageResponse(BaseModel):
    """One generated image."""

    b64_json: str = Field(description="PNG, or the asked `output_format`")
    seed: int
    masks: list[MaskResponse] | None = None


class UsageResponse(BaseModel):
    """The work of a request."""

    forwards: int = Field(description="UNet forwards of single images: one for each image, branch and step")
    seconds: float = Field(description="from its first step's start to its last image")
    queue_seconds: float = Field(description="from its arrival at the engine to its start")


class GenerationResponse(BaseModel):
    """The answer: `n` images, and the adapter that made them."""

    created: int = Field(description="seconds since 1970")
    adapter: str | None = Field(description="sha256 of the adapter checkpoint; null = plain base model")
    model: str = Field(description="the id in `GET /v1/models`")
    data: list[ImageResponse]
    usage: UsageResponse
    size: str = Field(description="WIDTHxHEIGHT")
    output_format: OutputFormat = "png"
    background: Literal["opaque"] = "opaque"
    words: list[str] | None = Field(None, description="an edit's words: the given ones, or the noun that was found")
    ignored: list[str] = Field(description="given fields that do nothing in this request")


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
    quality = 100 if request.output_compression is None else request.output_compression
    picture = encode_picture(generation.images[i], request.output_format or "png", quality)
    if generation.masks is None:
        return ImageResponse(b64_json=picture, seed=generation.seeds[i])
    masks = [mask for step, of_step in enumerate(generation.masks[:, i]) for mask in mask_responses(of_step, step)]
    return ImageResponse(b64_json=picture, seed=generation.seeds[i], masks=masks)


def mask_responses(masks: np.ndarray, step: int) -> list[MaskResponse]:
    """Those of one image and step, (U, h, w) in [0, 1]."""
    return [MaskResponse(subject=subject, step=step, b64_json=encode_mask(mask)) for subject, mask in enumerate(masks)]
