"""Vectors that models made of pictures and texts, kept in the output, so that nothing is computed twice.

A vector is an embedding, or a judge's scores. It belongs to the key of what it was made of and to the model's revision,
whose folder it lies in. A file holds the vectors of one batch of work and is named by their keys.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realcustom import storage
from realcustom.evaluation.gallery import READERS
from realcustom.store import Store

FOLDER = "vectors"
PER_FILE = 64  # vectors computed between two writes: what a kill loses at most

T = TypeVar("T")


class Vectors:
    """The vectors of one model of an output.

    Args:
        revision: identity of the model and of what is done with its output; a change of it is another folder.
    """

    def __init__(self, output: str, revision: str, store: Store) -> None:
        name = hashlib.sha256(revision.encode()).hexdigest()[:16]
        self._folder, self._store = storage.join(output, FOLDER, name), store
        self._revision = revision
        self._known: dict[str, np.ndarray] | None = None

    def get(self, inputs: Mapping[str, T], compute: Callable[[Sequence[T]], np.ndarray]) -> dict[str, np.ndarray]:
        """The vector of each key; those that are not known are computed and kept.

        Args:
            inputs: what a vector is made of, by its key.
            compute: inputs, at most `PER_FILE` -> (n, D) float64; a row with NaN is returned, not kept.
        """
        known = self._load()
        missing = [key for key in inputs if key not in known]
        found = {key: known[key] for key in inputs if key in known}
        for keys in _chunks(missing, PER_FILE):
            rows = np.asarray(compute([inputs[key] for key in keys]), dtype=np.float64)
            found |= dict(zip(keys, rows, strict=True))
            self._keep([key for key, row in zip(keys, rows, strict=True) if np.isfinite(row).all()], found)
        return found

    def about(self, say: Callable[[], str]) -> str:
        """What `say` says of the model, which is asked once."""
        place = storage.join(self._folder, "about.txt")
        if not self._store.exists(place):
            self._store.write(place, say().encode())
        return self._store.read(place).decode()

    def _load(self) -> dict[str, np.ndarray]:
        if self._known is None:
            self._known = {}
            names = [name for name in self._store.list_names(self._folder) if name.endswith(".parquet")]
            with ThreadPoolExecutor(READERS) as readers:
                for data in readers.map(self._store.read, [storage.join(self._folder, name) for name in names]):
                    table = pq.ParquetFile(io.BytesIO(data)).read()
                    values = table["vector"].combine_chunks()
                    matrix = values.flatten().to_numpy().reshape(len(table), -1)
                    self._known |= dict(zip(table["key"].to_pylist(), matrix, strict=True))
        return self._known

    def _keep(self, keys: Sequence[str], found: Mapping[str, np.ndarray]) -> None:
        if not keys:
            return
        ordered = sorted(keys)
        table = pa.table(
            {"key": ordered, "vector": pa.array([found[key].tolist() for key in ordered], pa.list_(pa.float64()))}
        )
        table = table.replace_schema_metadata({"revision": self._revision})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        name = hashlib.sha256("\n".join(ordered).encode()).hexdigest()[:32]
        self._store.write(storage.join(self._folder, f"{name}.parquet"), buffer.getvalue())
        self._load().update({key: found[key] for key in keys})


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
