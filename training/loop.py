"""One optimizer step and one validation of the trained modules. Pure torch: no Ray, no files.

Legend: B rows of this worker's share, C latent channels, h w latent size, T text tokens, D text width, S visual
tokens, Di their width.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from realcustom.errors import UsageError
from realcustom.training.batch import Batch
from realcustom.training.draws import training_influence_quantity
from realcustom.training.objective import Objective, squared_error
from realcustom.training.settings import Precision, Schedule, TrainSettings


class TrainingDiverged(UsageError):
    """Too many consecutive steps had a non-finite loss or gradient."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This worker's rank among the data-parallel workers. Without a process group there is one worker."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over the workers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step; equal on all workers."""

    loss: float  # over the whole batch
    grad_norm: float  # before clipping
    lr: float
    skipped: bool  # a non-finite loss or gradient: nothing was changed
    stop: bool  # a worker was asked to end the run


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule."""
    rate = settings.lr * min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule is Schedule.COSINE and step >= settings.warmup:
        progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
        rate = settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return rate


class Trainer:
    """The trained parameters, their optimizer and their EMA; all random numbers come with the batch and the step."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        influence_quantities: tuple[float, ...],
        world: World,
    ) -> None:
        """Prepare the optimizer for a model's trained parameters.

        Args:
            model: a `RealCustomModel` on the worker's device, the same weights on every worker. Its trained
                parameters that require no gradient (the settings leave them out of the forward) do not change.
            objective: made for the base model's scheduler, on the same device.
            influence_quantities: the two ends of gamma_num's range in training.
        """
        self.objective, self.settings, self.world = objective, settings, world
        self.influence_quantities = influence_quantities
        trained: dict[str, nn.Parameter] = model.trained_parameters()  # type: ignore[operator]
        self.parameters = {name: value for name, value in sorted(trained.items()) if value.requires_grad}
        self.model = model
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, weight_decay=settings.weight_decay)
        self.ema = (
            {name: value.detach().clone() for name, value in self.parameters.items()} if settings.ema_decay else {}
        )
        self.step_count = 0  # optimizer steps taken or skipped
        self.skipped_total = 0
        self.skipped_in_a_row = 0

    @functools.cached_property
    def forward_model(self) -> nn.Module:
        """The model that exchanges gradients; made at the first step, because all workers have to take part."""
        return self.model if self.world.size == 1 else DistributedDataParallel(self.model)

    def step(self, batch: Batch, stop: bool = False) -> StepResult:
        """Train on one batch.

        Args:
            stop: whether this worker is asked to end the run.
        Raises:
            TrainingDiverged: the last `max_skipped_steps` steps were not finite.
        """
        settings = self.settings
        quantity = training_influence_quantity(self.influence_quantities, settings.seed, self.step_count)
        self.optimizer.zero_grad(set_to_none=True)
        chunks = list(batch.chunks(settings.gradient_accumulation))
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, chunk in enumerate(chunks):
            with self._synchronised(number == len(chunks) - 1):
                errors = self.errors(self.forward_model, chunk, quantity)  # (B',)
                loss = (errors * self._weights(chunk)).sum() / batch.total_weight
                # DDP averages gradients over workers; the batch's loss is the sum over them
                (loss * self.world.size).backward()
            total += loss.detach()
        loss_value, stopped = self.world.sum(torch.stack([total, total.new_tensor(stop)])).tolist()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        rate = learning_rate(settings, self.step_count)
        finite = math.isfinite(loss_value) and math.isfinite(grad_norm)  # from reduced values: the same on all workers
        if finite:
            self._update(rate, norm)
        self._count(finite)
        return StepResult(loss=loss_value, grad_norm=grad_norm, lr=rate, skipped=not finite, stop=stopped > 0)

    def _weights(self, batch: Batch) -> torch.Tensor:
        """The weight of each row's error in training, (B,)."""
        gamma = self.settings.min_snr_gamma
        return batch.weights * self.objective.min_snr_weights(batch.timesteps, gamma) if gamma else batch.weights

    def errors(self, model: nn.Module, batch: Batch, influence_quantity: float) -> torch.Tensor:
        """The squared error of each row, (B,), in fp32."""
        objective = self.objective
        noisy_latents = objective.add_noise(batch.latents, batch.noise, batch.timesteps)  # (B, C, h, w)
        with self.autocast():
            prediction = model(
                noisy_latents,
                batch.timesteps,
                batch.encoder_hidden_states,
                batch.image_embeds,
                objective.alphas_cumprod[batch.timesteps],
                influence_quantity,
            )  # (B, C, h, w)
        return squared_error(prediction, objective.target(batch.latents, batch.noise, batch.timesteps))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context with the arithmetic of `precision`."""
        enabled = self.settings.precision is Precision.BF16
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def validate(
        self, batches: Iterable[tuple[Batch, torch.Tensor]], strata: int, influence_quantity: float
    ) -> list[float]:
        """The weighted mean error of each stratum of timesteps, over all workers, with the weights of an adapter saved now.

        Args:
            batches: each with the stratum of its rows, (B,), from 0 (the least noise).
            strata: their number; there is a row in each.
        """
        sums = torch.zeros(2, strata, dtype=torch.float64, device=self.world.device)  # of error and of weight
        with self.averaged_weights():
            for batch, stratum in batches:
                errors = self.errors(self.model, batch, influence_quantity).double()
                weights = batch.weights.double()
                sums.index_add_(1, stratum.to(self.world.device), torch.stack([errors * weights, weights]))
        error, weight = self.world.sum(sums)
        return [float(value) for value in error / weight]

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the model has the EMA weights (if EMA is on)."""
        kept = {name: self.parameters[name].detach().clone() for name in self.ema}
        self._assign(self.ema)
        try:
            yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if last or not isinstance(self.forward_model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward_model.no_sync()  # gradients are exchanged once, with the last chunk

    @torch.no_grad()
    def _update(self, rate: float, norm: torch.Tensor) -> None:
        if self.settings.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.ema:
            taken = self.step_count - self.skipped_total
            decay = min(self.settings.ema_decay, (1 + taken) / (10 + taken))  # lower in early steps: forget the start
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)

    def _count(self, finite: bool) -> None:
        self.step_count += 1
        self.skipped_total += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.settings.max_skipped_steps:
            raise TrainingDiverged(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row, up to step "
                f"{self.step_count}; try a smaller lr (it is {self.settings.lr}) or precision fp32"
            )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """All data for a resume: tensors by name, and counters."""
        tensors = {f"weights.{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        counters = {"step": self.step_count, "skipped": self.skipped_total, "skipped_in_a_row": self.skipped_in_a_row}
        return tensors, counters

    def load_state(self, tensors: dict[str, torch.Tensor], counters: dict[str, int]) -> None:
        """Continue from `state()`. Raises UsageError naming tensors that are missing or unexpected."""
        taken = counters["step"] - counters["skipped"]
        kinds = ["weights", *(["ema"] if self.ema else []), *(["exp_avg", "exp_avg_sq"] if taken else [])]
        expected = {f"{kind}.{name}" for kind in kinds for name in self.parameters}
        if expected != tensors.keys():
            wrong = sorted(expected ^ tensors.keys())
            raise UsageError(f"the training checkpoint does not fit: {wrong[0]} (and {len(wrong) - 1} more) differ")
        device = self.world.device
        self._assign({name: tensors[f"weights.{name}"] for name in self.parameters})
        self.ema = {name: tensors[f"ema.{name}"].to(device) for name in self.ema}
        for name, parameter in self.parameters.items():
            if taken:
                moments = {key: tensors[f"{key}.{name}"].to(device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(taken)), **moments}
        self.step_count, self.skipped_total = counters["step"], counters["skipped"]
        self.skipped_in_a_row = counters["skipped_in_a_row"]
