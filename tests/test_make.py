"""What `make` says before it makes an environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAND_IN = """#!/bin/sh
# a Python that says that it is another version
if [ "$1" = -V ]; then echo "Python {version}"; exit; fi
exec {python} -c "import sys; sys.version_info = tuple(map(int, '{version}'.split('.'))); exec(sys.argv[2])" "$@"
"""


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("version", ["3.10.14", "2.7.18", "3.15.0"])
@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_a_python_that_is_too_old_or_too_new_is_said_at_once(tmp_path: Path, target: str, version: str) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, version=version))
    python.chmod(0o755)
    done = make(target, f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2 and done.stdout == ""
    said = f"error: Python 3.11 to 3.14 is needed, '{python}' is Python {version}; name another: make PYTHON=python3.12 ..."
    assert done.stderr.splitlines()[0] == said
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all(tmp_path: Path) -> None:
    done = make("quickstart", "PYTHON=python3.99", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no 'python3.99' on this machine; install Python 3.11 to 3.14, or name one")
