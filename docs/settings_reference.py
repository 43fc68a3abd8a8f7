"""Write docs/settings.md, the reference of all settings, from the dataclasses: `python docs/settings_reference.py`.

A field's description is its comment (`realcustom.pipeline.comments`).
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from realcustom.config import to_dict
from realcustom.pipeline.comments import comments_of, member_comments
from realcustom.pipeline.recipes import RunSettings

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Made by `python docs/settings_reference.py` from the dataclasses. Do not edit it by hand.

`NAME` in the section `a.b` is given as `--set a.b.NAME=VALUE` or in a `--config` file ([configuration](configuration.md)).
The defaults are the dataclasses'; a recipe sets some of them (`--print-config` shows what a command would run with).
In the section `method`, [P] is stated in the paper, and [D] is this project's decision where the paper is silent.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return HEAD + "".join(sections(RunSettings, ""))


def sections(settings: type, name: str) -> list[str]:
    """The section of a dataclass, and those of the dataclasses in it."""
    hints = typing.get_type_hints(settings)
    comments = comments_of(settings)
    rows, inner = [], []
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner += sections(typing.cast(type, hint), f"{name}.{field.name}".lstrip("."))
        else:
            about = comments.get(field.name) or _about(hint)
            cells = (f"`{field.name}`", type_of(hint), default_of(field), about + choices_of(hint))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    title = f"\n## {name or 'The run'}\n\n{_paragraph(settings)}\n"
    table = ["\n| name | type | default | |\n|---|---|---|---|\n", *rows] if rows else []
    return [title, *table, *inner]


def type_of(hint: Any) -> str:
    """A type as a user gives its values: `int or null`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        names = dict.fromkeys(type_of(part) for part in typing.get_args(hint))
        return " or ".join(names)
    if typing.get_origin(hint) is tuple:
        return f"list of {type_of(typing.get_args(hint)[0])}"
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "choice" if len(hint) > 1 else f"`{next(iter(hint)).value}`"
    return str(getattr(hint, "__name__", hint))


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as YAML."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "the recipe's"
    text = yaml.safe_dump(to_dict(value), default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.partition(chr(10))[0]}`"


def choices_of(hint: Any) -> str:
    """The members of an enum, each with its comment."""
    kinds = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and issubclass(part, enum.Enum)]
    if not kinds:
        return ""
    comments = member_comments(kinds[0])
    members = [f"`{member.value}`{comments.get(member.name, '')}" for member in kinds[0]]
    return "<br>" + "<br>".join(members)


def _about(hint: Any) -> str:
    """The first line of an enum's docstring; nothing for another type."""
    return _paragraph(hint).split("\n")[0] if isinstance(hint, type) and issubclass(hint, enum.Enum) else ""


def _paragraph(kind: type) -> str:
    return inspect.getdoc(kind) or ""


if __name__ == "__main__":
    PAGE.write_text(page())
