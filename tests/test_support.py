"""No test file imports another test file or a conftest: what files share is in tests/support/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def wrong_imports(source: str, path: str) -> list[str]:
    """Imports in a file of tests/ that name a file of tests/ outside of tests/support/, one line each."""
    problems = []
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if (
                top in {"", "conftest"}
                or top.startswith("test_")
                or (top == "tests" and rest.split(".")[0] != "support")
            ):
                problems.append(f"{path}:{node.lineno}: {name}")
    return problems


def test_tests_share_code_through_support_alone() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 50
    problems = [line for path in files for line in wrong_imports(path.read_text(), str(path.relative_to(ROOT)))]
    assert not problems, "move what is shared to tests/support/:\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "source",
    [
        "from tests.preprocessing.test_ingest import ingest",
        "from tests.pipeline.conftest import Models",
        "from tests import conftest",
        "import tests.test_docs",
        "def f():\n    from tests.realcustom import test_model",
        "from .conftest import models",
        "from test_ingest import ingest",
        "import conftest",
    ],
)
def test_a_planted_import_is_found(source: str) -> None:
    assert len(wrong_imports(source, "tests/x/test_y.py")) == 1


@pytest.mark.parametrize(
    "source", ["from tests.support.tiny import tiny_base", "from tests.support import tiny", "import testing.tools"]
)
def test_an_import_of_support_or_of_a_library_is_let_pass(source: str) -> None:
    assert wrong_imports(source, "tests/x/test_y.py") == []
