"""What the source says of a setting: the comments in its dataclass.

A field's description is the comment at its line, else the comment lines above it. If those are a sentence, with a full
stop, they also describe the fields below, up to one that has its own.
"""

from __future__ import annotations

import ast
import enum
import inspect
import io
import textwrap
import tokenize


def comments_of(settings: type) -> dict[str, str]:
    """Field name -> its comment in the source."""
    source = textwrap.dedent(inspect.getsource(settings))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    shared, last = "", 0  # the sentence above a group of fields; the last line of the field before
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign):
            continue
        assert isinstance(node.target, ast.Name) and node.end_lineno is not None
        above = " ".join(texts.get(number, "") for number in range(last + 1, node.lineno)).strip()
        own = " ".join(texts[number] for number in range(node.lineno, node.end_lineno + 1) if number in texts)
        shared = "" if own else above or shared
        found[node.target.id] = own or shared
        shared = shared if shared.endswith(".") else ""
        last = node.end_lineno
    return found


def member_comments(kind: type[enum.Enum]) -> dict[str, str]:
    """Name of an enum's member -> its comment, after a colon and a space."""
    lines = inspect.getsource(kind).splitlines()
    pairs = [line.strip().partition("  # ") for line in lines if " = " in line]
    return {code.partition(" = ")[0]: f": {comment}" for code, _, comment in pairs if comment}
