"""Commands as jobs of a cluster, and what is in a store before and after them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from realcustom import storage
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds for a job to get somewhere, and for its end


class Submitted:
    """A job that a command follows."""

    def __init__(self, folder: Path, *verb: str) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "realcustom", "submit", "--", *verb],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds, while the job goes on."""

        def holds() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return condition()

        wait_for(holds, PATIENCE, self.log.read_text)

    def end(self) -> None:
        """Returns when the job has ended well."""
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()


def upload(folder: Path, uri: str) -> None:
    """Every file of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def run_here(*arguments: str) -> None:
    """A command without a cluster, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "realcustom", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files(uri: str) -> list[str]:
    """Their names; none where there is no such folder yet."""
    try:
        return [entry.name for entry in storage.list_files(uri)]
    except FileNotFoundError:
        return []


def tree_in_store(uri: str, stage: str) -> dict[str, Any]:
    """What a stage has written below `uri`, by name."""
    entries = [entry for entry in storage.list_files(uri) if entry.name.startswith(f"{stage}@")]
    return _without_versions({entry.name: storage.read_bytes(entry.uri) for entry in entries})


def tree_here(root: Path, stage: str) -> dict[str, Any]:
    """The same of a local folder."""
    [directory] = root.glob(f"{stage}@*")
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return _without_versions({path.relative_to(root).as_posix(): path.read_bytes() for path in paths})


def _without_versions(tree: Mapping[str, bytes]) -> dict[str, Any]:
    """Manifests without what the input's store says of its version."""
    found: dict[str, Any] = {}
    for name, data in tree.items():
        if "/manifests/" in name:
            found[re.sub(r"\.\w{16}(\.\w{16}\.json)$", r"\1", name)] = {**json.loads(data), "input": ""}
        else:
            found[name] = data
    return found
