"""Events of a stream, as server-sent events: OpenAI's two, and ours after every step."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from realcustom.inference.errors import RequestError
from realcustom.inference.images import OutputFormat
from realcustom.inference.responses import ErrorDetail, MaskResponse, UsageResponse

HEARTBEAT = b": heartbeat\n\n"
PreviewType = Literal["image_generation.partial_image", "image_edit.partial_image"]
CompletedType = Literal["image_generation.completed", "image_edit.completed"]


class StepMasks(BaseModel):
    """The masks of one image after a step."""

    image: int = Field(description="index of the image")
    masks: list[MaskResponse]


class QueuedEvent(BaseModel):
    """The request was taken; the first event of a stream, and sent again while others that came before it end."""

    type: Literal["realcustom.queued"] = "realcustom.queued"
    ahead: int = Field(
        description="requests that the engine has since before this one came; they may run together with it"
    )


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

    error: ErrorDetail


def encode_event(event: BaseModel) -> bytes:
    """The event as text of the stream."""
    name = event.type if isinstance(event, (QueuedEvent, StepEvent, PartialImageEvent, CompletedEvent)) else "error"
    return f"event: {name}\ndata: {event.model_dump_json(exclude_unset=name == 'error')}\n\n".encode()


def error_event(error: RequestError) -> ErrorEvent:
    """The event that ends a stream."""
    return ErrorEvent(error=ErrorDetail(**error.body()["error"]))
