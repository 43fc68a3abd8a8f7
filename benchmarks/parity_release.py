"""The released code, imported from a checkout, beside a present-day diffusers."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

MOVED = {"diffusers.models.dual_transformer_2d": "diffusers.models.transformers.dual_transformer_2d"}


class Release:
    """Modules of the release by name, such as `release.module("models.projectors")`."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        """`folder`: the checkout; `scratch`: an empty folder for files of the comparisons."""
        self.folder, self.scratch = folder, scratch
        if not (folder / "inference" / "mask_generation.py").is_file():
            raise SystemExit(
                f"{folder} is no checkout of the released repository: it has no inference/mask_generation.py"
            )
        for old, new in MOVED.items():  # the release imports modules that diffusers has moved since
            sys.modules.setdefault(old, importlib.import_module(new))
        sys.path[:0] = [str(folder), str(folder / "inference")]

    def module(self, name: str) -> Any:
        """A module of the release."""
        found = importlib.import_module(name)
        assert Path(str(found.__file__)).is_relative_to(self.folder), f"{name} was found at {found.__file__}"
        return found

    def config(self) -> dict[str, Any]:
        """The UNet's configuration in the release."""
        loaded: dict[str, Any] = json.loads((self.folder / "configs" / "realcustom_sigdino_highres.json").read_text())
        return loaded

    def word_tokens(self, text_model: Any, prompt: str, phrase: str) -> list[int]:
        """Its pipeline's own search; of that file the method alone is run, the rest needs torchvision and weights."""
        import torch

        tree = ast.parse((self.folder / "inference" / "pipeline.py").read_text())
        (method,) = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == "_find_phrase_positions_in_text"
        )
        find = self.module("inference_utils").find_phrase_positions_in_text
        names: dict[str, Any] = {"torch": torch, "find_phrase_positions_in_text": find}
        exec(compile(ast.Module([method], []), "pipeline.py", "exec"), names)
        pipeline = types.SimpleNamespace(text_model=text_model, device="cpu")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it finds
            tokens = names[method.name](pipeline, prompt, phrase)
        positions: list[int] = tokens[0].nonzero().flatten().tolist()
        return positions
