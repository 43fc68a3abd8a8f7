"""Stage `encode`: the features of a record that training reads, computed once. Each cache can be left out.

Latents are of a square at `encode.resolution`, or of the picture's bucket (`encode.buckets`): the middle of the picture, or as
near to it as shows the subject. Image features are of the reference as training and serving prepare it.

Legend: B batch, H W size of the part that is encoded, C latent channels, h w latent size, T text tokens, D text width, P
width of the pooled text, S visual tokens, Di their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from realcustom import record
from realcustom.base import Base, encode_pixels, encode_prompts
from realcustom.base_loading import load_base
from realcustom.buckets import METADATA, Size
from realcustom.cells import decode_mask, encode_tensor, mask_area
from realcustom.errors import UsageError
from realcustom.image_encoder import ImageEncoder, load_image_encoder
from realcustom.pixels import cut_share, subject_crop
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.models import Runtime, blank_pictures, pad_batch
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, naming
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.settings import EncodeSettings, fixed_batch
from realcustom.reference import prepare_reference
from realcustom.settings import MethodSettings, Reference

LATENTS, TEXT, IMAGE, POOLED = "latents", "text_features", "image_features", record.POOLED.name
_CHECKED = 16  # pictures that are decoded at a time where no model runs
CUT, ENLARGED = "cut_subject", "enlarged"
CROPPED = {  # of the report, by the share of the picture that is cropped: up to the number
    "cropped_under_5_percent": 0.05,
    "cropped_5_to_15_percent": 0.15,
    "cropped_over_15_percent": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A record's picture as the models take it."""

    crop: torch.Tensor | None  # (3, H, W); None: no latents are made
    reference: torch.Tensor | None  # as the image encoder takes it; None: no image features are made


class Encode:
    """Training records -> the same with caches."""

    def __init__(
        self, settings: EncodeSettings, method: MethodSettings, models: dict[str, str], runtime: Runtime | None
    ):
        self._settings = settings
        self._models = models
        self._method = method
        self._runtime = runtime
        self._base: Base | None = None
        self._image_encoder: ImageEncoder | None = None
        if settings.base and "base" in models:
            assert runtime is not None
            self._base = load_base(settings.base, runtime.device, torch.float32, only=_parts(settings))
            _check_step(settings, self._base.vae_scale_factor)
        if settings.image_encoder and "image_encoder" in models:
            assert runtime is not None
            self._image_encoder = load_image_encoder(
                settings.image_encoder, method.image_encoder, runtime.device, torch.float32
            )

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Encode every record; one whose picture does not decode, or whose features are not finite, is quarantined."""
        tables.require_columns(table.schema, record.SCHEMA, f"encode, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        features: dict[str, dict[int, torch.Tensor]] = {LATENTS: {}, TEXT: {}, IMAGE: {}, POOLED: {}}
        pictures = list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
        sizes = list(map(self._size, pictures))
        if self._image_encoder is not None and self._method.image_encoder.reference is Reference.CROP:
            ledger.each(lambda row: _require_mask(table["subject_mask"][row].as_py()))
        if self._base is not None and self._settings.latents:
            ledger.each(lambda row: self._require_subject(sizes[row], table["subject_mask"][row].as_py()))
        most = fixed_batch(self._settings.batch_size) if self._models else _CHECKED  # `auto` is found for models alone
        masks = table["subject_mask"]

        def prepare(row: int, data: bytes) -> _Prepared:
            cell = masks[row].as_py()
            return self._prepare(decode(data), None if cell is None else decode_mask(cell), sizes[row])

        threads = self._runtime.threads if self._runtime else 1
        for batch, prepared in ledger.prepared_batches(most, prepare, threads, alike=lambda row: sizes[row]):
            with naming(ledger.batch_name(batch)):
                captions = [table["caption"][row].as_py() for row in batch]
                for name, tensors in self._encode(prepared, captions, most).items():
                    features[name].update(zip(batch, tensors, strict=True))

        def check(row: int) -> None:
            for name, tensors in features.items():
                if row in tensors and not bool(torch.isfinite(tensors[row]).all()):
                    raise DataError(DataFault.NON_FINITE, f"{name} hold values that are not finite")

        ledger.each(check)
        kept = ledger.remaining()
        result = ledger.rows().select(record.SCHEMA.names)
        for name in features:
            if features[name] or self._makes(name):
                cells = [encode_tensor(features[name][row], self._settings.dtype) for row in kept]
                result = tables.with_column(result, self._field(name), cells)
        if not self._settings.keep_image:
            field = result.schema.field("image")
            result = tables.with_column(result, field, pa.nulls(result.num_rows, field.type))
        buckets, notes = self._settings.buckets.sizes, dict[str, list[str]]()
        taken = [size for row in kept if (size := sizes[row]) is not None]
        if buckets:
            for row, size in zip(kept, taken, strict=True):
                for note in _notes(pictures[row], size):
                    notes.setdefault(note, []).append(ledger.name(row))
        file = tables.to_record_file(result, [buckets.index(size) for size in taken] if buckets else None)
        return UnitResult(rows_in=table.num_rows, table=result, excluded=ledger.excluded, notes=notes, file=file)

    def try_batch(self, size: int) -> None:
        """Run all models on a batch of that size. Raises torch.OutOfMemoryError where one does not fit."""
        subject = np.ones((64, 64), bool)
        largest = max(self._settings.buckets.sizes, key=math.prod, default=self._square)
        prepared = [self._prepare(picture, subject, largest) for picture in blank_pictures(size, (64, 64))]
        self._encode(prepared, ["a picture"] * size, size)

    def _makes(self, name: str) -> bool:
        if name == POOLED:
            return self._settings.text_features and self._base is not None and self._base.is_sdxl
        return bool(getattr(self._settings, name))

    @property
    def _square(self) -> Size:
        return self._settings.resolution, self._settings.resolution

    def _size(self, picture: Size) -> Size | None:
        """What of a picture is encoded; None: it would be enlarged too much."""
        buckets = self._settings.buckets
        return buckets.of(picture) if buckets.areas else self._square

    def _require_subject(self, size: Size | None, cell: dict[str, Any] | None) -> None:
        if size is None:
            most = self._settings.buckets.max_enlarged
            raise RowDropped(ENLARGED, f"each bucket would scale it up by more than encode.buckets.max_enlarged={most}")
        if cell is None or not mask_area(cell):  # the whole picture is the subject
            return
        cut = cut_share(decode_mask(cell), size)
        if cut > self._settings.max_cut:
            raise RowDropped(CUT, f"{cut:.0%} of the mask is outside the {size[0]} x {size[1]} that are encoded")

    def _prepare(self, picture: Image.Image, mask: np.ndarray | None, size: Size | None) -> _Prepared:
        """`mask`: of the subject, bool, of the picture's size. Made in threads beside the models."""
        crop = reference = None
        if self._base is not None and self._settings.latents:
            assert size is not None, "such rows are dropped"
            crop = subject_crop(picture, mask, size)
        if self._image_encoder is not None and self._settings.image_features:
            reference = self._image_encoder.prepare(prepare_reference(picture, mask, self._method.image_encoder))
        return _Prepared(crop=crop, reference=reference)

    def _encode(self, prepared: Sequence[_Prepared], captions: list[str], size: int) -> dict[str, torch.Tensor]:
        """Features of a batch of at most `size` records, on the CPU: name -> (records, ...)."""
        found: dict[str, torch.Tensor] = {}
        if self._runtime is None:
            return found
        crops = [one.crop for one in prepared if one.crop is not None]
        references = [one.reference for one in prepared if one.reference is not None]
        device = self._runtime.device
        with self._runtime.inference():
            if self._base is not None and crops:
                found[LATENTS] = encode_pixels(self._base, _padded(crops, size).to(device))  # (B, C, h, w)
            if self._base is not None and self._settings.text_features:
                text = encode_prompts(self._base, pad_batch(captions, size), self._method.base.sdxl_pooled)
                found[TEXT] = text.hidden  # (B, T, D)
                if text.pooled is not None:
                    found[POOLED] = text.pooled  # (B, P)
            if self._image_encoder is not None and references:
                found[IMAGE] = self._image_encoder.encode(_padded(references, size).to(device))  # (B, S, Di)
        return {name: tensor[: len(prepared)].float().cpu() for name, tensor in found.items()}

    def _field(self, name: str) -> pa.Field:
        model = self._models["image_encoder" if name == IMAGE else "base"]
        details: dict[str, str] = {"dtype": self._settings.dtype.value}
        if name == LATENTS:
            buckets, resolution = self._settings.buckets, str(self._settings.resolution)
            details |= {METADATA.decode(): buckets.to_metadata()} if buckets.areas else {"resolution": resolution}
        if name == IMAGE:
            details |= self._method.image_encoder.of_features()
        if name == POOLED:
            details["sdxl_pooled"] = self._method.base.sdxl_pooled.value
        return tables.made_by(record.POOLED if name == POOLED else record.SCHEMA.field(name), model, **details)


def _parts(settings: EncodeSettings) -> tuple[str, ...]:
    """The base's models that run: never the UNet, which is the largest."""
    encoders = ("text_encoder", "text_encoder_2") if settings.text_features else ()
    return (*encoders, *(("vae",) if settings.latents else ()))


def _check_step(settings: EncodeSettings, factor: int) -> None:
    step = settings.buckets.step
    if settings.buckets.areas and step % factor:
        raise UsageError(
            f"encode.buckets.step={step} is no multiple of {factor}, a latent cell's pixels in {settings.base}"
        )


def _notes(picture: Size, size: Size) -> Iterator[str]:
    """What the report counts of a row: its bucket, and how much of its picture is cropped."""
    yield f"bucket_{size[0]}x{size[1]}"
    one, other = picture[0] * size[1], picture[1] * size[0]
    cropped = 1 - min(one, other) / max(one, other)
    if cropped > 0:
        yield next(name for name, most in CROPPED.items() if cropped <= most)


def _require_mask(cell: dict[str, Any] | None) -> None:
    if cell is None or not mask_area(cell):
        raise DataError(DataFault.MISSING_MASK, "reference=crop needs subject_mask, which is null or empty")


def _padded(tensors: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return torch.stack(pad_batch(list(tensors), size))
