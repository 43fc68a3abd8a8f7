"""The solver of the released RealCustom++ code, on diffusers' formulas: its orders, timesteps and last step."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverSinglestepScheduler
from torch import Tensor


class ReleasedSolver(DPMSolverSinglestepScheduler):  # type: ignore[misc]  # diffusers' classes have no types
    """DPM-Solver++, single-step, midpoint, order 2, as the released weights are sampled.

    diffusers' scheduler runs the orders 1, 2, 1, 2, ...; lowers the last one; and starts at evenly spaced timesteps
    with one more behind them. The release runs 1, 1, 2, 1, 2, ..., lowers none, and takes "trailing" timesteps (999, 959,
    ..., 39 for 25 steps). Its picture is decoded from the last step's prediction of x0, so that is what this scheduler's
    last step returns.
    """

    @classmethod
    def of(cls, config: Any) -> ReleasedSolver:
        """From a base model's own configuration: its betas and kind of prediction, the release's solver."""
        solver: ReleasedSolver = cls.from_config(
            config,
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            solver_order=2,
            lower_order_final=True,  # without it diffusers logs a line; the orders are ours in any case
            final_sigmas_type="sigma_min",  # the last step's end: timestep 0
            thresholding=False,
            use_karras_sigmas=False,
            use_exponential_sigmas=False,
            use_beta_sigmas=False,
            use_flow_sigmas=False,
        )
        return solver

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step."""
        return [1, *(index % 2 + 1 for index in range(num_inference_steps - 1))]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """The release's timesteps for so many steps, or the given ones."""
        if num_inference_steps is not None and timesteps is None:
            count = self.config.num_train_timesteps
            spaced = torch.arange(count - 1, -1, -count / num_inference_steps).round().int()
            num_inference_steps, timesteps = None, spaced[spaced >= 0].tolist()
        super().set_timesteps(num_inference_steps, device, mu, timesteps)

    def step(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """diffusers' step; the last one's sample is its prediction of x0."""
        output = super().step(*args, return_dict=return_dict, **kwargs)
        if self.step_index < len(self.timesteps):
            return output
        predicted: Tensor = self.model_outputs[-1]
        return type(output)(prev_sample=predicted) if return_dict else (predicted,)
