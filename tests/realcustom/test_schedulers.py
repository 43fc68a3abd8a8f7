"""A call's schedule: plain calls equal stock diffusers to the bit on every scheduler; the released code's own solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, TCDScheduler
from torch import Tensor

from realcustom import RealCustomPipeline
from realcustom.config import override
from realcustom.errors import UsageError
from realcustom.presets import released_sdxl
from realcustom.released_solver import ReleasedSolver
from realcustom.schedule import alphas_cumprod_at, make_scheduler, set_timesteps
from realcustom.settings import SamplerSettings, without_effect
from tests.support import tiny

PROMPT = "a dog on grass"
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}


@dataclass(frozen=True)
class Pair:
    """Our pipeline, with its processors, and stock's of the same weights."""

    ours: RealCustomPipeline
    stock: Any

    def draw(self, name: str, changes: dict[str, Any] | None = None, **arguments: Any) -> tuple[Tensor, Tensor]:
        """Latents of a plain call, ours and stock's, with the same scheduler, arguments and seeds."""
        arguments = {"generator": torch.Generator(), "num_images_per_prompt": 1, **arguments}
        generators = arguments["generator"] if isinstance(arguments["generator"], list) else [arguments["generator"]]
        results: list[Tensor] = []
        for pipe in (self.ours, self.stock):
            pipe.scheduler = made(name, **(changes or {}))
            for number, generator in enumerate(generators):
                generator.manual_seed(number)
            out: Any = pipe(PROMPT, guidance_scale=5.0, height=16, width=16, output_type="latent", **arguments)
            results.append(out.images)
        return results[0], results[1]


@pytest.fixture(scope="module")
def both(tiny_models: tiny.TinyModels) -> Pair:
    stock = tiny.tiny_pipeline()
    stock.set_progress_bar_config(disable=True)
    models = tiny_models.base, tiny_models.adapter, tiny_models.image_encoder
    return Pair(RealCustomPipeline.from_pretrained(*models), stock)


def made(name: str, **changes: Any) -> Any:
    """The scheduler from the tiny base's configuration."""
    config = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    return getattr(diffusers, name).from_config(DDIMScheduler.from_config(config | changes).config, **changes)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers' own, in DEIS and KDPM2
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(
            (f"{name}Scheduler", {})
            for name in (
                "DDIM",
                "DDIMParallel",
                "CogVideoXDDIM",
                "DDPM",
                "DDPMParallel",
                "PNDM",
                "EulerDiscrete",
                "EulerAncestralDiscrete",
                "HeunDiscrete",
                "KDPM2Discrete",
                "KDPM2AncestralDiscrete",
                "DPMSolverMultistep",
                "DPMSolverSinglestep",
                "UniPCMultistep",
                "DEISMultistep",
                "SASolver",
                "LCM",
                "TCD",
            )
        ),
        *(
            (f"{name}Scheduler", KARRAS)
            for name in (
                "EulerDiscrete",
                "HeunDiscrete",
                "DPMSolverMultistep",
                "DPMSolverSinglestep",
                "UniPCMultistep",
            )
        ),
        ("DPMSolverMultistepScheduler", SDE),
        ("DPMSolverSinglestepScheduler", SDE),
        ("DPMSolverMultistepScheduler", SDE | KARRAS),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}),
    ],
)
def test_a_plain_call_is_stocks_to_the_bit(both: Pair, name: str, changes: dict[str, Any]) -> None:
    ours, expected = both.draw(name, changes, num_inference_steps=4)
    assert torch.equal(ours, expected) and torch.isfinite(ours).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DDIMScheduler", {"num_inference_steps": 3, "eta": 0.7}),
        ("TCDScheduler", {"num_inference_steps": 3, "eta": 0.3}),
        ("TCDScheduler", {"timesteps": [999, 500, 200]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 400, 10]}),
        ("EulerDiscreteScheduler", {"sigmas": [10.0, 3.0, 0.5]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 400, 10]}),
        ("DDIMScheduler", {"num_inference_steps": 3, "eta": 1.0, "num_images_per_prompt": 2}),
    ],
)
def test_a_calls_schedule_means_what_it_means_in_diffusers(both: Pair, name: str, arguments: dict[str, Any]) -> None:
    ours, expected = both.draw(name, **arguments)
    assert torch.equal(ours, expected)
    plain, _ = both.draw(name, num_inference_steps=3, num_images_per_prompt=len(ours))
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_given_latents_are_brought_to_the_first_steps_noise(both: Pair) -> None:
    """They are standard normal, as in diffusers; this scheduler starts at a larger deviation."""
    drawn, _ = both.draw("EulerDiscreteScheduler", num_inference_steps=3)
    latents = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))  # what the call draws itself
    assert made("EulerDiscreteScheduler").init_noise_sigma > 2
    ours, expected = both.draw("EulerDiscreteScheduler", num_inference_steps=3, latents=latents)
    assert torch.equal(ours, expected) and torch.equal(ours, drawn)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_a_list_of_generators(both: Pair, name: str) -> None:
    """One each, or one object in several places, of which stock draws picture by picture."""
    one, other = torch.Generator(), torch.Generator()
    for generators in ([one, other], [one, one]):
        arguments: dict[str, Any] = {"num_images_per_prompt": 2, "generator": generators, "num_inference_steps": 2}
        ours, expected = both.draw(name, **arguments)
        assert torch.equal(ours, expected)
    single, _ = both.draw(name, num_inference_steps=2, generator=[torch.Generator()])
    alone, _ = both.draw(name, num_inference_steps=2)
    assert torch.equal(single, alone)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("EulerDiscreteScheduler", {"eta": 0.5}, "EulerDiscreteScheduler takes no eta, got 0.5"),
        ("DDIMScheduler", {"eta": 1.5}, "eta is a share of noise from 0 to 1, got 1.5"),
        ("DDIMScheduler", {"eta": float("nan")}, "eta is a share of noise from 0 to 1, got nan"),
        ("DDIMScheduler", {"timesteps": [900, 100]}, "DDIMScheduler takes no timesteps: leave them out"),
        ("DDPMScheduler", {"sigmas": [3.0]}, "DDPMScheduler takes no sigmas"),
        ("EulerDiscreteScheduler", {"timesteps": [9], "sigmas": [3.0]}, "timesteps or sigmas, not both"),
        ("EulerDiscreteScheduler", {"timesteps": []}, "timesteps is empty"),
        ("EulerDiscreteScheduler", {"sigmas": [3.0], "num_inference_steps": 4}, "leave num_inference_steps=4 out"),
        ("DDPMScheduler", {"timesteps": [100, 900]}, r"DDPMScheduler refuses timesteps \[100, 900\]: .*descending"),
        ("DDIMScheduler", {"num_inference_steps": 2000}, "DDIMScheduler refuses num_inference_steps 2000"),
    ],
)
def test_a_schedule_that_a_scheduler_does_not_take(
    both: Pair, name: str, arguments: dict[str, Any], message: str
) -> None:
    both.ours.scheduler = made(name)
    with pytest.raises(UsageError, match=message):
        both.ours(PROMPT, **arguments)


@pytest.mark.parametrize("value", [None, "ddim", TCDScheduler])
def test_what_is_no_scheduler(both: Pair, value: Any) -> None:
    with pytest.raises(UsageError, match="scheduler is one of diffusers' schedulers, got"):
        both.ours.scheduler = value


def test_the_noise_level_between_timesteps() -> None:
    """log(sigma) is interpolated; at timesteps it is the table's to the bit."""
    scheduler = made("EulerDiscreteScheduler", **KARRAS)
    table = scheduler.alphas_cumprod
    assert all(alphas_cumprod_at(scheduler, torch.tensor(at)) == table[at] for at in (0, 1, 500, 998, 999))
    sigmas = (((1 - table) / table) ** 0.5).double()
    found = alphas_cumprod_at(scheduler, torch.tensor(500.25)).double()
    assert float(((1 - found) / found) ** 0.5) == pytest.approx(
        float(sigmas[500] ** 0.75 * sigmas[501] ** 0.25), rel=1e-6
    )
    assert alphas_cumprod_at(scheduler, torch.tensor(-0.5)) == table[0]
    assert alphas_cumprod_at(scheduler, torch.tensor(999.5)) == table[999]


def test_the_noise_level_with_no_signal_at_the_last_timestep() -> None:
    scheduler = made("DDIMScheduler", rescale_betas_zero_snr=True)
    levels = [float(alphas_cumprod_at(scheduler, torch.tensor(998 + share / 8))) for share in range(9)]
    assert levels == sorted(set(levels), reverse=True) and levels[-1] == scheduler.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("changes", [{}, {"prediction_type": "v_prediction", "timestep_type": "continuous"}])
def test_the_noise_level_stays_on_its_device(changes: dict[str, Any]) -> None:
    """No value is read back, for which a step would wait: of a tensor on the device "meta" none can be."""
    scheduler = made("EulerDiscreteScheduler", **changes)
    level = alphas_cumprod_at(scheduler, torch.tensor(3.5, device="meta"))
    assert level.device.type == "meta" and level.shape == ()


def test_the_noise_level_of_continuous_timesteps() -> None:
    """They are log(sigma) / 4; the UNet's input is scaled by sqrt(abar)."""
    scheduler = made("EulerDiscreteScheduler", prediction_type="v_prediction", timestep_type="continuous", **KARRAS)
    scheduler.set_timesteps(7)
    latents = torch.ones(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        scaled = float(scheduler.scale_model_input(latents, timestep)[0, 0, 0, 0])
        assert float(alphas_cumprod_at(scheduler, timestep).sqrt()) == pytest.approx(scaled, rel=1e-5)
        scheduler.step(torch.zeros_like(latents), timestep, latents)


def released_reference(predict: Any, latents: Tensor, steps: int) -> list[Tensor]:
    """DPM-Solver++ (arXiv 2211.01095), single-step midpoint, in float64: what each step leaves behind."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    alpha, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    half_log_snr = (alpha / sigma).log()
    times = [*(999 - 1000 * step // steps for step in range(steps)), 0]
    start, first, left = latents, 0, []
    for step in range(steps):
        now, after = times[step], times[step + 1]
        clean = (latents - sigma[now] * predict(latents, now)) / alpha[now]
        if step < 2 or step % 2 == 1:  # orders 1, 1, 2, 1, 2, ...: an odd step starts a pair
            start, first, before = latents, now, clean
            gap = half_log_snr[after] - half_log_snr[now]
            latents = sigma[after] / sigma[now] * latents - alpha[after] * torch.expm1(-gap) * clean
        else:
            gap = half_log_snr[after] - half_log_snr[first]
            ratio = (half_log_snr[now] - half_log_snr[first]) / gap
            mean = before + (clean - before) / (2 * ratio)
            latents = sigma[after] / sigma[first] * start - alpha[after] * torch.expm1(-gap) * mean
        left.append(clean if step == steps - 1 else latents)
    return left


@pytest.mark.parametrize("steps", [25, 10, 4, 1])
def test_the_released_solver(steps: int) -> None:
    """Orders 1, 1, 2, 1, 2, ..., timesteps 999, 959, ..., 39, and the last prediction of x0 as its result."""
    base = EulerDiscreteScheduler(  # SDXL's own
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
    )
    solver = make_scheduler(base, released_sdxl().sampler)
    assert isinstance(solver, ReleasedSolver)
    for _ in range(2):  # a second call starts anew
        solver.set_timesteps(steps)
        if steps == 25:
            assert solver.timesteps.tolist() == list(range(999, 0, -40))
            assert solver.order_list == [1] + [1, 2] * 12
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = released_reference(lambda x, t: torch.sin(3 * x + t), latents.double(), steps)
        for timestep, after in zip(solver.timesteps, expected, strict=True):
            noise = torch.sin(3 * latents.double() + int(timestep)).float()
            latents = solver.step(noise, timestep, latents, return_dict=False)[0]
            assert (latents - after).abs().max() <= 1e-3 * after.abs().max()


def test_the_released_solver_in_a_call(pipeline: RealCustomPipeline) -> None:
    """By its name in the settings, with other timesteps in the call; spacing has no effect on it."""
    sampler = {"scheduler": "dpmpp_released", "num_inference_steps": 3}
    pipeline.settings = override(pipeline.settings, {"sampler": sampler})
    assert isinstance(pipeline.scheduler, ReleasedSolver)
    arguments: dict[str, Any] = {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    images = pipeline(PROMPT, **arguments).images
    assert pipeline.scheduler.timesteps.tolist() == [999, 666, 332] and torch.isfinite(torch.as_tensor(images)).all()
    pipeline(PROMPT, timesteps=[900, 50], **arguments)
    assert pipeline.scheduler.timesteps.tolist() == [900, 50]
    spaced = override(pipeline.settings, {"sampler": {"timestep_spacing": "trailing"}})
    assert "timestep_spacing does nothing with sampler.scheduler dpmpp_released" in str(without_effect(spaced))
    assert released_sdxl().sampler == SamplerSettings(scheduler="dpmpp_released", num_inference_steps=25)


@pytest.mark.parametrize(
    "base",
    [
        EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True, steps_offset=1),
        DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing"),
        diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", lower_order_final=False),
    ],
)
def test_a_scheduler_made_from_the_released_ones_configuration_is_as_made_from_the_bases(base: Any) -> None:
    own = make_scheduler(base, released_sdxl().sampler).config
    for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete", "UniPCMultistep", "DDIM"):
        kind = getattr(diffusers, f"{name}Scheduler")
        assert kind.from_config(own).config == kind.from_config(base.config).config


@pytest.mark.parametrize("base", [{}, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "thresholding": True}])
@pytest.mark.parametrize("changes", [{}, KARRAS, {"final_sigmas_type": "zero"}, {"lower_order_final": False}])
def test_the_released_solver_is_one_whatever_the_base_says(base: dict[str, Any], changes: dict[str, Any]) -> None:
    steps = []
    for kind in (made("DDIMScheduler"), made("DPMSolverMultistepScheduler", **base, **changes)):
        solver = make_scheduler(kind, released_sdxl().sampler)
        solver.set_timesteps(5)
        latents = torch.ones(1, 4, 2, 2)
        for timestep in solver.timesteps:
            latents = solver.step(latents.sin(), timestep, latents).prev_sample
        steps.append(latents)
    assert torch.equal(*steps)


@pytest.mark.parametrize("timesteps", [[100, 100], [100, 900], [1000, 5], [5, -1]])
def test_timesteps_that_the_released_solver_has_not(pipeline: RealCustomPipeline, timesteps: list[int]) -> None:
    pipeline.settings = override(pipeline.settings, {"sampler": {"scheduler": "dpmpp_released"}})
    with pytest.raises(UsageError, match=r"ReleasedSolver refuses timesteps .*different numbers from 999 down to 0"):
        pipeline(PROMPT, timesteps=timesteps)
    with pytest.raises(UsageError, match="ReleasedSolver refuses num_inference_steps 1001"):
        pipeline(PROMPT, num_inference_steps=1001)


def test_a_schedule_that_begins_before_the_first_timestep_is_refused() -> None:
    """1000 steps of DDIM with the offset of Stable Diffusion begin at timestep 1000, which has no noise level."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    set_timesteps(scheduler, 999, torch.device("cpu"))
    with pytest.raises(UsageError, match="from 0 to 999, this schedule begins at 1000: ask for fewer steps than 1000"):
        set_timesteps(scheduler, 1000, torch.device("cpu"))
