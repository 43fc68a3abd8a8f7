"""Made-up signatures with planted copies, as tables that `select` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.hashes import COLOR_SIDE, LONG_BYTES, VIEWS
from realcustom.record import picture_uid

LONG_WORDS = LONG_BYTES // 8


def flipped(values: np.ndarray, bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint64 (n, w), as n numbers of 64 w bits, with `bits` (n,) of them inverted, drawn without repetition."""
    places = np.argsort(rng.random((len(values), 64 * values.shape[1])), axis=1)
    chosen = np.arange(places.shape[1])[None] < bits[:, None]
    mask = np.zeros((len(values), places.shape[1]), np.uint8)
    np.put_along_axis(mask, places, chosen.astype(np.uint8), axis=1)
    return values ^ np.packbits(mask, axis=1).view(np.uint64)


def _noisy(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every bit inverted with probability 1/8."""
    noisy: np.ndarray = values ^ np.bitwise_and.reduce(rng.integers(0, 2**64, (3, *values.shape), dtype=np.uint64))
    return noisy


def originals(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Unrelated pictures: short uint64 (n, V), long uint64 (n, V, 4), color uint8 (n, 432). Insets are like wholes."""
    short = rng.integers(0, 2**64, (count, 1), dtype=np.uint64)
    long = rng.integers(0, 2**64, (count, LONG_WORDS // 2), dtype=np.uint64)
    views = [(short, long)]
    for _ in range(1, VIEWS):
        views.append((_noisy(views[-1][0], rng), _noisy(views[-1][1], rng)))
    color = rng.integers(0, 256, (count, 3 * COLOR_SIDE**2), dtype=np.uint8)
    return {
        "short": np.concatenate([view[0] for view in views], axis=1),
        # half of the bits set, as in a textured picture
        "long": np.stack([np.concatenate([view[1], ~view[1]], axis=1) for view in views], axis=1),
        "color": color,
    }


def copies(
    of: dict[str, np.ndarray], rng: np.random.Generator, short: int = 8, long: int = 30
) -> dict[str, np.ndarray]:
    """One copy of each picture: within `short` and `long` bits of its whole or, a third of them, of its first inset.

    30 bits are within the default limit of 40 in 256 set bits, whichever of them are inverted.
    An inset has other colours than the whole; here a crop's are those that `select` reads off the original.
    """
    count = len(of["short"])
    fresh = originals(count, rng)
    cropped = rng.random(count) < 1 / 3
    source = np.where(cropped, 1, 0)
    index = np.arange(count)
    fresh["short"][:, :1] = flipped(of["short"][index, source][:, None], rng.integers(0, short + 1, count), rng)
    fresh["long"][:, 0] = flipped(of["long"][index, source], rng.integers(0, long + 1, count), rng)
    smooth = np.full_like(of["color"], 128)  # without detail, an inset of 2.5 % looks like the whole
    of["color"][cropped] = smooth[cropped]
    noise = rng.integers(-3, 4, of["color"].shape)
    fresh["color"] = np.clip(of["color"].astype(int) + noise, 0, 255).astype(np.uint8)
    return fresh


def scored(pictures: dict[str, np.ndarray], first: int = 0, better: np.ndarray | None = None) -> pa.Table:
    """A table as `score` writes it. Where `better`, a picture is larger than others and so outranks its copies."""
    count = len(pictures["short"])
    keys = [f"{first + number:09d}.jpg" for number in range(count)]
    width = np.full(count, 512) + (0 if better is None else better.astype(int))
    columns = {
        "uid": pa.array([picture_uid(key) for key in keys]),
        "key": pa.array(keys),
        "sha256": _fixed(np.frombuffer("".join(f"{key:>32}" for key in keys).encode(), np.uint8), 32),
        "image": pa.array([b""] * count, pa.large_binary()),
        "width": pa.array(width, pa.int32()),
        "height": pa.array(np.full(count, 512), pa.int32()),
        "alt_text": pa.nulls(count, pa.string()),
        "view_group": pa.nulls(count, pa.string()),
        "scores": pa.array([{"sharpness": 1.0}] * count, tables.SCORES.type),
        "phashes": _fixed(pictures["short"], 8 * VIEWS),
        "long_hashes": _fixed(pictures["long"], 32 * VIEWS),
        "color": _fixed(pictures["color"], 3 * COLOR_SIDE**2),
        "image_bytes": pa.array(np.full(count, 1000), pa.int64()),
    }
    return pa.table(columns, schema=pa.schema([*tables.HASHED, *tables.SCORE_FIELDS]))


def planted(count: int, doubled: int, seed: int = 0) -> tuple[pa.Table, dict[str, str]]:
    """`count` pictures, copies of the first `doubled` among them, in random places; copy's key -> original's key."""
    rng = np.random.default_rng(seed)
    plain = originals(count - doubled, rng)
    chosen = {name: values[:doubled] for name, values in plain.items()}  # views: a crop's original is smoothed in place
    double = copies(chosen, rng)
    order = rng.permutation(count)
    whole = {name: np.concatenate([plain[name], double[name]])[order] for name in plain}
    table = scored(whole, better=order < count - doubled)
    keys, place = table["key"].to_pylist(), np.argsort(order)
    pairs = {keys[place[count - doubled + number]]: keys[place[number]] for number in range(doubled)}
    return table, pairs


def write_scored(folder: Path, table: pa.Table, per_file: int) -> Path:
    """The table in files of `per_file` rows."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, table.num_rows, per_file)):
        (folder / f"part-{number:05d}.parquet").write_bytes(tables.to_parquet(table.slice(start, per_file)))
    return folder


def _fixed(values: np.ndarray, width: int) -> pa.Array:
    data = np.ascontiguousarray(values).tobytes()
    return pa.Array.from_buffers(pa.binary(width), len(data) // width, [None, pa.py_buffer(data)])
