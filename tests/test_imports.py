"""One namespace, the arrows between folders, no circles, where Ray may be imported, and what must import fast."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Collection, Container, Iterator
from pathlib import Path

import pytest

from realcustom.preprocessing.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent
MIDDLE = {"preprocessing", "training", "inference", "evaluation", "sprites"}
FOLDERS = {"realcustom", "pipeline"} | MIDDLE
MAY_IMPORT = {
    "realcustom": set(),
    **{folder: {"realcustom"} for folder in MIDDLE},
    "pipeline": {"realcustom"} | MIDDLE,
}
ENTRY = "realcustom/__main__.py"  # `python -m realcustom` is the command line, and nothing imports it
WITHOUT_RAY = {"realcustom", "evaluation", "sprites"}
# The parts of the other folders that are profiled, tested and run without a cluster.
PURE_FILES = {
    "training/objective.py",
    "training/loop.py",
    "inference/engine.py",
    "inference/service.py",
    "inference/api.py",
}


def source_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """The name that a file of ours is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "realcustom" else ("realcustom", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The folder that an imported module of the namespace lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "realcustom"


def imported(source: str, path: str, types: bool = True, later: bool = True) -> Iterator[tuple[str, int]]:
    """Full names of all that `source` imports, wherever in the file, with the line; `from a import b` is `a.b`.

    Args:
        types: also what is imported for the type checker alone.
        later: also what is imported when a function is called.
    """
    tree = ast.parse(source, path)
    skipped = set[ast.AST]()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(inner for child in node.body for inner in ast.walk(child))
        if not later and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"relative import of {node.module or '.'}", node.lineno
            else:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wrong_arrows(source: str, path: str) -> list[str]:
    """What is wrong with the imports of the file at `path` (relative to the repository), one line each."""
    folder = path.split("/")[0]
    problems = []
    for name, line in imported(source, path):
        top = name.split(".")[0]
        if name.startswith("relative import"):
            problems.append(f"{path}:{line}: {name}; write the full name")
        elif top in FOLDERS - {"realcustom"}:
            problems.append(f"{path}:{line}: {top} is imported as realcustom.{top}, and never by itself")
        elif top == "realcustom" and path != ENTRY and folder_of(name) not in MAY_IMPORT[folder] | {folder}:
            problems.append(f"{path}:{line}: {folder} must not import {folder_of(name)}")
        elif top in {"tests", "benchmarks"}:
            problems.append(f"{path}:{line}: {folder} must not import {top}")
        elif top == "ray" and (folder in WITHOUT_RAY or path in PURE_FILES):
            problems.append(f"{path}:{line}: no Ray in {path if path in PURE_FILES else folder}")
    return problems


def test_every_import_points_the_right_way() -> None:
    files = source_files()
    assert {path.relative_to(ROOT).parts[0] for path in files} == FOLDERS
    problems = [
        problem for path in files for problem in wrong_arrows(path.read_text(), path.relative_to(ROOT).as_posix())
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("realcustom/mask.py", "import realcustom.training.objective"),
        ("realcustom/mask.py", "def f():\n    import ray"),
        ("training/loop.py", "from realcustom.preprocessing import tables"),
        ("training/loop.py", "from training.objective import Objective"),
        ("training/objective.py", "from ray import train"),
        ("inference/engine.py", "from realcustom.sprites import zoo_path"),
        ("evaluation/table.py", "import ray.data as data"),
        ("sprites/world.py", "from realcustom.pipeline.recipes import sprites"),
        ("preprocessing/score/stage.py", "from .tables import INGESTED"),
        ("pipeline/cli/main.py", "from tests.support.tiny import tiny_base"),
    ],
)
def test_a_planted_wrong_import_is_found(path: str, source: str) -> None:
    assert len(wrong_arrows(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/cli/main.py", "import realcustom.sprites.world, realcustom.training.run, ray"),
        (
            "training/distributed.py",
            "import ray.train\nfrom realcustom import storage\nfrom realcustom.training.loop import World",
        ),
        ("sprites/world.py", "import rayleigh\nfrom realcustom.record import SCHEMA"),
    ],
)
def test_a_right_import_is_let_pass(path: str, source: str) -> None:
    assert wrong_arrows(source, path) == []


def test_all_pure_files_exist() -> None:
    assert [path for path in sorted(PURE_FILES) if not (ROOT / path).is_file()] == []


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others, a list for each such set (Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1 or module in imports[module]:
                found.append(sorted(members))

    for module in sorted(imports):
        if module not in index:
            visit(module)
    return found


def module_named(name: str, modules: Container[str]) -> str:
    """The module of an imported name: `from package import name` is one, where there is such a file, or the package itself."""
    return name if name in modules else name.rpartition(".")[0]


def test_no_modules_import_each_other() -> None:
    """Imports within functions count; those for the type checker alone do not, as nothing runs them."""
    modules = {module_of(path): path for path in source_files()}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = [name for name, _ in imported(path.read_text(), str(path), types=False)]
        imports[module] = {module_named(name, modules) for name in names} & modules.keys()
    assert circles(imports) == []


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


@functools.cache
def imported_at_once(path: Path) -> list[str]:
    """Names that the import of a file of ours imports."""
    return [name for name, _ in imported(path.read_text(), str(path), types=False, later=False)]


def loaded_with(module: str, libraries: Collection[str]) -> dict[str, str]:
    """Those of some libraries that the import of a module of ours loads, with the module of ours that imports them."""
    modules = {module_of(path): path for path in source_files()}
    found: dict[str, str] = {}
    seen, todo = {module}, [module]
    while todo:
        here = todo.pop()
        for name in imported_at_once(modules[here]):
            found |= {library: here for library in libraries if f"{name}.".startswith(f"{library}.")}
            other = module_named(name, modules)
            if other in modules and other not in seen:
                seen.add(other)
                todo.append(other)
    return found


MODELS = ("diffusers", "transformers")  # five seconds of a core, and half a GiB
TORCH = (*MODELS, "torch", "safetensors.torch")  # two seconds


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("realcustom.training.distributed", MODELS),  # the driver and Ray Train's controller
        ("realcustom.training.run", MODELS),
        ("realcustom.preprocessing.engine.ray_data", TORCH),  # the driver, and workers of stages without models
        ("realcustom.pipeline.stages", (*TORCH, "ray")),  # where nothing is left to do
        ("realcustom.pipeline.serving", (*TORCH, "ray")),
        ("realcustom.inference.app", TORCH),  # who deploys it, each process of the API
        ("realcustom.pipeline.naming", TORCH),  # the same, where no detector is set
        ("realcustom.pipeline.inspection", TORCH),
        ("realcustom.pipeline.submission", (*TORCH, "ray")),
    ],
)
def test_a_process_without_models_loads_no_library_for_them(module: str, libraries: tuple[str, ...]) -> None:
    assert loaded_with(module, libraries) == {}


def test_a_library_is_found_where_it_is_loaded() -> None:
    assert loaded_with("realcustom.inference.loading", TORCH).keys() == set(TORCH) - {"safetensors.torch"}
    assert loaded_with("realcustom.training.checkpoints", TORCH).keys() == {"torch", "safetensors.torch"}


def names_of_stages(source: str) -> set[str]:
    """The stages that `source` names: as a string, as a part of an import, or as a section of the settings."""
    stages = set(CATALOGUE)
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & stages
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split(".")) & stages
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings"):
            found |= {node.attr} & stages
    return found


def test_the_engine_names_no_stage() -> None:
    found = {path.name: names_of_stages(path.read_text()) for path in (ROOT / "preprocessing/engine").glob("*.py")}
    assert len(found) > 10 and not any(found.values()), found


@pytest.mark.parametrize(
    "source",
    [
        'if job.name == "ingest":\n    pass',
        "from realcustom.preprocessing.score.stage import Score",
        "limit = job.settings.select.partition_rows",
    ],
)
def test_a_stage_named_in_the_engine_is_found(source: str) -> None:
    assert len(names_of_stages(source)) == 1


def test_the_links_in_the_namespace_are_the_folders() -> None:
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "realcustom").iterdir() if path.is_symlink()}
    assert links == {folder: f"../{folder}" for folder in FOLDERS - {"realcustom"}}


@pytest.mark.parametrize(
    "modules",
    [
        ["realcustom", *(f"realcustom.{folder}" for folder in sorted(FOLDERS - {"realcustom"}))],
        ["realcustom.config", *(module_of(path) for path in sorted(ROOT.glob("*/settings.py")))],
        [f"realcustom.pipeline.{name}" for name in ("cli.main", "configure", "recipes", "cluster", "generate")],
        ["realcustom.training.failures"],
    ],
    ids=["packages", "settings", "command line", "actor of failures"],
)
def test_imports_neither_torch_nor_ray(modules: list[str]) -> None:
    heavy = ["torch", "ray", "transformers", "diffusers", "fastapi"]
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_library_is_imported_without_a_line_of_other_libraries() -> None:
    code = "from realcustom import RealCustomPipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_recipes_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom realcustom.pipeline.recipes import RECIPES\nfor recipe in RECIPES.values(): recipe()\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
