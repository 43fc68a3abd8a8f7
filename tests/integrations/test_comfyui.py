"""The nodes through ComfyUI's interface: inputs are made from INPUT_TYPES, outputs are handed on by RETURN_TYPES."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from realcustom.errors import UsageError
from tests.support.tiny import TinyModels

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    """The nodes, imported as ComfyUI imports a folder of custom_nodes."""
    name = "custom_nodes/realcustom"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    found: dict[str, Any] = module.NODE_CLASS_MAPPINGS
    return found


def execute(node: Any, **linked: Any) -> dict[str, Any]:
    """Run a node as ComfyUI does: by keyword, with the defaults of what is not linked; outputs by their names."""
    inputs = node.INPUT_TYPES()
    every = {**inputs["required"], **inputs.get("optional", {})}
    assert linked.keys() <= every.keys()
    defaults = {name: one[1]["default"] for name, one in every.items() if len(one) > 1 and "default" in one[1]}
    given = {**defaults, **linked}
    for name, value in given.items():
        kind, *options = every[name]
        if kind in ("INT", "FLOAT"):
            assert options[0]["min"] <= value <= options[0]["max"], name
        elif isinstance(kind, list):
            assert value in kind
    result = getattr(node(), node.FUNCTION)(**given)
    assert isinstance(result, tuple) and len(result) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return dict(zip(node.RETURN_NAMES, result, strict=True))


@pytest.fixture(scope="module")
def pipeline(nodes: dict[str, Any], tiny_models: TinyModels) -> Any:
    models = {"base": tiny_models.base, "adapter": tiny_models.adapter, "image_encoder": tiny_models.image_encoder}
    return execute(nodes["RealCustomLoad"], dtype="float32", **models)["pipeline"]


def test_a_picture_and_its_word_become_images_and_masks(nodes: dict[str, Any], pipeline: Any) -> None:
    image = torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(0))
    first = execute(nodes["RealCustomSubject"], image=image, word="toy")["subjects"]
    both = execute(nodes["RealCustomSubject"], image=image.flip(1), word="dog", others=first)["subjects"]
    assert [subject.word for subject in both] == ["toy", "dog"]
    sample = {"pipeline": pipeline, "prompt": "a toy and a dog on grass", "images": 2, "seed": 5}
    out = execute(nodes["RealCustomSample"], subjects=both, **sample)
    images, masks = out["images"], out["masks"]
    assert images.shape == (2, 32, 32, 3) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert masks.ndim == 3 and len(masks) == 2 and masks.max() == 1

    # image i is that of seed + i; the weights reach the call
    again = execute(nodes["RealCustomSample"], subjects=both, **sample | {"images": 1, "seed": 6})["images"]
    assert torch.allclose(again[0], images[1], atol=2 / 255)
    heavier = execute(nodes["RealCustomSample"], subjects=both, subject_guidance_scale=0.0, **sample)["images"]
    assert not torch.equal(heavier, images)


def test_text_alone_and_a_size(nodes: dict[str, Any], pipeline: Any) -> None:
    out = execute(nodes["RealCustomSample"], pipeline=pipeline, prompt="a toy", width=40, height=24, steps=2)
    assert out["images"].shape == (1, 24, 40, 3)
    assert out["masks"].shape == (1, 24, 40) and not out["masks"].any()


def test_a_mistake_is_a_sentence(nodes: dict[str, Any], pipeline: Any) -> None:
    with pytest.raises(UsageError, match="no file at /nowhere"):
        execute(nodes["RealCustomLoad"], base="/nowhere", adapter="/nowhere.safetensors", dtype="float32")
    image = torch.rand(1, 32, 32, 3)
    subjects = execute(nodes["RealCustomSubject"], image=image, word="cat")["subjects"]
    with pytest.raises(UsageError, match="the word 'cat' is not in the prompt"):
        execute(nodes["RealCustomSample"], pipeline=pipeline, prompt="a toy", subjects=subjects)


def test_progress_and_cancel_are_comfyui_s(
    nodes: dict[str, Any], pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ComfyUI's two functions there, each step is told, and its user's cancel ends the call."""
    reached: list[int] = []

    class Cancelled(Exception):
        pass

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            reached.append(value)

    def throw_exception_if_processing_interrupted() -> None:
        if len(reached) == 2:
            raise Cancelled

    host = {name: ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management")}
    vars(host["comfy.utils"])["ProgressBar"] = ProgressBar
    vars(host["comfy.model_management"])["throw_exception_if_processing_interrupted"] = (
        throw_exception_if_processing_interrupted
    )
    for name, module in host.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(Cancelled):
        execute(nodes["RealCustomSample"], pipeline=pipeline, prompt="a toy", steps=5)
    assert reached == [1, 2]
