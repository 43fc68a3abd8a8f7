"""Features of a training record: from its caches where they are filled, computed where they are not, kept in memory.

Features are computed one record at a time, so that a record's features do not depend on which others are in its batch:
that keeps a resumed run, and one with another number of workers, exact.

Legend: C latent channels, h w latent size, T text tokens, D text width, S visual tokens, Di their width.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import torch

from realcustom.cells import decode_tensor
from realcustom.errors import UsageError
from realcustom.parquet import ParquetFile
from realcustom.store import Store
from realcustom.training.data import RecordIndex


class Kind(enum.Enum):
    """A feature, named after the record's column that caches it."""

    LATENTS = "latents"
    TEXT = "text_features"
    IMAGE = "image_features"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Sources of features: the record's columns of the same names."""

    uid: str
    caption: str
    target_word: str
    image: bytes | None
    subject_mask: dict[str, Any] | None


class Encoders(Protocol):
    """The frozen models that compute features. Each method raises UsageError if the record lacks the data for it."""

    def latents(self, picture: Picture) -> torch.Tensor:
        """(C, h, w)."""

    def text_features(self, caption: str) -> torch.Tensor:
        """(T, D)."""

    def image_features(self, picture: Picture) -> torch.Tensor:
        """(S, Di)."""


class FeatureStore:
    """Features by record number."""

    def __init__(
        self, index: RecordIndex, encoders: Encoders, cache_gib: float, open_files: int, store: Store | None = None
    ) -> None:
        """Start with nothing kept.

        Args:
            index: of the records.
            encoders: compute the features that a record's caches lack.
            cache_gib: decoded features are kept until they fill this many GiB; later ones are read at each use.
            open_files: Parquet files whose columns are held at a time.
            store: reads them; None: one with the default retries.
        """
        self.index, self.encoders = index, encoders
        self._store = store or Store()
        self._budget = int(cache_gib * 2**30)  # bytes left
        self._kept: dict[tuple[Kind, int], torch.Tensor] = {}
        self._shapes: dict[Kind, torch.Size] = {}
        self._open: OrderedDict[int, dict[str, pa.ChunkedArray]] = OrderedDict()
        self._open_files = open_files

    def get(self, kind: Kind, number: int) -> torch.Tensor:
        """The feature of record `number`, on the CPU, in the dtype of its cache (fp32 where computed).

        Raises UsageError, naming the record, where there is neither a cache nor a picture to compute it from, where a
        cache is broken, and where its shape is not that of the records before.
        """
        kept = self._kept.get((kind, number))
        if kept is not None:
            return kept
        cell = self._cell(number, kind.value)
        try:
            tensor = decode_tensor(cell) if cell is not None else self._compute(kind, number)
        except UsageError as error:
            raise UsageError(f"record {self.index.uid(number)}, {kind.value}: {error}") from error
        self._check_shape(kind, number, tensor)
        size = tensor.numel() * tensor.element_size()
        if size <= self._budget:
            self._budget -= size
            self._kept[kind, number] = tensor
        return tensor

    def picture(self, number: int) -> Picture:
        """The columns that features are computed from."""
        read: Callable[[str], Any] = lambda name: self._cell(number, name)  # noqa: E731
        return Picture(
            uid=self.index.uid(number),
            caption=read("caption"),
            target_word=read("target_word"),
            image=read("image"),
            subject_mask=read("subject_mask"),
        )

    def _compute(self, kind: Kind, number: int) -> torch.Tensor:
        if kind is Kind.TEXT:
            return self.encoders.text_features(self._cell(number, "caption")).float().cpu()
        picture = self.picture(number)
        compute = self.encoders.latents if kind is Kind.LATENTS else self.encoders.image_features
        return compute(picture).float().cpu()

    def _check_shape(self, kind: Kind, number: int, tensor: torch.Tensor) -> None:
        shape = self._shapes.setdefault(kind, tensor.shape)
        if tensor.shape != shape:
            raise UsageError(
                f"record {self.index.uid(number)}: its {kind.value} have shape {tuple(tensor.shape)}, those of the "
                f"records before {tuple(shape)}; records of one run have one size"
            )

    def _cell(self, number: int, column: str) -> Any:
        file, row = int(self.index.file[number]), int(self.index.row[number])
        columns = self._open.setdefault(file, {})
        self._open.move_to_end(file)
        while len(self._open) > self._open_files:
            self._open.popitem(last=False)
        if column not in columns:
            columns[column] = ParquetFile(self.index.files[file], self._store).read([column])[column]
        return columns[column][row].as_py()
