"""Small faults planted in the method's core, one at a time: the fast tests must fail for each (the slow tier).

A fault is planted in a copy of the package; the tests run on the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("preprocessing", "training", "inference", "evaluation", "pipeline", "sprites")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A planted fault, and the file of tests that must notice it."""

    name: str
    file: str  # in realcustom/
    right: str  # occurs once
    wrong: str
    tests: str  # in tests/realcustom/


MUTANTS = (
    Mutant(
        name="given latents are not brought to the first step's noise",
        file="start.py",
        right="latents=noise * scheduler.init_noise_sigma,",
        wrong="latents=noise * (scheduler.init_noise_sigma if latents is None else 1),",
        tests="test_schedulers.py",
    ),
    Mutant(
        name="the picture outside a mask is without noise",
        file="start.py",
        right="source = scheduler.add_noise(source, self.noise, following.reshape(1))",
        wrong="source = scheduler.add_noise(source, self.noise, following.reshape(1) * 0)",
        tests="test_image_inputs.py",
    ),
    Mutant(
        name="a ControlNet acts a step too long",
        file="controls.py",
        right="(index + 1) / steps <= self.end",
        wrong="index / steps <= self.end",
        tests="test_controls.py",
    ),
    Mutant(
        name="the mask acts outside",
        file="attention.py",
        right="rows.addcmul_(visual, mask.to",
        wrong="rows.addcmul_(visual, 1 - mask.to",
        tests="test_attention.py",
    ),
    Mutant(
        name="the subject's difference is taken from the unconditional branch",
        file="guidance.py",
        right="return null + weights.text * (text - null) + weights.subject * (subject - text)",
        wrong="return null + weights.text * (text - null) + weights.subject * (subject - null)",
        tests="test_guidance.py",
    ),
    Mutant(
        name="odd sides are halved downwards",
        file="maps.py",
        right="height, width = (height + 1) // 2, (width + 1) // 2",
        wrong="height, width = height // 2, width // 2",
        tests="test_attention.py",
    ),
    Mutant(
        name="a map is the largest of the heads",
        file="maps.py",
        right="words = logs.exp_().unflatten(1, (len(self.words.weight), -1)).mean(2) @",
        wrong="words = logs.exp_().unflatten(1, (len(self.words.weight), -1)).amax(2) @",
        tests="test_attention.py",
    ),
    Mutant(
        name="the maps of another branch's rows",
        file="sampler.py",
        right="first = branches.index(source) * len(scaled)",
        wrong="first = 0 * len(scaled)",
        tests="test_mask_source.py",
    ),
    Mutant(
        name="the mask is kept a step too long",
        file="sampler.py",
        right="min(steps, max(1, reuse_after))",
        wrong="min(steps, max(1, reuse_after - 1))",
        tests="test_pipeline.py",
    ),
    Mutant(
        name="the smallest cells are kept",
        file="mask.py",
        right="order = torch.sort(flat, dim=-1, descending=True, stable=True).indices",
        wrong="order = torch.sort(flat, dim=-1, descending=False, stable=True).indices",
        tests="test_mask.py",
    ),
    Mutant(
        name="the mask is divided by the sum",
        file="mask.py",
        right="return _ratio(combined, combined.amax((-2, -1), keepdim=True), settings.eps)",
        wrong="return _ratio(combined, combined.sum((-2, -1), keepdim=True), settings.eps)",
        tests="test_mask.py",
    ),
    Mutant(
        name="the scorer sees the latent before it is scaled",
        file="sampler.py",
        right="joined([sample] * count),",
        wrong="joined([self._unet_sample(self.latents)] * count),",
        tests="test_sampler.py",
    ),
    Mutant(
        name="the scorer is not told of the mask",
        file="sampler.py",
        right="                mask=mask,\n                mask_resize",
        wrong="                mask=None,\n                mask_resize",
        tests="test_sampler.py",
    ),
    Mutant(
        name="the gate is the score itself",
        file="scoring.py",
        right="return index, 1 + scores.gather(1, index)",
        wrong="return index, scores.gather(1, index)",
        tests="test_scoring.py",
    ),
    Mutant(
        name="text and latent change places over the steps",
        file="scoring.py",
        right="return (1 - late) * text + late * visual",
        wrong="return late * text + (1 - late) * visual",
        tests="test_scoring.py",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its tests; the other folders are links."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "realcustom", folder / "realcustom", symlinks=True)
    for name in FOLDERS:
        (folder / name).symlink_to(ROOT / name)
    (folder / "tests").mkdir()
    for part in ("realcustom", "support"):
        shutil.copytree(ROOT / "tests" / part, folder / "tests" / part)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_tests(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/realcustom/{tests}"]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS}))
def test_the_copy_as_it_is_passes(copy: Path, tests: str) -> None:
    done = run_tests(copy, tests)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_caught(copy: Path, mutant: Mutant) -> None:
    file = copy / "realcustom" / mutant.file
    text = file.read_text()
    assert text.count(mutant.right) == 1, f"{mutant.file} has {text.count(mutant.right)} times: {mutant.right}"
    file.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        done = run_tests(copy, mutant.tests)
    finally:
        file.write_text(text)
    assert done.returncode == 1 and "failed" in done.stdout, done.stdout[-3000:]


def test_what_the_faults_change_is_there() -> None:
    """The list follows the code."""
    for mutant in MUTANTS:
        assert (ROOT / "realcustom" / mutant.file).read_text().count(mutant.right) == 1, mutant.name
        assert (ROOT / "tests" / "realcustom" / mutant.tests).is_file(), mutant.name
