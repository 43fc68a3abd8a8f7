"""Ingest, score and select as one plain loop in one process: the baseline for the stages on Ray.

    python benchmarks/plain_loop.py SHARDS OUTPUT

Decodes, measures, hashes and compares with the same functions of pictures and arrays; all else is written here. Keeps
the same rows, a Parquet file per shard. It has no units, manifests, hashes of files, retries, torn archives, resume or
reports.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.preprocessing import hashes, pictures, tables
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.select.near import Limits, Signatures, near_pairs
from realcustom.preprocessing.settings import IngestSettings, ScoreSettings, SelectSettings
from realcustom.record import picture_uid

SIDE, MAX_PIXELS = ScoreSettings().sharpness_side, IngestSettings().max_pixels
SELECT = SelectSettings()
SCHEMA = pa.schema([*tables.HASHED, tables.MEMBERS, tables.COLUMNS, *tables.SCORE_FIELDS])


def main(shards: Path, output: Path) -> None:
    """The whole corpus. The pictures of a shard are held at a time; signatures of all of them."""
    for folder in (output / "scored", output / "kept"):
        folder.mkdir(parents=True)
    passed: list[dict[str, Any]] = []  # without their pictures
    for shard in sorted(shards.glob("*.tar")):
        rows = list(scored(shard))
        write(pa.Table.from_pylist(rows, schema=SCHEMA), output / "scored" / f"{shard.stem}.parquet")
        passed += [{**row, "image": None} for row in rows if passes(row)]
    kept = {row["uid"] for row in passed} - copies(passed)
    for file in sorted((output / "scored").iterdir()):
        table = pq.read_table(file, use_threads=False)
        chosen = pa.array([uid in kept for uid in table["uid"].to_pylist()])
        write(table.filter(chosen), output / "kept" / file.name)


def write(table: pa.Table, path: Path) -> None:
    """As the stages write: the defaults of pyarrow take a third more CPU."""
    path.write_bytes(tables.to_parquet(table))


def scored(shard: Path) -> Iterator[dict[str, Any]]:
    """The rows of a shard whose pictures are not damaged."""
    for name, data, text in samples(shard):
        key = f"{shard.name}/{name}"
        try:
            small, (width, height) = pictures.decode_with_size(data, MAX_PIXELS, draft_side=hashes.BASE_SIDE)
            picture = pictures.decode(data, draft_side=SIDE)
        except DataError:
            continue
        signature = hashes.signature(small)
        yield {
            "uid": picture_uid(key),
            "key": key,
            "sha256": hashlib.sha256(data).digest(),
            "image": data,
            "width": width,
            "height": height,
            "alt_text": text.decode().strip(),
            "members": [{"name": name, "data": None}, {"name": name.replace(".jpg", ".txt"), "data": text}],
            "scores": {"sharpness": pictures.sharpness(picture, SIDE)},
            "phashes": signature.phashes,
            "long_hashes": signature.long_hashes,
            "color": signature.color,
            "image_bytes": len(data),
        }


def samples(shard: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Name of the picture, its bytes and its caption's."""
    with tarfile.open(shard) as archive:
        name, picture = "", b""
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None, f"{member.name} is no regular file"
            if member.name.endswith(".jpg"):
                name, picture = member.name, file.read()
            else:
                yield name, picture, file.read()


def passes(row: dict[str, Any]) -> bool:
    """Whether a picture is large enough and its aspect ratio within the limit."""
    short, long = sorted((row["width"], row["height"]))
    return bool(short >= SELECT.min_side and long <= SELECT.max_aspect * short)


def copies(rows: list[dict[str, Any]]) -> set[str]:
    """The uids of pictures of which a better copy is kept: with a caption, more pixels, then more bytes, then earlier."""

    def priority(index: int) -> tuple[bool, int, int, int]:
        row = rows[index]
        return not row["alt_text"], -row["width"] * row["height"], -row["image_bytes"], index

    better: dict[int, list[int]] = {}
    for pair in near_pairs(signatures(rows), None, limits()).tolist():
        first, second = sorted(pair, key=priority)
        better.setdefault(second, []).append(first)
    dropped = set[int]()
    for index in sorted(better, key=priority):
        if not dropped.issuperset(better[index]):
            dropped.add(index)
    return {rows[index]["uid"] for index in dropped}


def signatures(rows: list[dict[str, Any]]) -> Signatures:
    """Hashes and thumbnails of all pictures as arrays."""
    short, long, color = (
        np.frombuffer(b"".join(row[name] for row in rows), np.uint8).reshape(len(rows), -1)
        for name in ("phashes", "long_hashes", "color")
    )
    return Signatures(short=hashes.short_hashes(short), long=hashes.long_hashes(long), color=color)


def limits() -> Limits:
    """The stage's own."""
    assert SELECT.near_duplicate_radius is not None
    return Limits(
        radius=SELECT.near_duplicate_radius,
        long_radius=SELECT.near_duplicate_bits,
        color=SELECT.near_duplicate_color,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
