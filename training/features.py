"""Features of a training record: from its caches where they are filled, computed where they are not, kept in memory.

Features are computed one record at a time, so that a record's features do not depend on which others are in its batch:
that keeps a resumed run, and one with another number of workers, exact.

Legend: C latent channels, h w latent size, T text tokens, D text width, S visual tokens, Di their width.
"""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from realcustom.cells import decode_tensor
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.index import RecordIndex
from realcustom.training.reading import RowGroups


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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a worker's data may take of its memory, in bytes. The rest is for what is being read and decoded."""

    features: int  # row groups and kept features
    batches: int  # batches that wait

    @classmethod
    def of(cls, gib: float) -> Memory:
        """The parts of `memory_gib`."""
        return cls(features=int(gib * 2**30 * 5 / 8), batches=int(gib * 2**30 / 8))


class FeatureStore:
    """Features by record number."""

    def __init__(
        self,
        index: RecordIndex,
        encoders: Encoders,
        memory: int,
        held_out: np.ndarray | None = None,
        store: Store | None = None,
    ) -> None:
        """Start with nothing kept.

        Args:
            index: of the records.
            encoders: compute the features that a record's caches lack.
            memory: bytes. Features that were computed, and those of `held_out` records, are kept until they fill half
                of it; the rest holds row groups.
            held_out: numbers of records whose features are wanted again and again.
            store: reads the files; None: one with the default retries.
        """
        self.index, self.encoders = index, encoders
        self._rows = RowGroups(index, memory, store or Store())
        self._room = memory // 2  # bytes left for features that are kept
        self._held_out = frozenset(() if held_out is None else held_out.tolist())
        self._kept: dict[tuple[Kind, int], torch.Tensor] = {}
        self._shapes: dict[Kind, torch.Size] = {}
        self._lock = threading.RLock()  # batches are made in a thread, validated in another

    def get(self, kind: Kind, number: int) -> torch.Tensor:
        """The feature of record `number`, on the CPU, in the dtype of its cache (fp32 where computed).

        Raises UsageError, naming the record, where there is neither a cache nor a picture to compute it from, where a
        cache is broken or holds a value that is not finite, and where its shape is not that of the records before.
        """
        with self._lock:
            kept = self._kept.get((kind, number))
            if kept is not None:
                return kept
            cell = self._rows.cell(number, kind.value)
            computed = not cell.is_valid
            try:
                tensor = self._compute(kind, number) if computed else _decode(cell)
            except UsageError as error:
                raise UsageError(f"record {self.index.uid(number)}, {kind.value}: {error}") from error
            self._check(kind, number, tensor)
            size = tensor.numel() * tensor.element_size()
            if (computed or number in self._held_out) and size <= self._room:
                self._room -= size
                self._rows.limit -= size
                self._kept[kind, number] = tensor
            return tensor

    def picture(self, number: int) -> Picture:
        """The columns that features are computed from."""
        with self._lock:
            read: Callable[[str], Any] = lambda name: self._rows.cell(number, name).as_py()  # noqa: E731
            return Picture(
                uid=self.index.uid(number),
                caption=read("caption"),
                target_word=read("target_word"),
                image=read("image"),
                subject_mask=read("subject_mask"),
            )

    def _compute(self, kind: Kind, number: int) -> torch.Tensor:
        if kind is Kind.TEXT:
            return self.encoders.text_features(self._rows.cell(number, "caption").as_py()).float().cpu()
        picture = self.picture(number)
        compute = self.encoders.latents if kind is Kind.LATENTS else self.encoders.image_features
        return compute(picture).float().cpu()

    def _check(self, kind: Kind, number: int, tensor: torch.Tensor) -> None:
        shape = self._shapes.setdefault(kind, tensor.shape)
        if tensor.shape != shape:
            raise UsageError(
                f"record {self.index.uid(number)}: its {kind.value} have shape {tuple(tensor.shape)}, those of the "
                f"records before {tuple(shape)}; records of one run have one size"
            )
        if not all(math.isfinite(end) for end in tensor.aminmax()):  # a tenth of the time of isfinite(tensor)
            file, _ = self.index.file_of(self.index.group_of(number)[0])
            raise UsageError(
                f"record {self.index.uid(number)} in {self.index.files[file]}: its {kind.value} hold a value that is not "
                f"finite; run the encode stage over it again, or remove the record"
            )


def _decode(cell: pa.StructScalar) -> torch.Tensor:
    """The tensor of a cell; its bytes are copied once."""
    return decode_tensor(
        {"data": cell["data"].as_buffer(), "shape": cell["shape"].as_py(), "dtype": cell["dtype"].as_py()}
    )
