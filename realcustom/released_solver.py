"""The solver of the released RealCustom++ code, on diffusers' formulas: its orders, timesteps and last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverSinglestepScheduler
from torch import Tensor

FORMULAS = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    "thresholding": False,
    "use_flow_sigmas": False,
}


class ReleasedSolver(DPMSolverSinglestepScheduler):  # type: ignore[misc]  # diffusers' classes have no types
    """DPM-Solver++, single-step, midpoint, order 2, as the released weights are sampled.

    diffusers' scheduler runs the orders 1, 2, 1, 2, ...; lowers the last one; and starts at evenly spaced timesteps
    with one more behind them. The release runs 1, 1, 2, 1, 2, ..., lowers none, and takes "trailing" timesteps (999, 959,
    ..., 39 for 25 steps). Its picture is decoded from the last step's prediction of x0, so that is what this scheduler's
    last step returns.

    All that is the class's own: its configuration stays the base model's, for schedulers that are made from it.
    """

    @classmethod
    def of(cls, config: Any) -> ReleasedSolver:
        """From a base model's own configuration: its betas and kind of prediction, the release's solver."""
        # diffusers' class has these values by itself: only a base that says something else is overridden
        other = {name: value for name, value in FORMULAS.items() if config.get(name, value) != value}
        solver: ReleasedSolver = cls.from_config(config, **other)
        return solver

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step."""
        return [1, *(index % 2 + 1 for index in range(num_inference_steps - 1))]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """The release's timesteps for so many steps, or the given ones; behind them is timestep 0.

        Raises ValueError where they do not descend, or are none of the model's.
        """
        count = int(self.config.num_train_timesteps)
        if timesteps is not None:
            chosen = torch.tensor(timesteps, dtype=torch.int64)
        elif num_inference_steps is not None:
            spaced = torch.arange(count - 1, -1, -count / num_inference_steps).round().long()
            chosen = spaced[spaced >= 0]
        else:
            raise ValueError("give num_inference_steps or timesteps")
        if (chosen.diff() >= 0).any() or not 0 <= int(chosen[-1]) <= int(chosen[0]) < count:
            raise ValueError(f"timesteps are different numbers from {count - 1} down to 0")
        levels = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5  # sigma of each timestep
        self.timesteps, self.sigmas = chosen.to(device), torch.cat([levels[chosen], levels[:1]])
        self.num_inference_steps = len(chosen)
        self.order_list = self.get_order_list(len(chosen))
        self.model_outputs: list[Any] = [None] * self.config.solver_order
        self.sample = None
        self._step_index = self._begin_index = None

    def step(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """diffusers' step; the last one's sample is its prediction of x0."""
        output = super().step(*args, return_dict=return_dict, **kwargs)
        if self.step_index < len(self.timesteps):
            return output
        predicted: Tensor = self.model_outputs[-1]
        return type(output)(prev_sample=predicted) if return_dict else (predicted,)
