"""Batches of tensors from record numbers: features, and each sample's own noise, timestep, dropout and reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from realcustom.training.batch import Batch
from realcustom.training.data import Share, Views
from realcustom.training.draws import Draw, draw_sample
from realcustom.training.features import FeatureStore, Kind
from realcustom.training.loop import World
from realcustom.training.settings import TrainSettings

VALIDATION_SEED = 0  # not a setting: the validation losses of runs with other seeds can be compared


class BatchMaker:
    """Makes the batches of one worker."""

    def __init__(
        self,
        features: FeatureStore,
        views: Views,
        settings: TrainSettings,
        num_train_timesteps: int,
        world: World,
    ) -> None:
        """Prepare a worker's batches.

        Args:
            features: by record number.
            views: other views that may be used as a sample's reference.
            num_train_timesteps: T, of the base model's scheduler.
        """
        self.features, self.views, self.settings = features, views, settings
        self.num_train_timesteps, self.world = num_train_timesteps, world
        self._no_text: torch.Tensor | None = None  # (T, D), of the empty caption

    def training(self, share: Share) -> Batch:
        """A worker's share of a training step, in host memory."""
        numbers = [int(number) for number in share.numbers]
        latents = [self.features.get(Kind.LATENTS, number) for number in numbers]
        draws = [self._draw(*row, self.settings.seed, share.epoch) for row in zip(numbers, latents, strict=True)]
        return self._batch(numbers, latents, draws, share.weights, share.total_weight, training=True)

    def validation(self, numbers: np.ndarray) -> Iterator[tuple[Batch, torch.Tensor]]:
        """This worker's share of the held-out records, on its device, each with the stratum of its timestep, (B,).

        Noise is fixed, timesteps are evenly spread, nothing is dropped, and the reference is the record's own.
        """
        settings, size = self.settings, -(-self.settings.batch_size // self.world.size)
        count = settings.validation_timesteps
        cases = [(int(number), stratum) for number in numbers for stratum in range(count)]
        mine = cases[self.world.rank :: self.world.size]
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            weights = (np.arange(size) < len(rows)).astype(np.float32)
            rows = rows + rows[:1] * (size - len(rows))  # one batch shape: the same arithmetic for every row
            picked, strata = zip(*rows, strict=True)
            latents = [self.features.get(Kind.LATENTS, number) for number in picked]
            draws = [
                self._draw(number, latent, VALIDATION_SEED, f"validation-{stratum}")
                for number, latent, stratum in zip(picked, latents, strata, strict=True)
            ]
            times = [(stratum + draw.time) / count for stratum, draw in zip(strata, draws, strict=True)]
            batch = self._batch(picked, latents, draws, weights, 0.0, training=False, times=times)
            yield batch.to(self.world.device), torch.tensor(strata)

    def _draw(self, number: int, latent: torch.Tensor, seed: int, epoch: int | str) -> Draw:
        return draw_sample(seed, epoch, self.features.index.uid(number), tuple(latent.shape))

    def _batch(
        self,
        numbers: Sequence[int],
        latents: list[torch.Tensor],
        draws: list[Draw],
        weights: np.ndarray,
        total_weight: float,
        training: bool,
        times: list[float] | None = None,
    ) -> Batch:
        rows = list(zip(numbers, draws, strict=True))
        text = [self._text(number, draw, training) for number, draw in rows]
        image = [self._image(number, draw, training) for number, draw in rows]
        shift, total = self.settings.timestep_shift, self.num_train_timesteps
        times = times or [draw.time for draw in draws]
        steps = [int(total * shift * time / (1 + (shift - 1) * time)) for time in times]
        return Batch(
            latents=_stack(latents),
            noise=torch.stack([draw.noise for draw in draws]),
            timesteps=torch.tensor(steps),
            encoder_hidden_states=_stack(text),
            image_embeds=_stack(image),
            weights=torch.from_numpy(weights),
            total_weight=total_weight,
            numbers=tuple(numbers),
        )

    def _text(self, number: int, draw: Draw, training: bool) -> torch.Tensor:
        text = self.features.get(Kind.TEXT, number)
        if not training or draw.drop_text >= self.settings.p_drop_text:
            return text
        if self._no_text is None:
            self._no_text = self.features.encoders.text_features("").cpu()
        return self._no_text

    def _image(self, number: int, draw: Draw, training: bool) -> torch.Tensor:
        views = self.views.of(number) if training and draw.multiview < self.settings.p_multiview else ()
        reference = int(views[int(draw.view * len(views))]) if len(views) else number
        image = self.features.get(Kind.IMAGE, reference)
        # keys and values have no bias: features of zero are the base model without a reference
        return torch.zeros_like(image) if training and draw.drop_image < self.settings.p_drop_image else image


def _stack(rows: list[torch.Tensor]) -> torch.Tensor:
    """(B, ...), in the rows' dtype where they have one, else in fp32."""
    same = len({row.dtype for row in rows}) == 1
    return torch.stack(rows if same else [row.float() for row in rows])
