"""A photograph, and ways to run a command: in this process, and in one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from realcustom.pipeline.cli.main import run
from tests.support.programs import StartProgram, programs


@pytest.fixture
def photo(tmp_path: Path) -> Iterator[str]:
    """A photograph, small."""
    path = tmp_path / "duck.png"
    with Image.open(Path(__file__).parent.parent / "data" / "photos" / "duck_toy.jpg") as image:
        image.resize((48, 48)).save(path)
    yield str(path)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must succeed; returns its standard output."""

    def call(*arguments: str) -> str:
        capfd.readouterr()
        status = run(arguments)
        out, err = capfd.readouterr()
        assert status == 0, err
        return out

    return call


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartProgram]:
    """Starts Python programs; those that are still there at the end are killed."""
    with programs(tmp_path) as call:
        yield call
