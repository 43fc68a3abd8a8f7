"""What both clients share: requests as JSON, answers and events as models, and when to try again. No network here."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from PIL import Image
from pydantic import BaseModel, ValidationError

from realcustom.inference.events import CompletedEvent, PartialImageEvent, QueuedEvent, StepEvent
from realcustom.inference.images import OutputFormat
from realcustom.inference.schema import SubjectRequest
from realcustom.sampling import SamplingParams

Event = QueuedEvent | StepEvent | PartialImageEvent | CompletedEvent
Model = TypeVar("Model", bound=BaseModel)
GENERATIONS, SUBJECTS, MODELS, REQUESTS = "/v1/images/generations", "/v1/subjects", "/v1/models", "/v1/requests"
_EVENTS: Mapping[str, type[Event]] = {
    "realcustom.queued": QueuedEvent,
    "realcustom.step": StepEvent,
    "image_generation.partial_image": PartialImageEvent,
    "image_generation.completed": CompletedEvent,
}
_TRY_AGAIN = (429, 503)


class ApiError(Exception):
    """The server's refusal; `kind` is its stable name, `param` the field at fault where there is one."""

    def __init__(self, status: int, kind: str, message: str, param: str | None, request_id: str | None) -> None:
        super().__init__(f"{message} ({status} {kind})")
        self.status, self.kind, self.message, self.param, self.request_id = status, kind, message, param, request_id


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often, and how long, a request waits for a server that says that it is full or not ready (429, 503)."""

    attempts: int = 5  # tries in all
    longest_wait: float = 60.0  # seconds; a server that asks for more is not waited for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a request is answered; None = as the server does by itself."""

    model: str | None = None
    output_format: OutputFormat | None = None
    output_compression: int | None = None  # quality of webp and jpeg, 0 to 100
    deadline_seconds: float | None = None
    deterministic: bool | None = None  # share no computation with other requests: the bytes are the same always
    partial_images: int | None = None  # previews in a stream, 0 to 3
    mask_every: int | None = None  # in a stream: masks of every so many steps
    request_id: str | None = None  # to cancel the request by
    idempotency_key: str | None = None  # the same key and request: the same answer


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as it is sent."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def generation_call(
    prompt: str, subjects: Sequence[SubjectRequest], sampling: SamplingParams, options: Options, *, stream: bool
) -> Call:
    """The request that draws."""
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    knobs = {name: value for name, value in vars(sampling).items() if value != defaults[name]}
    width, height = knobs.pop("width", None), knobs.pop("height", None)
    if (width is None) != (height is None):
        raise ValueError(f"width and height go together over HTTP, got {width} and {height}")
    given = {name: value for name, value in vars(options).items() if value is not None}
    names = {"request_id": "X-Request-Id", "idempotency_key": "Idempotency-Key"}
    headers = {header: str(given.pop(name)) for name, header in names.items() if name in given}
    body: dict[str, Any] = {"prompt": prompt, **knobs, **given}
    if width is not None:
        body["size"] = f"{width}x{height}"
    if subjects:
        body["subjects"] = [subject.model_dump(exclude_none=True) for subject in subjects]
    return Call(method="POST", path=GENERATIONS, body=body | ({"stream": True} if stream else {}), headers=headers)


def subject_call(image: str, mask: str | None) -> Call:
    """The request that has a subject encoded."""
    return Call(method="POST", path=SUBJECTS, body={"image": image} | ({} if mask is None else {"mask": mask}))


def models_call() -> Call:
    """The request for the models' names."""
    return Call(method="GET", path=MODELS)


def cancel_call(request_id: str) -> Call:
    """The request that ends another one."""
    return Call(method="DELETE", path=f"{REQUESTS}/{request_id}")


def encode(picture: Image.Image | bytes | str | Path) -> str:
    """A picture, a file's bytes or a file as base64, for `SubjectRequest.image`."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return base64.b64encode(data).decode("ascii")


def decode(text: str) -> Image.Image:
    """The picture in an answer or an event."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def read(model: type[Model], response: httpx.Response) -> Model:
    """The answer as a model. Raises ApiError."""
    check(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise ApiError(response.status_code, "not_ours", f"not an answer of this API: {error}", None, None) from error


def check(response: httpx.Response) -> None:
    """Raise ApiError for a refusal. The response's body must have been read."""
    if response.is_success:
        return
    try:
        error = response.json()["error"]
        kind, message, param = error["type"], error["message"], error.get("param")
    except (ValueError, KeyError, TypeError):  # a proxy's own answer
        kind, message, param = "not_ours", response.text[:200] or response.reason_phrase, None
    raise ApiError(response.status_code, kind, message, param, response.headers.get("x-request-id"))


def wait_before_retry(response: httpx.Response, attempt: int, retries: Retries) -> float | None:
    """Seconds to wait before the next try; None = the answer stands."""
    if response.status_code not in _TRY_AGAIN or attempt >= retries.attempts:
        return None
    said = response.headers.get("retry-after", "1")
    seconds = float(said) if said.isascii() and said.isdigit() else 1.0  # it may be a date, which ours never is
    return seconds if seconds <= retries.longest_wait else None


class EventReader:
    """Lines of a stream, one at a time, as events. Raises ApiError for the server's error, and for a stream cut short.

    Args:
        images: that were asked for.
    """

    def __init__(self, request_id: str | None, images: int) -> None:
        self._request_id, self._name, self._missing = request_id, "", images

    def feed(self, line: str) -> Iterator[Event]:
        """The event that this line completes, if any; comments and events of later versions are passed over."""
        if line.startswith("event: "):
            self._name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            if self._name == "error":
                error = json.loads(data)["error"]
                raise ApiError(200, error["type"], error["message"], error.get("param"), self._request_id)
            if self._name in _EVENTS:
                event = _EVENTS[self._name].model_validate_json(data)
                self._missing -= isinstance(event, CompletedEvent)
                yield event

    def end(self) -> None:
        """The stream has ended."""
        if self._missing > 0:
            raise ApiError(200, "cut_short", "the stream ended before all images were done", None, self._request_id)
