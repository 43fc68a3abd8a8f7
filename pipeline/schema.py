"""A JSON schema of the settings: editors complete and check settings files by it."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from typing import Any

from realcustom.config import to_dict
from realcustom.pipeline.comments import comments_of
from realcustom.pipeline.recipes import RunSettings

_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def settings_schema() -> dict[str, Any]:
    """The schema of a `--config` file. Every setting may be left out: a recipe has it."""
    schema = _object(RunSettings)
    schema["properties"]["request"] = {"type": "object", "description": "What a settings.yaml of `generate` asked for."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "RealCustom settings", **schema}


def _object(settings: type) -> dict[str, Any]:
    hints, comments = typing.get_type_hints(settings), comments_of(settings)
    properties = {}
    for field in dataclasses.fields(settings):
        schema = _of(hints[field.name])
        if text := comments.get(field.name):
            schema["description"] = text
        if field.default is not dataclasses.MISSING:
            schema["default"] = to_dict(field.default)
        properties[field.name] = schema
    about = inspect.getdoc(settings) or ""
    return {"type": "object", "description": about, "properties": properties, "additionalProperties": False}


def _of(hint: Any) -> dict[str, Any]:
    """The schema of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(part) for part in arguments]}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _of(arguments[0])}
        parts = [_of(part) for part in arguments]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint))
    if issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": _SCALARS[hint]}
