"""`/docs`: the document as one page of HTML, made here, without scripts and without anything from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>RealCustom: API</title><link rel="icon" href="page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="docs.css"></head><body><main>
"""
STYLE = """:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { border-top: 1px solid; padding-top: 1rem; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; }
"""


_LIMITS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))


def reference_page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document: its routes, then its models."""
    parts = [_HEAD, f"<h1>{_text(document['info']['title'])}</h1>\n"]
    parts.append(f"<p>{_text(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>\n")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method, path, operation)
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"<h2 id='{_text(name)}'>{_text(name)}</h2>\n<p>{_text(schema.get('description', ''))}</p>\n")
        parts += _fields(schema)
    return "".join([*parts, "</main></body></html>\n"])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {_text(path)}</code></h2>\n<p>{_text(operation.get('description', ''))}</p>\n"
    for parameter in operation.get("parameters", []):
        description = _text(parameter.get("description", ""))
        yield f"<p><code>{_text(parameter['name'])}</code> ({parameter['in']}) {description}</p>\n"
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: {_text(kind)} {_type(body['schema'])}</p>\n"
        yield from _fields(body["schema"])
    rows = []
    for status, answer in operation["responses"].items():
        kinds = ", ".join(
            f"{_text(kind)} {_type(content.get('schema', {}))}" for kind, content in answer.get("content", {}).items()
        )
        rows.append(f"<tr><td>{status}</td><td>{_text(answer['description'])}</td><td>{kinds}</td></tr>\n")
    yield f"<table><tr><th>status</th><th>when</th><th>answer</th></tr>\n{''.join(rows)}</table>\n"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    if not properties:
        return
    required = schema.get("required", [])
    yield "<table><tr><th>field</th><th>type</th><th></th></tr>\n"
    for name, field in properties.items():
        needed = " (required)" if name in required else ""
        default = f" Default: {_text(str(field['default']))}." if field.get("default") is not None else ""
        description = f"{_text(field.get('description', ''))}{default}{needed}"
        yield f"<tr><td><code>{_text(name)}</code></td><td>{_type(field)}</td><td>{description}</td></tr>\n"
    yield "</table>\n"


def _type(schema: Mapping[str, Any]) -> str:
    """A schema's type in a few words, with links."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "properties" in schema and "data" in schema["properties"]:
        return "of " + _type(schema["properties"]["data"]["contentSchema"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(_text(str(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [
        f"{sign} {schema[name]}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if name in schema
    ]
    return _text(" ".join([str(schema.get("type", "any")), *limits]))


def _text(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
