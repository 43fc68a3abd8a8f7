"""The form of `POST /v1/images/edits`, as OpenAI's clients send it: the pictures are the subjects.

The form is read in memory alone. Numbers and booleans come as text and are read as JSON has them.
"""

from __future__ import annotations

import base64
import re
import types
import typing
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pydantic_core
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from realcustom.inference.errors import RequestError, TooLarge, WrongMediaType
from realcustom.inference.naming import Naming, name_subject
from realcustom.inference.problems import shortened
from realcustom.inference.schema import IGNORED, GenerationRequest, ImagesRequest, check_request
from realcustom.inference.settings import ServeSettings

MAX_FIELDS = 100
MAX_FIELD_BYTES = 1 << 20
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}")  # RFC 2046, 5.1.1, without spaces
_PLAIN = {int, float, bool, types.NoneType}
_READ_AS_JSON = {
    name
    for name, field in GenerationRequest.model_fields.items()
    if set(typing.get_args(field.annotation) or (field.annotation,)) <= _PLAIN
}


class _InMemory(MultiPartParser):
    """Files stay in memory: the body's size is bounded already, and a request opens no file."""

    spool_max_size = 0  # of a spooled file: never written to a disk


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A checked request, from a form."""

    request: ImagesRequest
    words: list[str] | None  # of its subjects; None where they are in the request itself


async def parse_edit(body: bytes, content_type: str, settings: ServeSettings, naming: Naming | None) -> Edit:
    """The request in a form: each `image` is a subject, each `word` its word in the prompt.

    Args:
        naming: finds the word where the form has none; None = the form must have it.
    Raises:
        WrongMediaType: no form. RequestError: a mistake in it.
    """
    fields, pictures = await _read_form(body, content_type, settings)
    words = fields.pop("word", [])
    for name, value in fields.items():
        if len(value) > 1:
            raise RequestError(f"{shortened(name)}: given {len(value)} times; once is enough", shortened(name))
    plain = {name: _value(name, value[0]) for name, value in fields.items()}
    if "subjects" in plain:
        raise RequestError("subjects: of an edit they are its image and word fields", "subjects")
    if not pictures:
        raise RequestError("field 'image' is missing: send the subject's picture as a file", "image")
    if not words:
        words = [
            await name_subject(
                str(plain.get("prompt", ""))[: settings.max_prompt_characters], pictures, settings, naming
            )
        ]
    if len(words) != len(pictures):
        raise RequestError(
            f"word: {len(words)} words for {len(pictures)} pictures; give one for each, in order", "word"
        )
    subjects = [{"image": picture, "word": word} for picture, word in zip(pictures, words, strict=True)]
    return Edit(request=check_request({**plain, "subjects": subjects}, settings), words=words)


async def _read_form(body: bytes, content_type: str, settings: ServeSettings) -> tuple[dict[str, list[str]], list[str]]:
    """Text fields by name, and the pictures as base64. `name[]` is `name`."""
    parser = _InMemory(
        _form_headers(content_type),
        _once(body),
        max_files=settings.max_subjects + len(IGNORED),
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}") from error
    try:
        fields: dict[str, list[str]] = {}
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            text = await _encoded_file(name, value, settings) if isinstance(value, UploadFile) else value
            fields.setdefault(name, []).append(text)
    finally:
        await form.close()
    return fields, fields.pop("image", [])


def _form_headers(content_type: str) -> Headers:
    """The header that the parser reads, with the boundary alone: a client's `charset` would choose Python's codec."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise WrongMediaType("send a form: Content-Type multipart/form-data with the picture as the file 'image'")
    boundary = options.get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        raise RequestError("the form cannot be read: its boundary is 1 to 70 letters, digits and '()+_,-./:=?")
    return Headers({"Content-Type": f'multipart/form-data; boundary="{boundary}"'})


async def _encoded_file(name: str, file: UploadFile, settings: ServeSettings) -> str:
    """A picture as base64. Raises RequestError for a file in the place of a text."""
    if name in IGNORED:
        return "a file"
    if name != "image":
        raise RequestError(f"{shortened(name)}: a file; the files of an edit are its pictures", shortened(name))
    data = await file.read()
    if len(data) > settings.max_image_bytes:
        raise TooLarge(f"image: {len(data)} bytes are over {settings.max_image_bytes}; send a smaller picture", name)
    return base64.b64encode(data).decode("ascii")


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _value(name: str, text: str) -> Any:
    """A field's text as its type; what cannot be read stays text, which the schema then refuses by name."""
    if name not in _READ_AS_JSON:
        return text
    try:
        return pydantic_core.from_json(text)
    except ValueError:
        return text
