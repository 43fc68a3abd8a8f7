"""Tiny models that commands are pointed at by --set, and a way to run a command in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from realcustom.pipeline.cli.main import run
from tests.support.tiny import tiny_adapter, tiny_base, tiny_image_encoder


@dataclass(frozen=True, kw_only=True)
class Models:
    """Folders of tiny random models of the real classes."""

    base: str
    image_encoder: str
    adapter: str
    sets: tuple[str, ...]  # --set arguments that put them in the recipe's place


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_base(folder / "base")
    image_encoder = tiny_image_encoder(folder / "image_encoder")
    adapter = tiny_adapter(folder / "adapter.safetensors", base, image_encoder)
    values = {"base": base, "adapter": adapter, "method.image_encoder.model": image_encoder}
    return Models(
        base=base,
        image_encoder=image_encoder,
        adapter=adapter,
        sets=tuple(part for name, value in values.items() for part in ("--set", f"{name}={value}")),
    )


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
