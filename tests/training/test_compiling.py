"""Training with compiled regions: the losses of a run without; no compiler is said."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from realcustom.compiling import compile_regions, needs_compiler
from realcustom.errors import UsageError
from realcustom.training import models
from realcustom.training.run import TrainResult
from realcustom.training.settings import TrainSettings
from tests.support.training_runs import SETTINGS, curve, fit

# torch's compiler looks at the gradient of what goes into a region
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

SHORT = replace(SETTINGS, steps=3, val_every=2, sample_records=0, log_every=1)


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def assert_same_losses(ours: TrainResult, theirs: TrainResult, tolerance: float) -> None:
    assert len(ours.curve) == len(theirs.curve) == 6
    for (step, *losses), (other, *expected) in zip(curve(ours), curve(theirs), strict=True):
        assert step == other
        for loss, value in zip(losses, expected, strict=True):
            assert loss == (None if value is None else pytest.approx(value, abs=tolerance))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_graphs_of_forward_and_backward(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """Without their translation into machine code, which takes a compiler and minutes."""
    monkeypatch.setattr(models, "compile_regions", functools.partial(compile_regions, backend="aot_eager"))
    settings = replace(SHORT, gradient_checkpointing=checkpointing)
    eager = fit(world, tmp_path / "eager", settings)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = fit(world, tmp_path / "compiled", replace(settings, compile=True))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]
    assert_same_losses(compiled, eager, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # in what its compiler imports
def test_machine_code(world: SimpleNamespace, tmp_path: Path) -> None:
    settings: TrainSettings = replace(SHORT, threads=2)
    eager = fit(world, tmp_path / "eager", settings)
    assert_same_losses(fit(world, tmp_path / "compiled", replace(settings, compile=True)), eager, 1e-4)


def test_no_compiler_is_said() -> None:
    with (
        pytest.raises(UsageError, match=r"train\.compile needs a compiler: Compiler: c\+\+ is not found"),
        needs_compiler("train.compile"),
    ):
        raise InductorError(InvalidCxxCompiler("c++"), None)
