"""Small corpora for the tests: random pictures, and webdataset shards of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth random picture; two seeds give pictures that no perceptual hash confuses."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sample(key: str, data: bytes, caption: str | None = "a toy", view_group: str | None = None) -> dict[str, bytes]:
    """The members of a webdataset sample."""
    members = {f"{key}.jpg": data}
    if caption is not None:
        members[f"{key}.txt"] = caption.encode()
    if view_group is not None:
        members[f"{key}.json"] = json.dumps({"view_group": view_group}).encode()
    return members


def tar_bytes(members: dict[str, bytes] | list[tuple[str, bytes]], fmt: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each member of a tar in which nothing tells when and by whom it was written."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
        assert all((info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "") for info in infos)
        return [(info.name, archive.extractfile(info).read()) for info in infos]  # type: ignore[union-attr]


def write_shards(folder: Path, shards: int, samples: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> Path:
    """`shards` sound shards of `samples` pictures each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(samples):
            image = picture(seed + 1000 * shard + number, size)
            members |= sample(f"{number:06d}", jpeg(image), f"a toy number {number}")
        (folder / f"shard-{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def snapshot(folder: str | Path) -> dict[str, bytes]:
    """Every file below `folder` by its relative name."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
