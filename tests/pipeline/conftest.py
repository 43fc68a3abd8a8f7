"""A photograph, and a way to run a command in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from realcustom.pipeline.cli.main import run


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
