"""The answers of the API, as pydantic models: the server makes them and the client reads them. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from realcustom.inference.images import OutputFormat


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
    queue_seconds: float = Field(description="from its arrival at the engine to its first step's start")


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


class SubjectResponse(BaseModel):
    """A subject that this server holds."""

    id: str = Field(description="for `subjects[i].id`; the same for the same picture, mask and image encoder")
    object: Literal["subject"] = "subject"
    encoder: str = Field(description="identity of the image encoder")
    bytes: int = Field(description="of this server's memory")


class ModelInfo(BaseModel):
    """A model, as OpenAI's API lists them."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this server started: models have no date of their own")
    owned_by: Literal["realcustom"] = "realcustom"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(description="a stable name")
    message: str = Field(description="one sentence with the way out")
    param: str | None = Field(description="the field at fault, where there is one")


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorDetail
