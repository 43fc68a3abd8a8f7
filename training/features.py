"""Features of a training record: from its caches where they are filled, computed where they are not, kept in memory.

Features are computed one record at a time, so that a record's features do not depend on which others are in its batch:
that keeps a resumed run, and one with another number of workers, exact.

Legend: C latent channels, h w latent size, T text tokens, D text width, P width of the pooled text, S visual tokens, Di
their width.
"""

from __future__ import annotations

import contextlib
import enum
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from realcustom.buckets import Size
from realcustom.cells import decode_mask, decode_tensor
from realcustom.dtype import Dtype
from realcustom.errors import MissingFile, UsageError
from realcustom.record import POOLED
from realcustom.store import StorageRefused, Store
from realcustom.training.index import IMAGES, RecordIndex
from realcustom.training.reading import RecordsChanged, RowGroups

WAY_OUT = "run the encode stage over it again, remove it, or set train.bad_records=drop"


class Kind(enum.Enum):
    """A feature, named after the record's column that caches it."""

    LATENTS = "latents"
    TEXT = "text_features"
    IMAGE = "image_features"
    POOLED = POOLED.name  # of an SDXL-shaped base; not in all tables


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Sources of features: the record's columns of the same names."""

    uid: str
    caption: str
    target_word: str
    image: bytes | None
    subject_mask: dict[str, Any] | None
    bucket: Size | None = None  # (width, height) that its latents are of, pixels; None: the base's own square


class BadRecord(UsageError):
    """A record whose features cannot be had or used; the message names it and its file."""

    uid: str
    number: int

    @classmethod
    def of(cls, index: RecordIndex, number: int, reason: str) -> BadRecord:
        """The error for a record, for a reason that begins with the feature's name."""
        file, _ = index.file_of(index.group_of(number)[0])
        error = cls(f"record {index.uid(number)} in {index.files[file]}: {reason}")
        error.uid, error.number = index.uid(number), number
        return error


class Encoders(Protocol):
    """The frozen models that compute features. Each method raises UsageError if the record lacks the data for it."""

    latent_pixels: int  # per latent cell and side

    @property
    def shapes(self) -> Mapping[Kind, tuple[int | None, ...]]:
        """Of the features that the base takes; None: any length."""

    def latents(self, picture: Picture) -> torch.Tensor:
        """(C, h, w)."""

    def text_features(self, caption: str) -> torch.Tensor:
        """(T, D)."""

    def pooled_text(self, caption: str) -> torch.Tensor:
        """(P,), of an SDXL-shaped base."""

    def image_features(self, picture: Picture) -> torch.Tensor:
        """(S, Di)."""

    def augmented_features(self, picture: Picture, *key: object) -> torch.Tensor:
        """(S, Di) of the reference, augmented as `key` draws it."""

    def black_features(self) -> torch.Tensor:
        """(S, Di) of a black picture."""

    def give_up(self) -> None:
        """Free their memory; what is needed after all is loaded again."""


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
        self.kinds = tuple(kind for kind in Kind if kind.value in index.schema.names)  # of which there are caches
        self.shapes: dict[Kind, torch.Size] = {}  # of the first record's features, and so of all; see `shape`
        self.from_caches = True  # no feature has been computed
        made = (index.schema.field(IMAGES).metadata or {}).get(b"dtype", b"").decode()
        self._image_dtype = next((dtype.to_torch() for dtype in Dtype if dtype.value == made), None)
        self._scattered: dict[int, torch.Tensor] = {}  # image features of views that were read ahead
        self._lock = threading.RLock()  # batches are made in a thread, validated in another

    def get(self, kind: Kind, number: int) -> torch.Tensor:
        """The feature of record `number`, on the CPU, in the dtype of its cache (fp32 where computed).

        Raises BadRecord where there is neither a cache nor a picture to compute it from, where a cache or its file is broken
        or holds a value that is not finite, and where its shape is not the base's, that of the records before, or of its
        bucket.
        """
        with self._lock:
            kept = self._kept.get((kind, number))
            if kept is not None:
                return kept
            with self._naming(number, kind.value):
                tensor, computed = self._find(kind, number)
            self._check(kind, number, tensor)
            self.from_caches &= not computed
            if computed or number in self._held_out:
                self._keep(kind, number, tensor)
            return tensor

    def read_views(self, numbers: Sequence[int]) -> None:
        """Read the image features of records that may lie anywhere, for `get` to give them out until the next call.

        Each is read by itself, without its row group, where it lies uncompressed in its file and its row group is not held.
        """
        with self._lock:
            shape, dtype = self.shapes.get(Kind.IMAGE), self._image_dtype
            if shape is None or dtype is None:
                return
            found = self._rows.images_alone(set(numbers), shape.numel() * dtype.itemsize)
            self._scattered = {
                number: torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) for number, data in found.items()
            }

    def shape(self, kind: Kind, number: int) -> tuple[int, ...]:
        """The shape of a feature of record `number`, once there was one of any record."""
        shape, bucket = tuple(self.shapes[kind]), self.index.bucket_of(number)
        if kind is not Kind.LATENTS or bucket is None:
            return shape
        cell = self.encoders.latent_pixels
        return shape[0], bucket[1] // cell, bucket[0] // cell

    def augmented(self, number: int, *key: object) -> torch.Tensor:
        """The image features of record `number`'s reference, augmented as `key` draws it. Raises BadRecord without a picture."""
        with self._lock, self._naming(number, "augmented reference"):
            self.from_caches = False
            return self.encoders.augmented_features(self.picture(number), *key).float().cpu()

    def give_up_encoders(self) -> None:
        """Free the encoders' memory where all features so far came from caches."""
        with self._lock:  # a feature may be computed just now
            if self.from_caches:
                self.encoders.give_up()

    def size(self, number: int) -> tuple[int, int]:
        """(width, height) of record `number`'s picture, pixels."""
        with self._lock:
            return self._rows.cell(number, "width").as_py(), self._rows.cell(number, "height").as_py()

    def crop(self, number: int) -> Size:
        """(width, height) of the part of record `number`'s scaled picture that its latents are of, pixels."""
        _, height, width = self.shape(Kind.LATENTS, number)
        return width * self.encoders.latent_pixels, height * self.encoders.latent_pixels

    def mask(self, number: int) -> np.ndarray | None:
        """Where the subject is, bool (H, W); None where that is unknown."""
        with self._lock:
            cell = self._rows.cell(number, "subject_mask").as_py()
        return None if cell is None else decode_mask(cell)

    def _keep(self, kind: Kind, number: int, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if size <= self._room:
            self._room -= size
            self._rows.limit -= size
            self._kept[kind, number] = tensor

    @contextlib.contextmanager
    def _naming(self, number: int, what: str) -> Iterator[None]:
        try:
            yield
        except (StorageRefused, MissingFile, RecordsChanged):  # not for what is in the record
            raise
        except UsageError as error:
            raise BadRecord.of(self.index, number, f"{what}: {error}; {WAY_OUT}") from error

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
                bucket=self.index.bucket_of(number),
            )

    def _find(self, kind: Kind, number: int) -> tuple[torch.Tensor, bool]:
        """A feature that is not kept, and whether it was computed."""
        if kind is Kind.IMAGE and number in self._scattered:
            return self._scattered[number], False
        cell = self._rows.cell(number, kind.value) if kind in self.kinds else None
        if cell is None or not cell.is_valid:
            return self._compute(kind, number), True
        return _decode(cell), False

    def _compute(self, kind: Kind, number: int) -> torch.Tensor:
        if kind in (Kind.TEXT, Kind.POOLED):
            read = self.encoders.text_features if kind is Kind.TEXT else self.encoders.pooled_text
            return read(self._rows.cell(number, "caption").as_py()).float().cpu()
        picture = self.picture(number)
        compute = self.encoders.latents if kind is Kind.LATENTS else self.encoders.image_features
        return compute(picture).float().cpu()

    def _check(self, kind: Kind, number: int, tensor: torch.Tensor) -> None:
        expected = self.encoders.shapes.get(kind)
        if expected is not None and not _fits(tensor.shape, expected):
            wanted = ", ".join("any" if length is None else str(length) for length in expected)
            found = f"its {kind.value} have shape {tuple(tensor.shape)}, the base takes ({wanted}): made for another one, or cut"
            raise BadRecord.of(self.index, number, f"{found}; {WAY_OUT}")
        self.shapes.setdefault(kind, tensor.shape)
        shape, bucket = self.shape(kind, number), self.index.bucket_of(number)
        if tensor.shape != shape:
            found = f"its {kind.value} have shape {tuple(tensor.shape)}"
            if kind is not Kind.LATENTS:
                found += f", those of the records before {shape}; records of one run have one size"
            elif bucket is None:
                found += (
                    f", those of the records before {shape}, and the records say nothing of buckets; run the encode stage "
                    "over them, for several sizes with encode.buckets"
                )
            else:
                found += f", those of its bucket, {bucket[0]} x {bucket[1]} pixels, {shape}; run the encode stage over it again"
            raise BadRecord.of(self.index, number, found)
        if not all(math.isfinite(end) for end in tensor.aminmax()):  # a tenth of the time of isfinite(tensor)
            raise BadRecord.of(self.index, number, f"its {kind.value} hold a value that is not finite; {WAY_OUT}")


def _fits(shape: torch.Size, expected: tuple[int | None, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return all(wanted in (None, length) for length, wanted in zip(shape, expected, strict=True))


def _decode(cell: pa.StructScalar) -> torch.Tensor:
    """The tensor of a cell; its bytes are copied once."""
    return decode_tensor(
        {"data": cell["data"].as_buffer(), "shape": cell["shape"].as_py(), "dtype": cell["dtype"].as_py()}
    )
