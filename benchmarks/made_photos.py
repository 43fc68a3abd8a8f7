"""Made-up pictures: a corpus of any size with the textures of a few real photographs, and JPEGs of colours and grain alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (384, 320)  # pixels of a picture
TRUNCATED = 200  # one picture in this many is truncated


def write_shards(folder: Path, photos: list[Path], count: int, per_shard: int = 500, workers: int = 2) -> Path:
    """`count` pictures with captions. Each is a blend of crops of two photographs; every 20th is a copy of the one
    before it in other bytes, every 200th is truncated. The same `count` gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        write = partial(_write_shard, folder, photos, count, per_shard)
        list(pool.map(write, range(-(-count // per_shard))))
    return folder


def smooth_jpegs(count: int, side: int, *, colours: int, grain: float, quality: int) -> Iterator[bytes]:
    """Square JPEGs of smooth random colours with grain, the same in every run.

    Args:
        side: pixels.
        colours: of a side, between which it changes smoothly.
        grain: standard deviation, of 255.
    """
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (colours, colours, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, grain, (side, side, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        yield buffer.getvalue()


def _write_shard(folder: Path, photos: list[Path], count: int, per_shard: int, shard: int) -> None:
    rng = np.random.default_rng((count, shard))
    images = [Image.open(path).convert("RGB").reduce(2) for path in photos]
    picture = images[0]
    with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
        for number in range(shard * per_shard, min(count, (shard + 1) * per_shard)):
            copy = number % 20 == 19
            if not copy:
                one, other = (crop(images[rng.integers(len(images))], rng) for _ in range(2))
                picture = Image.blend(one, other, rng.uniform(0.3, 0.7))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=70 if copy else 80)
            data = buffer.getvalue()
            if number % TRUNCATED == TRUNCATED - 2:
                data = data[: len(data) // 2]
            for extension, content in (("jpg", data), ("txt", f"made photograph {number}".encode())):
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a photograph, 0.4 to 0.8 of its sides, at `SIZE`."""
    side = rng.uniform(0.4, 0.8, 2)
    left, top = rng.uniform(0, 1 - side) * image.size
    width, height = side * image.size
    return image.resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
