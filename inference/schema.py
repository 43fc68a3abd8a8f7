"""The request and the answer of `POST /v1/images/generations`; a request's mistakes are reported before any work.

The shape is OpenAI's images API plus `subjects` and the fields of `SamplingParams`. Unknown fields are errors.
"""

from __future__ import annotations

import difflib
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from realcustom.inference.errors import RequestError
from realcustom.inference.settings import ServeSettings
from realcustom.sampling import KNOBS, SamplingParams

_BY_NAME = {knob.name: knob for knob in KNOBS}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SubjectRequest(_Strict):
    """One subject: its picture, and the real word of the prompt that it narrows."""

    image: str = Field(description="base64 of a PNG, JPEG or WebP, `data:` prefix accepted; URLs are not")
    word: str = Field(min_length=1, description="a word of the prompt (or several words in a row)")
    occurrence: Literal["all", "first", "last"] | int | None = Field(None, description="which of its places, from 0")
    scope: float | None = Field(None, ge=0.0, le=1.0, description="this subject's own influence_scope")
    mask: str | None = Field(None, description="base64 of a picture of `image`'s size, white where the subject is")


def _field(name: str) -> Any:
    """A parameter's default, range and help for pydantic."""
    knob = _BY_NAME[name]
    return Field(knob.default, ge=knob.ge, le=knob.le, description=knob.help)


class ImagesRequest(_Strict):
    """The fields of OpenAI's API, and the subjects."""

    prompt: str = Field(min_length=1)
    n: int = _field("n")
    size: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT in pixels")
    seed: int | None = _field("seed")
    response_format: Literal["b64_json"] = "b64_json"
    subjects: list[SubjectRequest] = Field(default_factory=list)

    def width_height(self) -> tuple[int, int] | None:
        """`size` as numbers of pixels."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(width), int(height)

    def sampling(self) -> SamplingParams:
        """The request's sampling parameters."""
        width, height = self.width_height() or (None, None)
        given = {name: getattr(self, name) for name in _BY_NAME if name in type(self).model_fields}
        return SamplingParams(width=width, height=height, **given)


_KNOBS: dict[str, Any] = {
    knob.name: (knob.type | None if knob.optional else knob.type, _field(knob.name))
    for knob in KNOBS
    if knob.name not in ("width", "height", *ImagesRequest.model_fields)  # `size` gives both sides
}
GenerationRequest = create_model(
    "GenerationRequest",
    __base__=ImagesRequest,
    __doc__="One request. A setting left out is as the adapter's own settings say.",
    **_KNOBS,
)


class MaskResponse(BaseModel):
    """One influence mask."""

    subject: int = Field(description="index into the request's subjects")
    step: int = Field(description="denoising step, from 0")
    b64_json: str = Field(description="8-bit grey PNG at the grid's size; white = the subject acts fully")


class ImageResponse(BaseModel):
    """One generated image."""

    b64_json: str = Field(description="PNG")
    seed: int
    masks: list[MaskResponse] | None = None


class GenerationResponse(BaseModel):
    """The answer: `n` images, and the adapter that made them."""

    created: int = Field(description="seconds since 1970")
    adapter: str | None = Field(description="sha256 of the adapter checkpoint; null = plain base model")
    data: list[ImageResponse]


def parse_request(body: bytes, settings: ServeSettings) -> ImagesRequest:
    """The checked request in `body` (JSON). Raises RequestError naming the field and the way out."""
    try:
        request = GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        raise _first_problem(error) from error
    _check_limits(request, settings)
    return request


def _check_limits(request: ImagesRequest, settings: ServeSettings) -> None:
    """The server's own limits, which are not in the schema."""
    sampling = request.sampling()
    for param, value, limit in (
        ("n", sampling.n, settings.max_n),
        ("num_inference_steps", sampling.num_inference_steps or 0, settings.max_steps),
        ("subjects", len(request.subjects), settings.max_subjects),
    ):
        if value > limit:
            raise RequestError(f"{param}: {value} is more than this server's limit of {limit}", param)
    for param, text in (("prompt", request.prompt), ("negative_prompt", sampling.negative_prompt or "")):
        if len(text) > settings.max_prompt_characters:
            message = (
                f"{param}: {len(text)} characters are over this server's limit of {settings.max_prompt_characters}"
            )
            raise RequestError(message, param)
    size = request.width_height()
    if size and size[0] * size[1] > settings.max_pixels:
        raise RequestError(f"size: {request.size} is over this server's limit of {settings.max_pixels} pixels", "size")


def _first_problem(error: ValidationError) -> RequestError:
    """The first of pydantic's errors as one line, with the number of others."""
    found = error.errors(include_url=False, include_context=False)
    # an unknown field is usually the cause of a missing one: report it first
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    param = _param(first["loc"])
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "extra_forbidden":
        message = f"unknown field '{param}'{_nearest(first['loc'])}"
    elif first["type"] == "string_pattern_mismatch":  # `size` alone has a pattern
        message = f"{param}: expected WIDTHxHEIGHT in pixels, such as 512x512{_shown(first['input'])}"
    elif first["type"] == "missing":
        message = f"field '{param}' is missing"
    else:
        message = f"{param or 'body'}: {first['msg']}{_shown(first['input'])}"
    others = len({_param(item["loc"]) for item in found} - {param})
    more = f" (and {others} more field{'s' if others > 1 else ''} with problems)" if others else ""
    return RequestError(message + more, param or None)


def _param(loc: tuple[int | str, ...]) -> str:
    """("subjects", 0, "word") -> "subjects[0].word"; the branch names that pydantic adds for unions are dropped."""
    model: Any = GenerationRequest
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif model is not None:
            text += f".{part}" if text else part
            field = model.model_fields.get(part)
            nested = [arg for arg in typing.get_args(field.annotation) if _is_model(arg)] if field else []
            model = nested[0] if nested else None
    return text


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nearest(loc: tuple[int | str, ...]) -> str:
    fields = list(SubjectRequest.model_fields if len(loc) > 1 else GenerationRequest.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(fields)}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return ""
    text = repr(value)
    return f", got {text if len(text) <= 60 else text[:57] + '...'}"
