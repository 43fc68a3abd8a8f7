"""The arrows between folders: which may import which, where Ray may be imported, and what must import fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MIDDLE = {"preprocessing", "training", "inference", "evaluation", "sprites"}
PACKAGES = {"realcustom", "pipeline"} | MIDDLE
MAY_IMPORT = {
    "realcustom": set(),
    **{package: {"realcustom"} for package in MIDDLE},
    "pipeline": {"realcustom"} | MIDDLE,
}
WITHOUT_RAY = {"realcustom", "evaluation", "sprites"}
# The parts of the other folders that are profiled, tested and run without a cluster.
PURE_FILES = {
    "training/objective.py",
    "training/loop.py",
    "inference/engine.py",
    "inference/service.py",
    "inference/api.py",
}


def imported(source: str, path: str) -> Iterator[tuple[str, int]]:
    """Top-level names of all that `source` imports, wherever in the file, with the line."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"relative import of {node.module or '.'}", node.lineno
            else:
                yield (node.module or "").split(".")[0], node.lineno


def wrong_arrows(source: str, path: str) -> list[str]:
    """What is wrong with the imports of the file at `path` (relative to the repository), one line each."""
    package = path.split("/")[0]
    problems = []
    for name, line in imported(source, path):
        if name.startswith("relative import"):
            problems.append(f"{path}:{line}: {name}; write the full name")
        elif name in PACKAGES and name != package and name not in MAY_IMPORT[package]:
            problems.append(f"{path}:{line}: {package} must not import {name}")
        elif name in {"tests", "benchmarks"}:
            problems.append(f"{path}:{line}: {package} must not import {name}")
        elif name == "ray" and (package in WITHOUT_RAY or path in PURE_FILES):
            problems.append(f"{path}:{line}: no Ray in {path if path in PURE_FILES else package}")
    return problems


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_import_points_the_right_way() -> None:
    files = source_files()
    assert {path.relative_to(ROOT).parts[0] for path in files} == PACKAGES
    problems = [
        problem for path in files for problem in wrong_arrows(path.read_text(), path.relative_to(ROOT).as_posix())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("realcustom/mask.py", "import training.objective"),
        ("realcustom/mask.py", "def f():\n    import ray"),
        ("training/loop.py", "from preprocessing import rows"),
        ("training/objective.py", "from ray import train"),
        ("inference/engine.py", "from sprites import zoo_path"),
        ("evaluation/table.py", "import ray.data as data"),
        ("sprites/world.py", "from pipeline.recipes import sprites"),
        ("preprocessing/score.py", "from .rows import INGESTED"),
        ("pipeline/cli.py", "from tests.tiny import tiny_base"),
    ],
)
def test_a_planted_wrong_import_is_found(path: str, source: str) -> None:
    assert len(wrong_arrows(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/cli.py", "import sprites.world, training.run, ray"),
        (
            "training/distributed.py",
            "import ray.train\nfrom realcustom import storage\nfrom training.loop import World",
        ),
        ("sprites/world.py", "import rayleigh\nfrom realcustom.record import SCHEMA"),
    ],
)
def test_a_right_import_is_let_pass(path: str, source: str) -> None:
    assert wrong_arrows(source, path) == []


def test_all_pure_files_exist() -> None:
    assert [path for path in sorted(PURE_FILES) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize(
    "modules",
    [
        sorted(PACKAGES),
        ["realcustom.config", *(f"{path.parent.name}.settings" for path in sorted(ROOT.glob("*/settings.py")))],
        ["pipeline.cli", "pipeline.configure", "pipeline.recipes", "pipeline.cluster", "pipeline.generate"],
    ],
    ids=["packages", "settings", "command line"],
)
def test_imports_neither_torch_nor_ray(modules: list[str]) -> None:
    heavy = ["torch", "ray", "transformers", "diffusers", "fastapi"]
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_recipes_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom pipeline.recipes import RECIPES\nfor recipe in RECIPES.values(): recipe()\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
