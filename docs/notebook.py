"""Run the cells of first_steps.ipynb and keep the pictures that they show: `python docs/notebook.py`."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

FILE = Path(__file__).with_name("first_steps.ipynb")


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run one after the other in the current folder.

    As in Jupyter, a cell shows what it prints and the value of its last line; the value must be a picture.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell = {**cell, "outputs": _run("".join(cell["source"]), names)}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, FILE.name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), FILE.name, "eval"), names) if last else None  # type: ignore[attr-defined]
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})
    if value is not None:
        assert isinstance(value, Image.Image), f"a cell ends with {type(value).__name__}, not with a picture"
        outputs.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": _png(value)}})
    return outputs


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Write the file anew."""
    os.chdir(FILE.parent)  # where Jupyter runs it
    FILE.write_text(json.dumps(run(json.loads(FILE.read_text())), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
