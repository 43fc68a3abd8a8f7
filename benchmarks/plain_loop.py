"""Ingest, score and select as one plain loop in one process: what the stages on Ray are measured against.

    python benchmarks/plain_loop.py SHARDS OUTPUT

Decodes, measures, hashes and compares with the same functions, and writes the same kept rows, a Parquet file per shard.
Nothing that a platform needs is here: no units, manifests, hashes of files, retries, torn archives, resume or reports.
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

from realcustom.preprocessing import tables
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.pictures import decode, decode_with_size, sharpness
from realcustom.preprocessing.select.duplicates import collapse, find_edges, numbers_of, signatures_of
from realcustom.preprocessing.select.survivors import resolve
from realcustom.preprocessing.select.thresholds import failed_threshold
from realcustom.preprocessing.settings import IngestSettings, ScoreSettings, SelectSettings
from realcustom.record import picture_uid

SCHEMA = pa.schema([*tables.HASHED, tables.MEMBERS, tables.COLUMNS, *tables.SCORE_FIELDS])
SIDE, MAX_PIXELS = ScoreSettings().sharpness_side, IngestSettings().max_pixels


def main(shards: Path, output: Path) -> None:
    """The whole corpus. The pictures of a shard are held at a time; signatures of all of them."""
    settings, signatures = SelectSettings(), []
    for folder in (output / "scored", output / "kept"):
        folder.mkdir(parents=True)
    for number, shard in enumerate(sorted(shards.glob("*.tar"))):
        table = pa.Table.from_pylist(list(scored(shard)), schema=SCHEMA)
        write(table, output / "scored" / f"{shard.stem}.parquet")
        passed = np.array([reason is None for reason in failed_threshold(table, settings)], bool)
        numbers = numbers_of(number, len(passed))[passed]
        signatures.append(signatures_of(table.filter(pa.array(passed)), numbers))
    distinct, twins = collapse(pa.concat_tables(signatures), settings)
    edges = find_edges(distinct, None, settings)
    copies = set(resolve([edges], [twins]).numbers.tolist())
    for number, file in enumerate(sorted((output / "scored").iterdir())):
        table = pq.read_table(file, use_threads=False)
        failed = failed_threshold(table, settings)
        numbers = numbers_of(number, len(failed)).tolist()
        kept = [reason is None and number not in copies for reason, number in zip(failed, numbers, strict=True)]
        write(table.filter(pa.array(kept)), output / "kept" / file.name)


def scored(shard: Path) -> Iterator[dict[str, Any]]:
    """The rows of a shard whose pictures are sound."""
    for name, data, text in samples(shard):
        key = f"{shard.name}/{name}"
        try:
            small, (width, height) = decode_with_size(data, MAX_PIXELS, draft_side=BASE_SIDE)
            picture = decode(data, draft_side=SIDE)
        except DataError:
            continue
        hashes = signature(small)
        yield {
            "uid": picture_uid(key),
            "key": key,
            "sha256": hashlib.sha256(data).digest(),
            "image": data,
            "width": width,
            "height": height,
            "alt_text": text.decode().strip(),
            "members": [
                {"name": name, "data": None},
                {"name": name.replace(".jpg", ".txt"), "data": text},
            ],
            "scores": {"sharpness": sharpness(picture, SIDE)},
            "phashes": hashes.phashes,
            "long_hashes": hashes.long_hashes,
            "color": hashes.color,
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


def write(table: pa.Table, path: Path) -> None:
    """As the stages write."""
    path.write_bytes(tables.to_parquet(table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
