"""docs/first_steps.ipynb: its cells run, from a clone and from a folder beside one; its pictures are those that they show."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from docs import notebook

ROOT = Path(__file__).parent.parent


def pictures(content: dict[str, Any]) -> list[np.ndarray]:
    outputs = [output for cell in content["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    data = [base64.b64decode(output["data"]["image/png"]) for output in outputs if "data" in output]
    return [np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for png in data]


def test_its_pictures_are_those_that_its_cells_show(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = json.loads(notebook.FILE.read_text())
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter runs it
    shown, kept = pictures(notebook.run(committed)), pictures(committed)
    assert Path.cwd() == ROOT
    assert len(shown) == len(kept) == 4, "run `python docs/notebook.py`"
    for new, old in zip(shown, kept, strict=True):
        # another processor may differ in last bits
        assert new.shape == old.shape and np.abs(new - old).mean() < 2, "run `python docs/notebook.py`"
    assert notebook.FILE.stat().st_size < 200_000


def test_its_first_cell_takes_a_clone_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin"
    (origin / "sprites" / "zoo").mkdir(parents=True)
    (origin / "sprites" / "zoo" / "SOURCE.md").write_text("models")
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(origin))
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "models")):
        subprocess.run(["git", *own, *command], check=True)
    (tmp_path / "hosted").mkdir()
    monkeypatch.chdir(tmp_path / "hosted")
    first = next(cell for cell in json.loads(notebook.FILE.read_text())["cells"] if cell["cell_type"] == "code")
    source = "".join(first["source"])
    for _ in range(2):  # run again, it clones nothing again
        os.chdir(tmp_path / "hosted")
        exec(source.replace('REPOSITORY = ""', f"REPOSITORY = {origin.as_uri()!r}"), {})
        assert Path.cwd() == tmp_path / "hosted" / "realcustom-clone"
