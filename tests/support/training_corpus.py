"""Small folders of training records: with pictures only, or with caches that the real encoders filled."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco

from realcustom.buckets import Buckets
from realcustom.dtype import Dtype
from realcustom.preprocessing.catalogue import ENCODE
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import EncodeSettings, PreprocessSettings
from realcustom.record import SCHEMA, picture_uid, record_uid
from realcustom.settings import MethodSettings
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.features import FeatureStore
from realcustom.training.indexing import open_index

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (240, 240, 240)}


def write_pictures(
    folder: Path,
    count: int,
    files: int = 3,
    side: int = 32,
    views: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
) -> None:
    """`count` records of coloured squares on grey, spread over `files` files, without caches.

    Args:
        views: those of equal colour are views of each other.
        sizes: (width, height) of the pictures in turn; none: all are squares of `side`.
    """
    random = np.random.default_rng(0)
    names = list(COLOURS)
    uids = [record_uid(picture_uid(str(number)), "square", 0) for number in range(count)]
    rows = []
    for number in range(count):
        name = names[number % len(names)]
        width, height = sizes[number % len(sizes)] if sizes else (side, side)
        side = min(width, height)
        left, top = random.integers(2, side // 2, 2)
        pixels = np.full((height, width, 3), random.integers(60, 120), np.uint8)
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[top : top + side // 3, left : left + side // 3] = 1
        pixels[mask == 1] = COLOURS[name]
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        others = [
            uid for other, uid in enumerate(uids) if other % len(names) == number % len(names) and other != number
        ]
        rows.append(
            {
                "uid": uids[number],
                "parent_uid": picture_uid(str(number)),
                "sha256": bytes(32),
                "image": encoded.getvalue(),
                "width": width,
                "height": height,
                "caption": f"a {name} square",
                "caption_source": "alt_text",
                "target_word": "square",
                "target_start": len(f"a {name} "),
                "target_end": len(f"a {name} square"),
                "subject_mask": {"size": [height, width], "counts": coco.encode(mask)["counts"]},
                "view_uids": others if views else [],
            }
        )
    write_rows(folder, rows, files)


def write_rows(folder: Path, rows: list[dict[str, Any]], files: int) -> None:
    folder.mkdir(parents=True)
    for file in range(files):
        part = rows[file * len(rows) // files : (file + 1) * len(rows) // files]
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), folder / f"part-{file:03d}.parquet")


def fill_caches(source: Path, target: Path, encoders: FrozenEncoders, keep_image: bool) -> None:
    """The records of `source` with all three caches, in fp32, and without pictures unless they are to be kept."""
    store = FeatureStore(open_index(str(source)), encoders, memory=2**30)
    rows = [row for path in sorted(source.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    for number, row in enumerate(rows):
        row |= {kind.value: to_cell(store.get(kind, number)) for kind in store.kinds}
        if not keep_image:
            row |= {"image": None, "subject_mask": None}
    write_rows(target, rows, len(list(source.glob("*.parquet"))))


def encode_pictures(
    source: Path, output: Path, base: str, image_encoder: str, method: MethodSettings, buckets: Buckets
) -> str:
    """The directory of the records of `source` that the stage encoded in buckets, one by one, in fp32."""
    encode = EncodeSettings(base=base, image_encoder=image_encoder, buckets=buckets, dtype=Dtype.FLOAT32, batch_size=1)
    settings = PreprocessSettings(encode=encode)
    return run_stage(ENCODE, str(source), str(output), settings, method=method, executor=InProcess()).directory


def to_cell(tensor: torch.Tensor) -> dict[str, Any]:
    array = tensor.cpu().numpy()
    return {"data": array.tobytes(), "shape": list(array.shape), "dtype": str(array.dtype)}
