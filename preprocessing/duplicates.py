"""Which pictures of a corpus are copies of others: a global phase over small columns.

The survivor of a set of copies is the best of them, whatever order they are read in: one with a caption before one
without, then the larger in pixels, then in bytes, then the first by its key in the source. Rows that fail a threshold
take no part: they are dropped anyway and must not take a good copy with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from preprocessing.settings import SelectSettings

# The small columns that the global phase and the thresholds read.
COLUMNS = ["uid", "key", "sha256", "width", "height", "alt_text", "scores", "phash", "color", "image_bytes"]

EXACT = "exact_duplicate"
NEAR = "near_duplicate"
EVALUATION = "in_evaluation_folder"

# What the global phase writes: the rows that are to be dropped, and the one that each is a copy of.
DUPLICATES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("survivor", pa.string(), nullable=False),  # uid, or the file in the evaluation folder
    ]
)


def failed_threshold(table: pa.Table, settings: SelectSettings) -> list[str | None]:
    """For each row the name of the first threshold that it fails, or None. A null score passes."""
    width, height = _numbers(table["width"]), _numbers(table["height"])
    short, long = np.minimum(width, height), np.maximum(width, height)
    scores = table["scores"].combine_chunks()
    checks: list[tuple[str, np.ndarray]] = [
        ("too_small", short < settings.min_side),
        ("aspect_ratio", long > settings.max_aspect * short),
    ]
    for name, lowest in (
        ("sharpness", settings.min_sharpness),
        ("aesthetic", settings.min_aesthetic),
        ("image_text", settings.min_image_text),
    ):
        if lowest is not None:
            checks.append((f"low_{name}", _score(scores, name) < lowest))
    for name, highest in (("nsfw", settings.max_nsfw), ("watermark", settings.max_watermark)):
        if highest is not None:
            checks.append((f"high_{name}", _score(scores, name) > highest))
    reasons: list[str | None] = [None] * table.num_rows
    for reason, failed in reversed(checks):  # the first check wins
        for index in np.flatnonzero(failed):
            reasons[index] = reason
    return reasons


def find_duplicates(
    table: pa.Table, settings: SelectSettings, evaluation: Sequence[tuple[str, int, bytes]] = ()
) -> pa.Table:
    """Over the whole corpus' small columns (`COLUMNS`): the rows to drop, in the schema `DUPLICATES`, sorted by uid.

    Args:
        evaluation: name, perceptual hash and colour signature of pictures that must not be trained on.
    """
    passed = np.array([reason is None for reason in failed_threshold(table, settings)], dtype=bool)
    table = table.filter(pa.array(passed))
    uids: list[str] = table["uid"].to_pylist()
    captioned = [bool(text) for text in table["alt_text"].to_pylist()]
    pixels = (_numbers(table["width"]) * _numbers(table["height"])).tolist()
    size: list[int] = table["image_bytes"].to_pylist()
    keys: list[str] = table["key"].to_pylist()
    order = sorted(range(len(uids)), key=lambda i: (not captioned[i], -pixels[i], -size[i], keys[i]))  # best first
    hashes: list[int] = table["phash"].to_pylist()
    colors: list[bytes] = table["color"].to_pylist()
    found: dict[str, tuple[str, str]] = {}  # uid -> reason, survivor

    if settings.exact_duplicates:
        first: dict[bytes, str] = {}
        sha256 = table["sha256"].to_pylist()
        for index in order:
            survivor = first.setdefault(sha256[index], uids[index])
            if survivor != uids[index]:
                found[uids[index]] = (EXACT, survivor)
    radius = settings.near_duplicate_radius
    if evaluation:
        seen = NearIndex(radius or 0, settings.near_duplicate_color)
        for name, value, color in evaluation:
            seen.add(name, value, color)
        for index in order:
            match = seen.find(hashes[index], colors[index])
            if match is not None and uids[index] not in found:
                found[uids[index]] = (EVALUATION, match)
    if radius is not None:
        survivors = NearIndex(radius, settings.near_duplicate_color)
        for index in order:
            if uids[index] in found:
                continue
            match = survivors.find(hashes[index], colors[index])
            if match is None:
                survivors.add(uids[index], hashes[index], colors[index])
            else:
                found[uids[index]] = (NEAR, match)
    lines = [{"uid": uid, "reason": found[uid][0], "survivor": found[uid][1]} for uid in sorted(found)]
    return pa.Table.from_pylist(lines, schema=DUPLICATES)


class NearIndex:
    """Finds an earlier picture within a Hamming radius and a colour difference, without comparing with all of them.

    Two 64-bit hashes that differ in at most r bits agree entirely in at least one of r + 1 bands (pigeonhole), so only
    pictures that share a band are compared: exact, and fast for the small radii that mean "the same picture".
    """

    def __init__(self, radius: int, color: float):
        self._radius = radius
        self._color = color
        edges = [64 * band // (radius + 1) for band in range(radius + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]
        self._items: list[tuple[str, int, np.ndarray]] = []

    def add(self, name: str, value: int, color: bytes) -> None:
        """Make a picture findable."""
        for table, (shift, mask) in zip(self._tables, self._bands, strict=True):
            table.setdefault((value >> shift) & mask, []).append(len(self._items))
        self._items.append((name, value, np.frombuffer(color, dtype=np.uint8).astype(np.int16)))

    def find(self, value: int, color: bytes) -> str | None:
        """The name of the first added picture that is a near duplicate, or None."""
        candidates: set[int] = set()
        for table, (shift, mask) in zip(self._tables, self._bands, strict=True):
            candidates.update(table.get((value >> shift) & mask, ()))
        own = np.frombuffer(color, dtype=np.uint8).astype(np.int16)
        for index in sorted(candidates):
            name, other, other_color = self._items[index]
            near = (value ^ other).bit_count() <= self._radius
            if near and float(np.abs(own - other_color).mean()) <= 255 * self._color:
                return name
        return None


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.int64)


def _score(scores: pa.StructArray, name: str) -> np.ndarray:
    return scores.field(name).to_numpy(zero_copy_only=False).astype(np.float64)  # null -> nan, which fails no check
