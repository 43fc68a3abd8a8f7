"""Signatures as the search passes them on between its steps: what it compares, in fewer bytes. Nothing is lost.

Each picture is written many times there, and its hashes and colours do not compress as they are: those of neighbouring views
and cells are alike, and their differences do.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.hashes import COLOR_SIDE, LONG_BYTES, SHORT_BYTES
from realcustom.preprocessing.select.duplicates import SIGNATURES, fixed_bytes

_COMPARED = ("rank", "sha256", *(field.name for field in tables.SIGNATURE_FIELDS))
COMPACT = pa.schema([SIGNATURES.field(name) for name in _COMPARED], metadata={"signatures": "compact"})


def compacted(table: pa.Table) -> pa.Table:
    """`SIGNATURES` -> `COMPACT`: the columns that are compared, as differences."""
    short, long, color = _signatures(table)
    pixels = color.reshape(-1, COLOR_SIDE, COLOR_SIDE, 3).copy()
    pixels[..., ::2] -= pixels[..., 1:2]  # red and blue from green
    for axis in (1, 2):
        pixels = np.diff(pixels, axis=axis, prepend=np.zeros_like(pixels.take([0], axis)))
    return _with(
        table.select(COMPACT.names), _differences(short, SHORT_BYTES), _differences(long, LONG_BYTES), pixels
    ).cast(COMPACT)


def restored(table: pa.Table) -> pa.Table:
    """The columns that are compared of `SIGNATURES` or of `COMPACT`."""
    if (table.schema.metadata or {}).get(b"signatures") != b"compact":
        return table.select(COMPACT.names)
    short, long, color = _signatures(table)
    pixels = color.reshape(-1, COLOR_SIDE, COLOR_SIDE, 3)
    for axis in (2, 1):
        pixels = np.cumsum(pixels, axis=axis, dtype=np.uint8)
    pixels[..., ::2] += pixels[..., 1:2]
    return _with(table, _sums(short, SHORT_BYTES), _sums(long, LONG_BYTES), pixels).replace_schema_metadata(None)


def _signatures(table: pa.Table) -> list[np.ndarray]:
    """The signature columns as uint8 (n, width)."""
    return [fixed_bytes(table[field.name], field.type.byte_width) for field in tables.SIGNATURE_FIELDS]


def _differences(hashes: np.ndarray, width: int) -> np.ndarray:
    """Each view's hash as what differs from that of the view before."""
    views = hashes.reshape(len(hashes), -1, width).copy()
    views[:, 1:] ^= views[:, :-1].copy()
    return views


def _sums(differences: np.ndarray, width: int) -> np.ndarray:
    views: np.ndarray = np.bitwise_xor.accumulate(differences.reshape(len(differences), -1, width), axis=1)
    return views


def _with(table: pa.Table, *signatures: np.ndarray) -> pa.Table:
    """`table` with these as its signature columns."""
    for field, values in zip(tables.SIGNATURE_FIELDS, signatures, strict=True):
        data = pa.py_buffer(np.ascontiguousarray(values).tobytes())
        column = pa.Array.from_buffers(field.type, len(values), [None, data])
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return table
