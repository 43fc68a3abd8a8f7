"""What `/openapi.json` says beyond the routes' own types: every status, header and event."""

from __future__ import annotations

import typing
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from realcustom.inference.edits import MAX_FIELDS
from realcustom.inference.events import CompletedEvent, ErrorEvent, PartialImageEvent, QueuedEvent, StepEvent
from realcustom.inference.responses import ErrorResponse
from realcustom.inference.schema import GenerationRequest
from realcustom.inference.subjects import NewSubject

EVENTS = (QueuedEvent, StepEvent, PartialImageEvent, CompletedEvent, ErrorEvent)
REFERENCES = "#/components/schemas/{model}"
STATUSES = {
    400: "asked for what this API does not have: a URL, a stream with an Idempotency-Key, a malformed header",
    401: "the bearer key is missing or wrong",
    404: "the model, the subject or the request is not there",
    405: "the route has other methods",
    408: "not done within the deadline, or the body came too slowly",
    409: "the X-Request-Id runs already, or the Idempotency-Key belongs to another request",
    413: "the body or a picture is over a limit",
    415: "the body is no form",
    422: "a mistake in the request; the message names the field and the way out",
    429: "the queue is full, too many bodies are being sent, or the key's limit is reached; Retry-After says when",
    499: "the request was cancelled",
    500: "a bug; the server's log has its trace",
    503: "the models are loading or could not be loaded, or an engine ended; Retry-After says when to try again",
}
ALWAYS = (400, 401, 405, 500)  # that every route under /v1 may answer
_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
_ID = {"X-Request-Id": {"description": "the request's id", "schema": {"type": "string"}}}


# base64 of a grey PNG of one pixel
_GREY = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for FastAPI; those of every route are among them."""
    return {
        status: {
            "model": ErrorResponse,
            "description": STATUSES[status],
            "headers": {**_ID, **(_RETRY if status in (429, 503) else {})},
        }
        for status in sorted({*ALWAYS, *statuses})
    }


def drawing(content: dict[str, Any]) -> dict[str, Any]:
    """The document's part of a route that draws: its body and its headers."""
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [
            _header("X-Request-Id", r"^[A-Za-z0-9._-]{1,64}$", "names the request, to cancel it; left out: made here"),
            _header("Idempotency-Key", r"^[!-~]{1,255}$", "the same key and request: the same answer, made once"),
        ],
    }


def stream_answer() -> dict[int | str, dict[str, Any]]:
    """The answer of status 200 as a stream."""
    names = ", ".join(f"`{event.__name__}`" for event in EVENTS)
    return {
        200: {
            "description": f"the images; with `stream`, server-sent events, whose data are {names}",
            "headers": _ID,
            "content": {"text/event-stream": {"schema": _event_schema()}},
        }
    }


def generation_body() -> dict[str, Any]:
    """The JSON of a generation."""
    example = {"prompt": "a cat in the snow", "seed": 7, "num_inference_steps": 2, "size": "auto"}
    streamed = {**example, "stream": True, "partial_images": 1}
    examples = {"whole": {"value": example}, "stream": {"value": streamed}}
    return {"application/json": {"schema": _reference("GenerationRequest"), "examples": examples}}


def subject_body() -> dict[str, Any]:
    """The JSON of a new subject."""
    content = {"schema": _reference("NewSubject"), "examples": {"grey": {"value": {"image": _GREY}}}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def subject_link() -> dict[int | str, dict[str, Any]]:
    """That an answer's id can be asked for."""
    parameters = {"subject_id": "$response.body#/id"}
    return {
        200: {"description": "kept", "links": {"subject": {"operationId": "get_subject", "parameters": parameters}}}
    }


def edit_body() -> dict[str, Any]:
    """The form of an edit: a generation's fields, with files in the place of subjects."""
    schema = GenerationRequest.model_json_schema()
    fields = {name: _without_null(field) for name, field in schema["properties"].items() if name != "subjects"}
    picture = {
        "type": "string",
        "format": "binary",
        "description": "PNG, JPEG or WebP of a subject; `image[]` for several",
    }
    word = {"type": "string", "minLength": 1, "description": "its word in the prompt; left out: the prompt's only noun"}
    form = {
        "type": "object",
        "title": "EditForm",
        "description": "As GenerationRequest; the pictures are the subjects.",
        "properties": {"image": picture, "word": word, **fields},
        "required": ["image", "prompt"],
        "additionalProperties": False,
        "maxProperties": MAX_FIELDS,
    }
    example = {
        "image": "the bytes of a picture",
        "word": "cat",
        "prompt": "a cat in the snow",
        "num_inference_steps": 2,
    }
    return {"multipart/form-data": {"schema": form, "examples": {"edit": {"value": example}}}}


def complete(api: FastAPI, has_keys: bool) -> None:
    """Have the application's document hold the models that no route's type names, and the key."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = plain()
            named = [(model, "serialization") for model in EVENTS] + [
                (model, "validation") for model in (GenerationRequest, NewSubject)
            ]
            _, more = models_json_schema(named, ref_template=REFERENCES)  # type: ignore[arg-type]
            document["components"]["schemas"] |= more["$defs"]
            if has_keys:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, methods in document["paths"].items():
                    for operation in methods.values() if path.startswith("/v1/") else ():
                        operation["security"] = [{"key": []}]
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _event_schema() -> dict[str, Any]:
    """One server-sent event: its name, and its data as JSON."""
    names = [name for event in EVENTS[:-1] for name in _names_of(event)]
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(event.__name__) for event in EVENTS]},
    }
    return {
        "type": "object",
        "properties": {"event": {"enum": [*names, "error"]}, "data": data},
        "required": ["event", "data"],
    }


def _names_of(event: type[BaseModel]) -> tuple[str, ...]:
    return typing.get_args(event.model_fields["type"].annotation)


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field of a form: there a value is left out, it is never null."""
    if "anyOf" not in field:
        return field
    others = [choice for choice in field["anyOf"] if choice != {"type": "null"}]
    rest = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return {**rest, **others[0]} if len(others) == 1 else {**rest, "anyOf": others}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": REFERENCES.format(model=name)}


def _header(name: str, pattern: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
