"""What pydantic found wrong with a request, as one sentence with the field and the way out."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from realcustom.inference.errors import RequestError


def first_problem(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """The first of the errors of `model` as one line, with the number of other fields at fault."""
    found = error.errors(include_url=False, include_context=False)
    # an unknown field is usually the cause of a missing one: report it first
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    param = _param(first["loc"], model)
    if first["type"] == "extra_forbidden":
        message = f"unknown field '{shortened(param)}'{_nearest(first['loc'], model)}"
    elif first["type"] == "string_pattern_mismatch":  # `size` alone has a pattern
        message = f"{param}: expected WIDTHxHEIGHT in pixels, such as 512x512, or auto{_shown(first['input'])}"
    elif first["type"] == "missing":
        message = f"field '{param}' is missing"
    else:
        message = f"{shortened(param) or 'body'}: {first['msg']}{_shown(first['input'])}"
    others = len({_param(item["loc"], model) for item in found} - {param})
    more = f" (and {others} more field{'s' if others > 1 else ''} with problems)" if others else ""
    return RequestError(message + more, shortened(param) or None)


def _param(loc: tuple[int | str, ...], model: Any) -> str:
    """("subjects", 0, "word") -> "subjects[0].word"; the branch names that pydantic adds for unions are dropped."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif model is not None:
            text += f".{part}" if text else part
            model = _nested(model, part)
    return text


def _nested(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model in the annotation of this field."""
    field = model.model_fields.get(name)
    nested = [arg for arg in typing.get_args(field.annotation) if _is_model(arg)] if field else []
    return nested[0] if nested else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    owner = (_nested(model, str(loc[0])) if len(loc) > 1 else None) or model
    fields = list(owner.model_fields)
    close = difflib.get_close_matches(shortened(str(loc[-1])), fields, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(fields)}"


def shortened(name: str) -> str:
    """A field's name as a message shows it: a client may send any."""
    return name if len(name) <= 60 else name[:57] + "..."


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return ""
    text = repr(value)
    return f", got {text if len(text) <= 60 else text[:57] + '...'}"
