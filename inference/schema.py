"""The request of `POST /v1/images/generations` and `/v1/images/edits`; its mistakes are reported before any work.

The shape is OpenAI's images API plus `subjects` and the fields of `SamplingParams`. Unknown fields are errors.
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from realcustom.inference.errors import BadRequest, RequestError
from realcustom.inference.images import OutputFormat
from realcustom.inference.problems import first_problem
from realcustom.inference.settings import SIZE, ServeSettings, width_height
from realcustom.sampling import KNOBS, SamplingParams

_BY_NAME = {knob.name: knob for knob in KNOBS}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class SubjectRequest(_Strict):
    """One subject: its picture or its id, and the real word of the prompt that it narrows."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}, other: {"type": "null"}}}
                for name, other in (("image", "id"), ("id", "image"))
            ]
        }
    )

    image: str | None = Field(
        default=None, description="base64 of a PNG, JPEG or WebP, `data:` prefix accepted; URLs are not"
    )
    id: str | None = Field(default=None, description="in the place of `image`: what `POST /v1/subjects` answered")
    word: str = Field(min_length=1, description="a word of the prompt (or several words in a row)")
    occurrence: Literal["all", "first", "last"] | int | None = Field(
        default=None, description="which of its places, from 0"
    )
    scope: float | None = Field(default=None, ge=0.0, le=1.0, description="this subject's own influence_scope")
    mask: str | None = Field(
        default=None, description="base64 of a picture of `image`'s size, white where the subject is"
    )


def _field(name: str) -> Any:
    """A parameter's default, range and help for pydantic."""
    knob = _BY_NAME[name]
    return Field(knob.default, ge=knob.ge, le=knob.le, description=knob.help)


# fields of OpenAI's API that mean nothing here: a client that sends them works
IGNORED = (
    "quality", "style", "background", "moderation", "user", "safety_identifier", "complexity", "input_fidelity",
    "mask", "markup", "svg", "frame_count", "frame_duration_ms",
)  # fmt: skip
_IGNORED_HELP = "OpenAI's; means nothing here, is accepted and named in the answer's `ignored`"


class ImagesRequest(_Strict):
    """The fields of OpenAI's API that act, the subjects, and how the answer comes."""

    prompt: str = Field(min_length=1)
    n: int | None = _field("n")
    size: str | None = Field(None, pattern=SIZE, description="WIDTHxHEIGHT in pixels, or auto")
    seed: int | None = _field("seed")
    model: str | None = Field(None, description="an id of `GET /v1/models`; left out: the adapter, else the base")
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`b64_json` alone: this server keeps no pictures, so `url` is refused"
    )
    output_format: OutputFormat | None = Field(None, description="of the images; left out: png")
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of webp and jpeg; left out: 100")
    stream: bool | None = Field(None, description="answer with server-sent events while the images are drawn")
    partial_images: int | None = Field(None, ge=0, le=3, description="previews of each image in a stream")
    mask_every: int | None = Field(None, ge=1, description="in a stream: the masks of every so many steps")
    step_events: bool = Field(True, description="in a stream: `realcustom.queued`, and `realcustom.step` after steps")
    deterministic: bool = Field(
        False, description="share no computation with other requests: the bytes are the same always"
    )
    deadline_seconds: float | None = Field(None, gt=0, description="at most the server's own; later: 408")
    subjects: list[SubjectRequest] = Field(default_factory=list)

    def width_height(self) -> tuple[int, int] | None:
        """`size` as numbers of pixels."""
        return None if self.size is None else width_height(self.size)

    def sampling(self) -> SamplingParams:
        """The request's sampling parameters."""
        width, height = self.width_height() or (None, None)
        given = {name: getattr(self, name) for name in _BY_NAME if name in type(self).model_fields}
        if self.n is None:
            del given["n"]
        return SamplingParams(width=width, height=height, **given)

    def ignored(self) -> list[str]:
        """Names of the given fields that do nothing in this request."""
        idle = set(IGNORED)
        if not self.stream:
            idle |= {"partial_images", "mask_every", "step_events"}
        if self.output_format in (None, "png"):
            idle.add("output_compression")
        return sorted(name for name in self.model_fields_set & idle if getattr(self, name) is not None)


_FIELDS: dict[str, Any] = {
    knob.name: (knob.type | None if knob.optional else knob.type, _field(knob.name))
    for knob in KNOBS
    if knob.name not in ("width", "height", *ImagesRequest.model_fields)  # `size` gives both sides
}
_FIELDS |= {name: (Any, Field(None, description=_IGNORED_HELP)) for name in IGNORED}
GenerationRequest = create_model(
    "GenerationRequest",
    __base__=ImagesRequest,
    __doc__="One request. A setting left out is as the adapter's own settings say.",
    **_FIELDS,
)


def read_json(body: bytes) -> dict[str, Any]:
    """The object in `body`. Raises RequestError where it is none."""
    try:
        fields = pydantic_core.from_json(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("body: send a JSON object")
    return fields


def parse_request(body: bytes, settings: ServeSettings) -> ImagesRequest:
    """The checked request in `body` (JSON). Raises RequestError naming the field and the way out."""
    return check_request(read_json(body), settings)


def check_request(fields: dict[str, Any], settings: ServeSettings) -> ImagesRequest:
    """The checked request of these fields. Raises RequestError naming the field and the way out."""
    try:
        request: ImagesRequest = GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise first_problem(error, GenerationRequest) from error
    if request.response_format == "url":
        raise BadRequest(
            "response_format: this server keeps no pictures, so there is no URL to give; ask for 'b64_json'",
            "response_format",
        )
    _check_limits(request, settings)
    _check_subjects(request)
    _check_texts(request)
    return request


def _check_subjects(request: ImagesRequest) -> None:
    """Each has a picture, here or sent before."""
    for i, subject in enumerate(request.subjects):
        if (subject.image is None) == (subject.id is None):
            found = "both" if subject.id is not None else "none"
            raise RequestError(f"subjects[{i}]: give `image` or `id`, got {found}", f"subjects[{i}].image")
        if subject.id is not None and subject.mask is not None:
            raise RequestError(f"subjects[{i}].mask: of a subject's id; send it to /v1/subjects", f"subjects[{i}].mask")


def _check_limits(request: ImagesRequest, settings: ServeSettings) -> None:
    """The server's own limits, which are not in the schema."""
    sampling = request.sampling()
    for param, value, limit in (
        ("n", sampling.n, settings.max_n),
        ("num_inference_steps", sampling.num_inference_steps or 0, settings.max_steps),
        ("subjects", len(request.subjects), settings.max_subjects),
        ("deadline_seconds", request.deadline_seconds or 0, settings.deadline_seconds),
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


def _check_texts(request: ImagesRequest) -> None:
    """Refuse characters that are no text: tokenizers drop or split them each in its own way."""
    texts = {"prompt": request.prompt, "negative_prompt": request.sampling().negative_prompt or ""}
    texts |= {f"subjects[{i}].word": subject.word for i, subject in enumerate(request.subjects)}
    for param, text in texts.items():
        assert isinstance(text, str)  # the schema's `negative_prompt` is one
        bad = next((letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"), None)
        if bad is not None:
            raise RequestError(f"{param}: the character {bad!r} is no text; leave it out", param)
