"""Events of a stream, as server-sent events: OpenAI's two, and ours after every step."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from pydantic import BaseModel, Field

from realcustom.inference.answers import GenerationResponse, MaskResponse, UsageResponse, mask_responses
from realcustom.inference.errors import RequestError
from realcustom.inference.images import OutputFormat, encode_picture
from realcustom.inference.progress import Progress
from realcustom.inference.schema import ImagesRequest
from realcustom.preview import LatentPreview

HEARTBEAT = b": heartbeat\n\n"
PreviewType = Literal["image_generation.partial_image", "image_edit.partial_image"]
CompletedType = Literal["image_generation.completed", "image_edit.completed"]


class StepMasks(BaseModel):
    """The masks of one image after a step."""

    image: int = Field(description="index of the image")
    masks: list[MaskResponse]


class StepEvent(BaseModel):
    """A step is done."""

    type: Literal["realcustom.step"] = "realcustom.step"
    step: int = Field(description="steps that are done, 1 to `of`")
    of: int
    seconds_left: float | None = Field(
        description="until the last step, by the speed so far; null after the first step"
    )
    masks: list[StepMasks] | None = Field(None, description="every `mask_every` steps, and after the last one")


class _Picture(BaseModel):
    """What the events with a picture share."""

    b64_json: str
    created_at: int = Field(description="seconds since 1970")
    image_index: int = Field(description="index of the image")
    size: str = Field(description="WIDTHxHEIGHT")
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"


class PartialImageEvent(_Picture):
    """A preview of an image that is being drawn: its colours and shapes."""

    type: PreviewType
    partial_image_index: int = Field(description="from 0 to `partial_images` - 1")


class CompletedEvent(_Picture):
    """A finished image; one event for each of `n`."""

    type: CompletedType
    seed: int
    masks: list[MaskResponse] | None = Field(None, description="with `return_masks`: of every step")
    usage: UsageResponse = Field(description="of the whole request")
    adapter: str | None
    model: str
    words: list[str] | None = None
    ignored: list[str]


class ErrorEvent(BaseModel):
    """The stream's last event where the request fails after its first step."""

    error: dict[str, Any] = Field(description="as in any error's answer: type, message, param")


def encode_event(event: BaseModel) -> bytes:
    """The event as text of the stream."""
    name = event.type if isinstance(event, (StepEvent, PartialImageEvent, CompletedEvent)) else "error"
    return f"event: {name}\ndata: {event.model_dump_json(exclude_unset=name == 'error')}\n\n".encode()


def error_event(error: RequestError) -> ErrorEvent:
    """The event that ends a stream."""
    return ErrorEvent(error=json.loads(json.dumps(error.body()["error"])))


def previews(
    progress: Progress, preview: LatentPreview, number: int, request: ImagesRequest, *, edit: bool
) -> list[PartialImageEvent]:
    """A preview of every image after this step."""
    kind: PreviewType = "image_edit.partial_image" if edit else "image_generation.partial_image"
    output_format = request.output_format or "png"
    quality = 100 if request.output_compression is None else request.output_compression
    return [
        PartialImageEvent(
            type=kind,
            b64_json=encode_picture(image, output_format, quality),
            created_at=int(time.time()),
            image_index=i,
            size=f"{image.width}x{image.height}",
            output_format=output_format,
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
