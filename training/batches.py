"""Batches of tensors from record numbers: features, and each sample's own noise, timestep, dropout and reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from realcustom.buckets import Size
from realcustom.log import Progress
from realcustom.settings import MethodSettings, Uncond
from realcustom.training.batch import Batch
from realcustom.training.data import Share, Views
from realcustom.training.draws import Draw, draw_sample, uniform
from realcustom.training.features import BadRecord, FeatureStore, Kind
from realcustom.training.geometry import error_weights, time_ids
from realcustom.training.settings import TrainSettings
from realcustom.training.world import World

logger = logging.getLogger(__name__)

VALIDATION_SEED = 0  # not a setting: the validation losses of runs with other seeds can be compared


@dataclass(kw_only=True)
class Row:
    """A sample of a batch, and what was drawn for it."""

    number: int
    key: tuple[object, ...]  # names its draws: seed, epoch, uid
    draw: Draw
    time: float  # in [0, 1), before `timestep_shift`
    reference: int  # number of the record whose image features it has
    no_text: bool = False
    no_image: bool = False
    augmented: bool = False


class BatchMaker:
    """Makes the batches of one worker."""

    def __init__(
        self,
        features: FeatureStore,
        views: Views,
        settings: TrainSettings,
        method: MethodSettings,
        num_train_timesteps: int,
        world: World,
        *,
        is_sdxl: bool = False,
        drop: Callable[[BadRecord], None] | None = None,
    ) -> None:
        """Prepare a worker's batches.

        Args:
            features: by record number.
            views: other views that may be used as a sample's reference.
            num_train_timesteps: T, of the base model's scheduler.
            is_sdxl: give each row its pooled text and sizes.
            drop: is told of a record that cannot be used; its row has weight zero. None: BadRecord is raised.
        """
        self.features, self.views, self.settings, self.method = features, views, settings, method
        self.num_train_timesteps, self.world = num_train_timesteps, world
        self._is_sdxl, self._drop = is_sdxl, drop
        self._constants: dict[str, torch.Tensor] = {}  # features of the empty caption and of no reference

    def training(self, share: Share) -> Batch:
        """A worker's share of a training step, in host memory."""
        p_multiview, p_augmented = self.settings.at(share.step)
        numbers = [int(number) for number in share.numbers]
        latents, good = self._each(Kind.LATENTS, numbers, self._latents)
        rows = [self._row(number, share, p_multiview, p_augmented) for number in numbers]
        return self._batch(rows, latents, share.weights * good, share.total_weight, training=True)

    def prepare_constants(self) -> None:
        """Compute what stands for a caption or a reference that is dropped, if any is."""
        settings = self.settings
        if max(settings.p_drop_text, settings.p_drop_both) > 0:
            self._no_text()
            if self._is_sdxl:
                self._no_pooled()
        if max(settings.p_drop_image, settings.p_drop_both) > 0:
            self._no_image(torch.zeros(0))

    def validation(self, numbers: np.ndarray) -> Iterator[tuple[Batch, torch.Tensor]]:
        """This worker's share of the held-out records, on its device, each with the stratum of its timestep, (B,).

        A record is one worker's, at all of its timesteps: no other one reads it.

        Noise is fixed, timesteps are evenly spread, nothing is dropped, and the reference is the record's own.
        """
        settings, size = self.settings, -(-self.settings.batch_size // self.world.size)
        mine = np.array_split(numbers, self.world.size)[self.world.rank]
        cases = [(int(number), stratum) for number in mine for stratum in range(settings.validation_timesteps)]
        shares = list(self._alike(cases, size))
        progress = Progress(logger, "the loss on held-out records, batches", len(shares))
        for picked in shares:
            weights = (np.arange(size) < len(picked)).astype(np.float32)
            picked = picked + picked[:1] * (size - len(picked))  # one number of rows: the same arithmetic for every row
            latents, good = self._each(Kind.LATENTS, [number for number, _ in picked], self._latents)
            rows = [self._fixed_row(number, stratum) for number, stratum in picked]
            batch = self._batch(rows, latents, weights * good, 0.0, training=False)
            yield batch.to(self.world.device), torch.tensor([stratum for _, stratum in picked])
            if self.world.rank == 0:
                progress.advance()

    def _alike(self, cases: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
        """At most `size` held-out records and strata at a time, whose latents have one shape."""
        groups: dict[Size | None, list[tuple[int, int]]] = {}
        for case in cases:
            groups.setdefault(self.features.index.bucket_of(case[0]), []).append(case)
        for group in groups.values():
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _row(self, number: int, share: Share, p_multiview: float, p_augmented: float) -> Row:
        settings, key = self.settings, (self.settings.seed, share.epoch, self.features.index.uid(number))
        draw = draw_sample(*key, self.features.shape(Kind.LATENTS, number))
        both = settings.p_drop_both > 0 and uniform(*key, "drop_both") < settings.p_drop_both
        views = self.views.of(number) if draw.multiview < p_multiview else ()
        return Row(
            number=number,
            key=key,
            draw=draw,
            time=draw.time,
            reference=int(views[int(draw.view * len(views))]) if len(views) else number,
            no_text=both or draw.drop_text < settings.p_drop_text,
            no_image=both or draw.drop_image < settings.p_drop_image,
            augmented=not len(views) and p_augmented > 0 and uniform(*key, "ref_aug") < p_augmented,
        )

    def _fixed_row(self, number: int, stratum: int) -> Row:
        key = (VALIDATION_SEED, f"validation-{stratum}", self.features.index.uid(number))
        draw = draw_sample(*key, self.features.shape(Kind.LATENTS, number))
        time = (stratum + draw.time) / self.settings.validation_timesteps
        return Row(number=number, key=key, draw=draw, time=time, reference=number)

    def _batch(
        self, rows: list[Row], latents: list[torch.Tensor], weights: np.ndarray, total_weight: float, training: bool
    ) -> Batch:
        text, good_text = self._each(Kind.TEXT, rows, self._text)
        views = [row.reference for row in rows if row.reference != row.number]
        if views:
            self.features.read_views(views)
        image, good_image = self._each(Kind.IMAGE, rows, self._image)
        pooled, good_pooled = self._each(Kind.POOLED, rows, self._pooled) if self._is_sdxl else ([], 1)
        shift, total = self.settings.timestep_shift, self.num_train_timesteps
        steps = [int(total * shift * row.time / (1 + (shift - 1) * row.time)) for row in rows]
        weights = weights * good_text * good_image * good_pooled
        weighted = training and self.settings.subject_loss_weight != 1
        return Batch(
            latents=_stack(latents),
            noise=torch.stack([row.draw.noise for row in rows]),
            timesteps=torch.tensor(steps),
            encoder_hidden_states=_stack(text),
            image_embeds=_stack(image),
            weights=torch.from_numpy(weights),
            total_weight=total_weight,
            pooled_text=_stack(pooled) if self._is_sdxl else None,
            time_ids=torch.tensor([self._time_ids(row.number) for row in rows]) if self._is_sdxl else None,
            error_weights=torch.stack([self._error_weights(row.number) for row in rows]) if weighted else None,
            numbers=tuple(row.number for row in rows),
            counted=tuple(row.number for row, weight in zip(rows, weights, strict=True) if weight),
        )

    def _each(
        self, kind: Kind, rows: Sequence[int] | Sequence[Row], make: Callable[..., torch.Tensor]
    ) -> tuple[list[torch.Tensor], np.ndarray]:
        """A feature of each row, and 1 where it could be had; elsewhere it is zero."""
        found: list[torch.Tensor | None] = []
        for row in rows:
            try:
                found.append(make(row))
            except BadRecord as error:
                if self._drop is None:
                    raise
                self._drop(error)
                found.append(None)
        numbers = [row.number if isinstance(row, Row) else row for row in rows]
        filled = [
            torch.zeros(self.features.shape(kind, number)) if tensor is None else tensor
            for tensor, number in zip(found, numbers, strict=True)
        ]
        return filled, np.array([tensor is not None for tensor in found], np.float32)

    def _latents(self, number: int) -> torch.Tensor:
        return self.features.get(Kind.LATENTS, number)

    def _text(self, row: Row) -> torch.Tensor:
        text = self.features.get(Kind.TEXT, row.number)
        return self._no_text() if row.no_text else text

    def _no_text(self) -> torch.Tensor:
        return self._constant("text", lambda: self.features.encoders.text_features(""))

    def _pooled(self, row: Row) -> torch.Tensor:
        pooled = self.features.get(Kind.POOLED, row.number)
        return self._no_pooled() if row.no_text else pooled

    def _no_pooled(self) -> torch.Tensor:
        return self._constant("pooled", lambda: self.features.encoders.pooled_text(""))

    def _image(self, row: Row) -> torch.Tensor:
        if row.augmented and not row.no_image:
            return self.features.augmented(row.number, *row.key)
        image = self.features.get(Kind.IMAGE, row.reference)
        return self._no_image(image) if row.no_image else image

    def _no_image(self, image: torch.Tensor) -> torch.Tensor:
        """What stands for no reference, as in sampling."""
        if self.method.guidance.uncond is Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED:
            return self._constant("image", self.features.encoders.black_features)
        return torch.zeros_like(image)  # keys and values have no bias: the base model without a reference

    def _constant(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name not in self._constants:
            self._constants[name] = make().float().cpu()
        return self._constants[name]

    def _time_ids(self, number: int) -> list[float]:
        size, mask, crop = self.features.size(number), self.features.mask(number), self.features.crop(number)
        return list(map(float, time_ids(size, mask, crop, self.method.base.time_ids_order)))

    def _error_weights(self, number: int) -> torch.Tensor:
        _, *grid = self.features.shape(Kind.LATENTS, number)
        mask, crop = self.features.mask(number), self.features.crop(number)
        return error_weights(mask, crop, (grid[0], grid[1]), self.settings.subject_loss_weight)


def _stack(rows: list[torch.Tensor]) -> torch.Tensor:
    """(B, ...), in the rows' dtype where they have one, else in fp32."""
    same = len({row.dtype for row in rows}) == 1
    return torch.stack(rows if same else [row.float() for row in rows])
