"""One optimizer step and one validation of the trained modules. Pure torch: no Ray, no files.

Legend: B rows of this worker's share, C latent channels, h w latent size, T text tokens, D text width, S visual
tokens, Di their width.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from realcustom.errors import UsageError
from realcustom.model import PROJECTOR, SCORING
from realcustom.training.batch import Batch
from realcustom.training.draws import training_influence_quantity
from realcustom.training.failures import TrainingDiverged
from realcustom.training.objective import Objective, squared_error
from realcustom.training.optimizers import make_optimizer, moments, rate_factor, set_rate, start_moments, take_estimate
from realcustom.training.schedules import learning_rate
from realcustom.training.settings import MicroBatch, Optimizer, Precision, TrainSettings
from realcustom.training.sharding import fill, gathered, shard, whole
from realcustom.training.world import World


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a step; equal on all workers."""

    loss: float  # over the whole batch
    grad_norm: float  # before clipping
    grad_norms: dict[str, float]  # of the parts of the trained model
    lr: float
    skipped: bool  # a non-finite loss or gradient: nothing was changed
    stop: bool  # a worker was asked to end the run
    save: bool  # a worker asks for a checkpoint


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
        if settings.shard and world.size > 1:
            shard(model, world.size, world.device)
        trained: dict[str, nn.Parameter] = model.trained_parameters()  # type: ignore[operator]
        self.parameters = {name: value for name, value in sorted(trained.items()) if value.requires_grad}
        self.model = model
        # with it a step that is not finite is skipped on the device, and the host need not wait to know
        self.guarded = world.asynchronous and settings.optimizer is Optimizer.ADAMW
        self.optimizer = make_optimizer(settings, self.parameters, self.guarded)
        self.ema = self._copies() if settings.ema_decay else {}
        self.step_count = 0  # optimizer steps taken or skipped
        self.skipped_total = 0  # of those that were read
        self.skipped_in_a_row = 0
        self.before_moments = 0  # steps that changed the weights before the optimizer's moments began
        given = settings.micro_batch
        self.micro_batch = given if isinstance(given, int) else 0  # rows of a forward; 0: by gradient_accumulation
        self._unread: list[tuple[torch.Tensor, float]] = []  # loss, gradient norm and stop of a step; its rate
        self._taken: torch.Tensor | None = None  # steps that changed the weights, on the device

    @functools.cached_property
    def _groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by the part that they belong to."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, value in self.parameters.items():
            part = {SCORING: "scoring", PROJECTOR: "projector"}.get(name.partition(".")[0], "projections")
            groups.setdefault(part, []).append(value)
        return groups

    @functools.cached_property
    def forward_model(self) -> nn.Module:
        """The model that exchanges gradients; made at the first step, because all workers have to take part."""
        alone = self.world.size == 1 or isinstance(self.model, FSDPModule)
        return self.model if alone else DistributedDataParallel(self.model)

    def step(self, batch: Batch, stop: bool = False) -> StepResult:
        """Train on one batch and read its result; errors are those of `read`."""
        self.launch(batch, stop)
        return self.read()[-1]

    def launch(self, batch: Batch, stop: bool = False, save: bool = False) -> None:
        """Train on one batch, without waiting for an asynchronous device.

        Args:
            stop: whether this worker is asked to end the run.
            save: whether it asks for a checkpoint.
        """
        settings = self.settings
        quantity = training_influence_quantity(self.influence_quantities, settings.seed, self.step_count)
        chunks = self.chunks(batch)
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, chunk in enumerate(chunks):
            with self._synchronised(number == len(chunks) - 1):
                errors = self.errors(self.forward_model, chunk, quantity)  # (B',)
                loss = (errors * self.weights(chunk)).sum() / batch.total_weight
                # DDP averages gradients over workers; the batch's loss is the sum over them
                (loss * self.world.size).backward()
            total += loss.detach()
        asked = [total.new_full((), float(one)) for one in (stop, save)]
        loss, *asked = self.world.sum(torch.stack([total, *asked]))
        norms = [_norm(values) for values in self._groups.values()]
        norm = _norm(self.parameters.values())
        finite = torch.isfinite(loss) & torch.isfinite(norm)  # from reduced values: the same on all workers
        rate = learning_rate(settings, self.step_count)
        self._update(rate, norm, finite)
        self.optimizer.zero_grad(set_to_none=True)  # now: validations and sheets need the memory
        told = [loss, *asked, norm, *norms]
        rate *= rate_factor(self.optimizer)
        self._unread.append((torch.stack([value.double().to(loss.device) for value in told]), rate))
        self.step_count += 1

    def read(self) -> list[StepResult]:
        """The results of all steps since the last reading; waits for the device.

        Raises:
            TrainingDiverged: `max_skipped_steps` steps in a row were not finite.
        """
        unread, self._unread = self._unread, []
        results = []
        for number, (values, rate) in enumerate(unread):
            loss, stopped, saved, grad_norm, *norms = values.tolist()
            finite = math.isfinite(loss) and math.isfinite(grad_norm)
            self._count(finite, self.step_count - len(unread) + number + 1)
            parts = dict(zip(self._groups, norms, strict=True))
            told = {"stop": stopped > 0, "save": saved > 0}
            results.append(
                StepResult(loss=loss, grad_norm=grad_norm, grad_norms=parts, lr=rate, skipped=not finite, **told)
            )
        return results

    def chunks(self, batch: Batch) -> list[Batch]:
        """The parts of a worker's share that go through the model one after the other."""
        rows, most = len(batch.weights), self.micro_batch
        return list(batch.chunks(-(-rows // most) if most else self.settings.gradient_accumulation))

    def weights(self, batch: Batch) -> torch.Tensor:
        """The weight of each row's error in training, (B,)."""
        gamma = self.settings.min_snr_gamma
        return batch.weights * self.objective.min_snr_weights(batch.timesteps, gamma) if gamma else batch.weights

    def errors(self, model: Callable[..., torch.Tensor], batch: Batch, influence_quantity: float) -> torch.Tensor:
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
                batch.added_conditions,
            )  # (B, C, h, w)
        target = objective.target(batch.latents, batch.noise, batch.timesteps)
        return squared_error(prediction, target, batch.error_weights)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context with the arithmetic of `precision`."""
        enabled = self.settings.precision is Precision.BF16
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def validate(
        self,
        batches: Iterable[tuple[Batch, torch.Tensor]],
        strata: int,
        influence_quantity: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[float] | None:
        """The weighted mean error of each stratum of timesteps, over all workers, with the weights of an adapter saved now.
        None, on all workers alike, where one of them was to stop before its last batch.

        Args:
            batches: each with the stratum of its rows, (B,), from 0 (the least noise).
            strata: their number; there is a row in each.
            stop: asked before each batch.
        """
        sums = torch.zeros(3, strata, dtype=torch.float64, device=self.world.device)  # of error, weight, and stops
        with self.averaged_weights():
            for batch, stratum in batches:
                if stop():
                    sums[2] = 1
                    break
                parts = [self.errors(self.model, chunk, influence_quantity) for chunk in self.chunks(batch)]
                errors = torch.cat(parts).double()
                weights = batch.weights.double()
                sums[:2].index_add_(1, stratum.to(self.world.device), torch.stack([errors * weights, weights]))
        error, weight, stopped = self.world.sum(sums)
        return None if bool(stopped.any()) else [float(value) for value in error / weight]

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the model has the EMA weights (if EMA is on), and all of them; of all workers alike."""
        kept = {name: self.parameters[name].detach().clone() for name in self.ema}
        self._assign(self.ema)
        try:
            with gathered(self.model):
                yield
        finally:
            self._assign(kept)

    @torch.no_grad()
    def _assign(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context of a chunk's forward and backward: gradients are exchanged once, with the last chunk."""
        if isinstance(self.forward_model, FSDPModule):
            self.forward_model.set_requires_gradient_sync(last)
        if last or not isinstance(self.forward_model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward_model.no_sync()

    @torch.no_grad()
    def _update(self, rate: float, norm: torch.Tensor, finite: torch.Tensor) -> None:
        """Change the weights and their average, unless the step is not finite."""
        if not self.guarded and not bool(finite):
            return
        if self.settings.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.grad_clip, norm)
        set_rate(self.optimizer, rate)
        if self.guarded:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.ema:
            self._average(finite)

    def _average(self, finite: torch.Tensor) -> None:
        ours = [value.to(self._ema_device) for value in self.parameters.values()]
        averages = list(self.ema.values())
        if not self.guarded:
            torch._foreach_lerp_(averages, ours, 1 - self._decay(self.step_count - self.skipped_total))
            return
        if self._taken is None:
            self._taken = finite.new_full((), self.step_count - self.skipped_total, dtype=torch.float32)
        decay = ((1 + self._taken) / (10 + self._taken)).clamp(max=self.settings.ema_decay)
        weight = ((1 - decay) * finite).to(self._ema_device)  # of a skipped step zero
        for average, value in zip(averages, ours, strict=True):
            average.lerp_(value, weight)
        self._taken += finite

    def _decay(self, taken: int) -> float:
        """Of the average: lower in early steps, to forget the start."""
        return min(self.settings.ema_decay, (1 + taken) / (10 + taken))

    @property
    def _ema_device(self) -> torch.device:
        return torch.device("cpu") if self.settings.ema_on_host else self.world.device

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().to(self._ema_device, copy=True) for name, value in self.parameters.items()}

    def _count(self, finite: bool, step: int) -> None:
        self.skipped_total += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.settings.max_skipped_steps:
            raise TrainingDiverged(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row, up to step "
                f"{step}; try a smaller lr (it is {self.settings.lr}) or precision fp32"
            )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """All data for a resume: tensors by name, and counters. All results are read, on all workers alike.

        Of weights that are sharded the first worker alone has the tensors.
        """
        assert not self._unread, "counters are those of the results that were read"
        tensors = {name: whole(value, keep=self.world.rank == 0) for name, value in self._tensors().items()}
        counters = {"step": self.step_count, "skipped": self.skipped_total, "skipped_in_a_row": self.skipped_in_a_row}
        if self.settings.micro_batch is MicroBatch.AUTO:
            counters["micro_batch"] = self.micro_batch
        if self.before_moments:
            counters["before_moments"] = self.before_moments
        return tensors, counters

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"weights.{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        return tensors | moments(self.optimizer, self.parameters)

    def takes_moments(self, tensors: Collection[str]) -> bool:
        """Whether a state with tensors of these names has the moments of this optimizer; before the first step."""
        start_moments(self.optimizer, self.parameters, 0, self.guarded)
        own = moments(self.optimizer, self.parameters).keys()
        self.optimizer.state.clear()
        return own == names_of_moments(tensors)

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor], counters: dict[str, int]) -> None:
        """Continue from `state()`. Raises UsageError naming tensors that are missing, unexpected or of another shape."""
        self.before_moments = counters.get("before_moments", 0)
        taken = counters["step"] - counters["skipped"] - self.before_moments
        if names_of_moments(tensors):
            start_moments(self.optimizer, self.parameters, taken, self.guarded)
        self.step_count, self.skipped_total = counters["step"], counters["skipped"]
        self.skipped_in_a_row = counters["skipped_in_a_row"]
        if self.settings.micro_batch is MicroBatch.AUTO:
            self.micro_batch = counters.get("micro_batch", 0)
        self._taken = None
        own = self._tensors()
        shapes, theirs = ({name: value.shape for name, value in found.items()} for found in (own, tensors))
        if wrong := sorted({name for name, _ in shapes.items() ^ theirs.items()}):
            raise UsageError(
                f"the training checkpoint does not fit: {wrong[0]} (and {len(wrong) - 1} more) differ; it is of a run with "
                "another base or method"
            )
        for name, value in own.items():
            fill(value, tensors[name])
        take_estimate(self.optimizer, tensors)


def names_of_moments(names: Iterable[str]) -> set[str]:
    """Of a state's tensors, those of its optimizer."""
    return {name for name in names if not name.startswith(("weights.", "ema."))}


def _norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Of all their gradients together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
