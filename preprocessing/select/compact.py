"""Signatures as the search passes them on between its steps: what it compares, in fewer bytes. Nothing is lost.

Hashes and colours do not compress as they are: those of neighbouring views and cells are alike, and their differences do. Of a
picture that is written many times there are the hashes alone.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.hashes import COLOR_SIDE, LONG_BYTES, SHORT_BYTES, VIEWS, long_hashes, short_hashes
from realcustom.preprocessing.select.duplicates import SIGNATURES, fixed_bytes, priorities_of
from realcustom.preprocessing.select.near import Signatures

_COMPARED = ("rank", "sha256", *(field.name for field in tables.SIGNATURE_FIELDS))
COMPACT = pa.schema([SIGNATURES.field(name) for name in _COMPARED], metadata={"signatures": "compact"})
HASHES = pa.schema(
    [pa.field("number", pa.int64(), nullable=False), *(SIGNATURES.field(name) for name in ("phashes", "long_hashes"))],
    metadata={"signatures": "hashes"},
)


def compacted(table: pa.Table) -> pa.Table:
    """`SIGNATURES` -> `COMPACT`: the columns that are compared, as differences."""
    short, long, color = _signatures(table)
    pixels = color.reshape(len(color), COLOR_SIDE, COLOR_SIDE, 3).copy()
    pixels[..., ::2] -= pixels[..., 1:2]  # red and blue from green
    for axis in (1, 2):
        pixels = np.diff(pixels, axis=axis, prepend=np.zeros_like(pixels.take([0], axis)))
    return _with(
        table.select(COMPACT.names), _differences(short, SHORT_BYTES), _differences(long, LONG_BYTES), pixels
    ).cast(COMPACT)


def hashes_of(table: pa.Table) -> pa.Table:
    """`SIGNATURES` -> `HASHES`: the pictures' numbers, and their hashes as differences."""
    short, long, _ = _signatures(table)
    hashes = _with(table.select(HASHES.names[1:]), _differences(short, SHORT_BYTES), _differences(long, LONG_BYTES))
    numbers = pa.array(priorities_of(table["rank"])[:, 1].astype(np.int64))
    return hashes.add_column(0, HASHES.field("number"), numbers).cast(HASHES)


def arrays_of_hashes(table: pa.Table) -> Signatures:
    """The hashes of `HASHES` as arrays, without colours."""
    short, long = (
        _sums(fixed_bytes(table[name], VIEWS * width), width).reshape(len(table), VIEWS * width)
        for name, width in (("phashes", SHORT_BYTES), ("long_hashes", LONG_BYTES))
    )
    return Signatures(short=short_hashes(short), long=long_hashes(long), color=np.empty((len(table), 0), np.uint8))


def restored(table: pa.Table) -> pa.Table:
    """The columns that are compared of `SIGNATURES` or of `COMPACT`."""
    if (table.schema.metadata or {}).get(b"signatures") != b"compact":
        return table.select(COMPACT.names)
    short, long, color = _signatures(table)
    pixels = color.reshape(len(color), COLOR_SIDE, COLOR_SIDE, 3)
    for axis in (2, 1):
        pixels = np.cumsum(pixels, axis=axis, dtype=np.uint8)
    pixels[..., ::2] += pixels[..., 1:2]
    return _with(table, _sums(short, SHORT_BYTES), _sums(long, LONG_BYTES), pixels).replace_schema_metadata(None)


def _signatures(table: pa.Table) -> list[np.ndarray]:
    """The signature columns as uint8 (n, width)."""
    return [fixed_bytes(table[field.name], field.type.byte_width) for field in tables.SIGNATURE_FIELDS]


def _differences(hashes: np.ndarray, width: int) -> np.ndarray:
    """Each view's hash as what differs from that of the view before."""
    views = hashes.reshape(len(hashes), VIEWS, width).copy()
    views[:, 1:] ^= views[:, :-1].copy()
    return views


def _sums(differences: np.ndarray, width: int) -> np.ndarray:
    views: np.ndarray = np.bitwise_xor.accumulate(differences.reshape(len(differences), VIEWS, width), axis=1)
    return views


def _with(table: pa.Table, *signatures: np.ndarray) -> pa.Table:
    """`table` with these as its first signature columns."""
    for field, values in zip(tables.SIGNATURE_FIELDS, signatures, strict=False):
        data = pa.py_buffer(np.ascontiguousarray(values).tobytes())
        column = pa.Array.from_buffers(field.type, len(values), [None, data])
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return table
